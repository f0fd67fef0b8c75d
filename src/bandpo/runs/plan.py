"""What a run will do and need, found out without training: `bandpo train RECIPE --dry-run`.

If the model can be loaded, memory and time are measured: one rollout and one micro-batch at the largest shape that
the run will meet, without an optimizer step; only the optimizer's state is added by its formula. If it cannot, or if
the run is spread over several processes, memory is estimated from the model's configuration. docs/scale.md states the
formulas.
"""

from __future__ import annotations

import importlib.util
import tempfile
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import torch
from trl import GRPOConfig

from bandpo.evaluation.sampling import encode
from bandpo.models import load_model, loadable, resolve
from bandpo.runs.build import (
    build_args,
    build_model,
    build_trainer,
    peft_config,
)
from bandpo.runs.config import RunConfig
from bandpo.runs.memory import Architecture, Memory, estimate_memory, resident_memory
from bandpo.runs.probe import Seconds, derived_seconds, measured_memory, probe
from bandpo.runs.run_dir import RunDirectory
from bandpo.runs.steps import Steps, plan_steps, planned_rollouts
from bandpo.tasks import Problem, draw_problems
from bandpo.tasks.base import Prompt
from bandpo.training.config import can_clip

PROCESS_COUNTS = (1, 2, 4, 8, 16)
ASSUMED_PROMPT = 1024  # tokens, if the prompts cannot be read

Loaded = TypeVar("Loaded")


@dataclass(frozen=True)
class Prompts:
    """The prompts that the run meets: the first one, its length, and the longest one's length, in tokens."""

    first: str
    first_tokens: int
    longest_tokens: int
    longest: int  # its place among them

    @classmethod
    def of(cls, tokenizer: Any, prompts: list[Prompt]) -> Prompts:
        encoded = [encode(prompt, tokenizer) for prompt in prompts]
        lengths = [len(ids) for ids in encoded]
        return cls(tokenizer.decode(encoded[0]), lengths[0], max(lengths), lengths.index(max(lengths)))


@dataclass(frozen=True)
class Needs:
    """What the model and the machine say of a run; None if it could not be found out.

    Attributes:
        per_process: Number of processes -> memory on each of them, if the run may be spread.
    """

    prompts: Prompts | None = None
    architecture: Architecture | None = None
    memory: Memory | None = None
    seconds: Seconds | None = None
    per_process: dict[int, Memory | None] | None = None


@dataclass(frozen=True)
class Plan:
    """Everything that `--dry-run` prints.

    Attributes:
        clips: Whether a ratio can leave 1 at all.
        problems: Numbers of training and held-out problems; None if they cannot be read.
        obstacles: Why the run cannot start on this machine.
    """

    config: RunConfig
    steps: Steps
    clips: bool
    completion_tokens: int
    problems: tuple[int, int] | None
    needs: Needs
    device: str
    processes: int
    obstacles: tuple[str, ...]

    @property
    def prompt_tokens(self) -> int:
        return _prompt_tokens(self.needs.prompts)


def _prompt_tokens(prompts: Prompts | None) -> int:
    return ASSUMED_PROMPT if prompts is None else prompts.longest_tokens


def make_plan(config: RunConfig) -> Plan:
    """Load what a run would load, probe it, and leave nothing behind.

    Raises:
        ValueError: For settings that no machine could run. What only this machine lacks (a hub that cannot be
            reached) is an obstacle in the plan instead.
    """
    libraries = resident_memory()
    obstacles: list[str] = []
    problems = _attempt(lambda: draw_problems(config.task), obstacles)
    train, heldout = problems or ([], [])
    with tempfile.TemporaryDirectory(prefix="bandpo-plan-") as folder:  # the trainer makes its directory at once
        args = build_args(config, config.train, RunDirectory(Path(folder)))
        assert args.max_completion_length is not None
        steps = plan_steps(args, len(train) or None)
        if args.use_vllm and importlib.util.find_spec("vllm") is None:
            obstacles.append("train.use_vllm needs vLLM, which is not installed: pip install 'trl[vllm]'")
        if args.use_vllm or args.world_size > 1:
            needs = _estimated(config, args, steps, train, obstacles)
        elif (loaded := _attempt(lambda: _load(config, Path(folder)), obstacles)) is None:
            needs = _estimated(config, args, steps, train, [])  # the obstacle is known already
        elif train:
            needs = _measured(config, args, steps, loaded, train, len(heldout), libraries)
        else:
            needs = Needs()
    return Plan(
        config=config,
        steps=steps,
        clips=can_clip(args),
        completion_tokens=args.max_completion_length,
        problems=problems and (len(train), len(heldout)),
        needs=needs,
        device=args.device.type,
        processes=args.world_size,
        obstacles=tuple(obstacles),
    )


def _attempt(load: Callable[[], Loaded], obstacles: list[str]) -> Loaded | None:
    try:
        return load()
    except ValueError as error:
        obstacles.append(" ".join(str(error).split()))
        return None


def _load(config: RunConfig, folder: Path) -> tuple[Any, Any]:
    loaded = build_model(config)
    if config.model.scratch is None:
        return loaded
    for part in loaded:  # loaded again as in a run, so that a reference model can be too
        part.save_pretrained(folder / "initial")
    return load_model(str(folder / "initial"), config.model.dtype)


def _memory(config: RunConfig, args: GRPOConfig, shape: Architecture, prompt_tokens: int, processes: int) -> Memory:
    stored = getattr(torch, config.model.dtype).itemsize
    assert args.max_completion_length is not None
    assert args.generation_batch_size is not None
    return estimate_memory(
        shape,
        sequences=args.per_device_train_batch_size,
        tokens=prompt_tokens + args.max_completion_length,
        completion=args.max_completion_length,
        generated=0 if args.use_vllm else args.generation_batch_size // processes,
        weight_bytes=stored,
        compute_bytes=2 if args.bf16 or args.fp16 else stored,
        checkpointing=args.gradient_checkpointing,
        reference=args.beta != 0 and config.lora is None,
        processes=processes,
    )


def _estimated(
    config: RunConfig, args: GRPOConfig, steps: Steps, train: list[Problem], obstacles: list[str]
) -> Needs:
    """From the model's configuration and tokenizer alone."""
    from transformers import AutoTokenizer

    shape = _attempt(lambda: read_architecture(config), obstacles)
    prompts = None
    if config.model.path is not None and train:
        with suppress(OSError, ValueError):
            tokenizer = AutoTokenizer.from_pretrained(resolve(config.model.path))
            prompts = Prompts.of(tokenizer, [config.task.prompt(p, tokenizer) for p in train])
    fits = [n for n in PROCESS_COUNTS if steps.completions % (steps.micro_batch * n) == 0]
    tokens = _prompt_tokens(prompts)
    per_process = {
        n: None if shape is None else _memory(config, args, shape, tokens, n)
        for n in sorted({*fits, args.world_size})
    }
    return Needs(prompts, shape, per_process[args.world_size], None, per_process)


def _measured(
    config: RunConfig,
    args: GRPOConfig,
    steps: Steps,
    loaded: tuple[Any, Any],
    train: list[Problem],
    heldout: int,
    libraries: int,
) -> Needs:
    """From a probe of the loaded model on the rollout with the longest prompt."""
    model, tokenizer = loaded
    trainer = build_trainer(config, args, model, tokenizer, train)
    data: Any = trainer.train_dataset
    rollouts = planned_rollouts(trainer, steps)
    met = list(dict.fromkeys(i for rollout in rollouts for i in rollout))
    prompts = Prompts.of(tokenizer, [data[i]["prompt"] for i in met])
    rows = next(rollout for rollout in rollouts if met[prompts.longest] in rollout)
    shape = Architecture.of(trainer.model)
    assert args.max_completion_length is not None
    probed = probe(trainer, [data[i] for i in rows], args.max_completion_length)
    estimate = _memory(config, args, shape, prompts.longest_tokens, 1)
    memory = measured_memory(probed, trainer, estimate, libraries if args.device.type == "cpu" else 0)
    return Needs(prompts, shape, memory, derived_seconds(probed, steps, config, heldout))


def read_architecture(config: RunConfig) -> Architecture:
    """The sizes of a recipe's model from its configuration, without its weights.

    Raises:
        ValueError: If the configuration cannot be read.
    """
    from transformers import AutoConfig, AutoModelForCausalLM

    if config.model.scratch is not None:
        model = build_model(config)[0]
    else:
        assert config.model.path is not None
        source = loadable(config.model.path)
        try:
            sizes = AutoConfig.from_pretrained(source)
        except OSError as error:
            reason = str(error).strip().splitlines()[0]
            raise ValueError(f"the configuration of {config.model.path!r} cannot be read: {reason}") from error
        with torch.device("meta"):
            model = AutoModelForCausalLM.from_config(sizes)
    if config.lora is not None:
        from peft import get_peft_model

        model = get_peft_model(model, peft_config(config.lora))
    return Architecture.of(model)
