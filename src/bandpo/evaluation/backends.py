"""Generation backends: vLLM if it is installed, else transformers."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np

from bandpo.evaluation.sampling import Completion, Progress, Sampler, Sampling, encode, sample
from bandpo.tasks.base import Prompt
from bandpo.words import first_line, nearest


@dataclass(frozen=True)
class Backend:
    """A way to generate completions.

    Attributes:
        load: Model's path or name, data type of the weights and seed -> the model for `sample`, and the tokenizer.
        sample: Draws completions.
        entropy: What the entropy of its completions is computed from.
        batch_size: Default number of completions at a time.
    """

    name: str
    load: Callable[[str, str, int], tuple[Any, Any]]
    sample: Sampler
    entropy: str
    batch_size: int

    @property
    def identity(self) -> dict[str, str]:
        """The part that distinguishes evaluations."""
        return {"backend": self.name, "entropy_from": self.entropy}


def choose_backend(name: str, path: str) -> Backend:
    """A backend by name; 'auto' is vLLM if it is installed, can load the model and has a GPU, else transformers.

    Raises:
        ValueError: For an unknown name, or for vLLM if it is not installed or `path` is an adapter.
    """
    known = ("auto", *BACKENDS)
    if name not in known:
        raise ValueError(f"unknown backend {name!r}{nearest(name, known)}; known: {', '.join(known)}")
    adapter = (Path(path) / "adapter_config.json").exists()
    if name == "auto":
        name = "vllm" if find_spec("vllm") and not adapter and _has_gpu() else "transformers"
    if name == "vllm":
        if not find_spec("vllm"):
            raise ValueError("backend 'vllm' is not installed: pip install vllm, or choose 'transformers'")
        if adapter:
            raise ValueError(f"{path!r} is an adapter, which backend 'vllm' does not load; choose 'transformers'")
    return BACKENDS[name]


def _has_gpu() -> bool:
    import torch

    return torch.cuda.is_available()


def _load_transformers(path: str, dtype: str, seed: int) -> tuple[Any, Any]:

    from bandpo.models import load_model

    model, tokenizer = load_model(path, dtype)
    return model.to("cuda" if _has_gpu() else "cpu"), tokenizer


def _load_vllm(path: str, dtype: str, seed: int) -> tuple[Any, Any]:
    from vllm import LLM

    from bandpo.models import loadable

    # On the CPU a request with a seed fails when its prompt is read in parts.
    options = {} if _has_gpu() else {"enable_chunked_prefill": False}
    source = loadable(path)
    try:
        model = LLM(model=source, dtype=dtype, seed=seed, **options)
    except Exception as error:  # any error in its processes
        raise ValueError(
            f"vLLM cannot start with {path!r}: {first_line(error)}; see its log for the cause, or choose "
            "--backend transformers"
        ) from error
    return model, model.get_tokenizer()


def sample_vllm(
    model: Any, tokenizer: Any, prompts: list[Prompt], sampling: Sampling, progress: Progress | None = None
) -> list[list[Completion]]:
    """`sample` with a vLLM engine, which batches by itself; each prompt has its own seed.

    vLLM does not report the entropy. At temperature 1 without truncation, the mean negative log-prob of the sampled
    tokens estimates it without bias; otherwise it is missing.
    """
    from vllm import SamplingParams

    # The log-probs are those before temperature and truncation, so only then is a token drawn from them.
    known = sampling.temperature == 1 and sampling.top_p == 1
    seeds = np.random.SeedSequence(sampling.seed).generate_state(len(prompts))
    parameters = [
        SamplingParams(
            n=sampling.samples,
            temperature=sampling.temperature,
            top_p=sampling.top_p if sampling.temperature else 1.0,
            top_k=-1,
            max_tokens=sampling.max_new_tokens,
            seed=int(own),
            logprobs=0 if known else None,
        )
        for own in seeds
    ]
    inputs = [{"prompt_token_ids": encode(prompt, tokenizer)} for prompt in prompts]
    result = []
    for request in model.generate(inputs, parameters, use_tqdm=False):
        completions = []
        for output in sorted(request.outputs, key=lambda o: o.index):
            length = len(output.token_ids)
            entropy = -output.cumulative_logprob / length if known else None
            completions.append(Completion(output.text, length, output.finish_reason == "length", entropy))
        result.append(completions)
        if progress is not None:
            progress(len(completions))
    return result


BACKENDS = {
    "transformers": Backend("transformers", _load_transformers, sample, "distribution", Sampling.batch_size),
    "vllm": Backend("vllm", _load_vllm, sample_vllm, "sampled tokens", 1024),
}
