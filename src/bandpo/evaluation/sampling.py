"""Completions, how they are drawn, and drawing them with transformers."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from itertools import pairwise
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from torch import Tensor

    from bandpo.tasks.base import Prompt


@dataclass(frozen=True)
class Completion:
    """One completion.

    Attributes:
        text: Decoded text without special tokens.
        tokens: Number of tokens, the end-of-sequence token included.
        truncated: Whether it reached the length limit.
        entropy: Mean entropy of the next-token distribution (at temperature 1) over its tokens, in nats; None
            if unknown.
        parts: The same for each part between two of the sampling's `cuts`; empty if unknown.
    """

    text: str
    tokens: int
    truncated: bool
    entropy: float | None
    parts: list[float | None] = field(default_factory=list)


@dataclass(frozen=True)
class Sampling:
    """How completions are drawn.

    Attributes:
        samples: Completions per prompt.
        max_new_tokens: Length limit of a completion.
        temperature: Sampling temperature; 0 is greedy.
        top_p: Sample from this share of the probability mass (the nucleus).
        batch_size: Completions generated at a time. Padding and the order of random numbers depend on it, so
            another value gives other samples from the same distribution.
        seed: Seed of the samples.
        cuts: Increasing token positions at which completions are cut, for the entropy of each part; None for none.

    Raises:
        ValueError: For a value that is not allowed.
    """

    samples: int = 8
    max_new_tokens: int = 2048
    temperature: float = 1.0
    top_p: float = 1.0
    batch_size: int = 64
    seed: int = 0
    cuts: tuple[int, ...] | None = None

    def __post_init__(self) -> None:
        for name in ("samples", "max_new_tokens", "batch_size"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}; allowed: an integer >= 1")
        if not (math.isfinite(self.temperature) and self.temperature >= 0):
            raise ValueError(f"temperature is {self.temperature:g}; allowed: a finite number >= 0")
        if not 0 < self.top_p <= 1:
            raise ValueError(f"top_p is {self.top_p:g}; allowed: a share above 0 and at most 1")
        if self.seed < 0:
            raise ValueError(f"seed is {self.seed}; allowed: an integer >= 0")
        check_cuts(self.cuts)

    def greedy(self) -> Sampling:
        """One completion per prompt without sampling."""
        return replace(self, samples=1, temperature=0.0, top_p=1.0)


Progress = Callable[[int], None]
"""Called with the number of newly finished completions."""


class Sampler(Protocol):
    """Draws completions; `model` and `tokenizer` come from the backend's `load`."""

    def __call__(
        self, model: Any, tokenizer: Any, prompts: list[Prompt], sampling: Sampling, progress: Progress | None
    ) -> list[list[Completion]]: ...


class _EntropyRecorder:
    """Logits processor that changes nothing and keeps each step's entropy."""

    def __init__(self) -> None:
        self.steps: list[Tensor] = []

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        logps = scores.float().log_softmax(-1)
        self.steps.append(-(logps.exp() * logps.masked_fill(logps.isinf(), 0)).sum(-1))
        return scores


def encode(prompt: Prompt, tokenizer: Any) -> list[int]:
    """Token ids of a prompt, exactly as TRL's trainer encodes it."""
    if isinstance(prompt, str):
        return tokenizer(prompt)["input_ids"]
    return tokenizer.apply_chat_template(prompt, add_generation_prompt=True, tokenize=True, return_dict=True)[
        "input_ids"
    ]


def sample(
    model: Any, tokenizer: Any, prompts: list[Prompt], sampling: Sampling, progress: Progress | None = None
) -> list[list[Completion]]:
    """Draw completions for each prompt with transformers.

    The model's own generation settings (penalties, truncations) do not apply: completions come from the model's
    own distribution, at the temperature, within the nucleus.

    Args:
        model: A causal language model of transformers.
        tokenizer: Its tokenizer.
        prompts: Texts or chat messages.
        sampling: How many completions, and how they are drawn.
        progress: Called with the number of completions that have just been finished.

    Returns:
        One list of completions per prompt, in the order of `prompts`.
    """
    import torch
    from transformers import GenerationConfig, LogitsProcessorList

    greedy = sampling.temperature == 0
    order = [i for i in range(len(prompts)) for _ in range(sampling.samples)]
    encoded = [encode(prompt, tokenizer) for prompt in prompts]
    config = GenerationConfig(
        max_new_tokens=sampling.max_new_tokens,
        do_sample=not greedy,
        temperature=None if greedy else sampling.temperature,
        top_k=None if greedy else 0,
        top_p=None if greedy else sampling.top_p,
        min_p=None if greedy else 0.0,
        typical_p=None if greedy else 1.0,
        repetition_penalty=1.0,
        no_repeat_ngram_size=0,
        pad_token_id=tokenizer.pad_token_id,
        eos_token_id=tokenizer.eos_token_id,
    )
    result: list[list[Completion]] = [[] for _ in prompts]
    was_training = model.training
    model.eval()
    try:
        devices = [model.device] if model.device.type == "cuda" else []
        with torch.no_grad(), torch.random.fork_rng(devices=devices):
            torch.manual_seed(sampling.seed)
            for start in range(0, len(order), sampling.batch_size):
                rows = order[start : start + sampling.batch_size]
                batch = tokenizer.pad(
                    {"input_ids": [encoded[i] for i in rows]}, padding_side="left", return_tensors="pt"
                ).to(model.device)
                recorder = _EntropyRecorder()
                output = model.generate(
                    **batch, generation_config=config, logits_processor=LogitsProcessorList([recorder])
                )
                generated = output[:, batch["input_ids"].shape[1] :]
                entropies = torch.stack(recorder.steps, 1)
                for i, completion in zip(rows, _split(generated, entropies, tokenizer, sampling.cuts), strict=True):
                    result[i].append(completion)
                if progress is not None:
                    progress(len(rows))
    finally:
        model.train(was_training)
    return result


def _split(generated: Tensor, entropies: Tensor, tokenizer: Any, cuts: tuple[int, ...] | None) -> list[Completion]:
    completions = []
    for ids, entropy in zip(generated.tolist(), entropies.tolist(), strict=True):
        ended = tokenizer.eos_token_id in ids
        length = ids.index(tokenizer.eos_token_id) + 1 if ended else len(ids)
        completions.append(
            Completion(
                text=tokenizer.decode(ids[:length], skip_special_tokens=True),
                tokens=length,
                truncated=not ended,
                entropy=_mean(entropy[:length]),
                parts=[_mean(entropy[:length][part]) for part in slices(cuts)],
            )
        )
    return completions


def check_cuts(cuts: tuple[int, ...] | None) -> tuple[int, ...] | None:
    """`cuts`, validated.

    Raises:
        ValueError: If they do not increase from 1 or more.
    """
    if cuts is not None and not all(a < b for a, b in pairwise((0, *cuts))):
        raise ValueError(f"cuts are {list(cuts)}; allowed: increasing integers >= 1")
    return cuts


def slices(cuts: tuple[int, ...] | None) -> list[slice]:
    """The parts of a completion between `cuts`: 0:6 and 6: for a cut at 6; none without a cut."""
    return [slice(start, end) for start, end in pairwise((0, *cuts, None))] if cuts else []


def _mean(values: list[float]) -> float | None:
    return sum(values) / len(values) if values else None
