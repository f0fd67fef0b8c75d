"""What a run will do and need, found out without training: `bandpo train RECIPE --dry-run`.

If the model can be loaded, memory and time are measured: one rollout and one micro-batch at the largest shape that
the run will meet, without an optimizer step; only the optimizer's state is added by its formula. If it cannot, or if
the run is spread over several processes, memory is estimated from the model's configuration. docs/scale.md has the
formulas.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import torch
from trl import GRPOConfig

from bandpo.models import load_model, load_tokenizer, loadable
from bandpo.runs.build import (
    build_args,
    build_model,
    build_trainer,
    missing_sampler,
    peft_config,
)
from bandpo.runs.config import RunConfig
from bandpo.runs.memory import Architecture, Memory, estimate_memory, resident_memory
from bandpo.runs.probe import Seconds, derived_seconds, measured_memory, probe
from bandpo.runs.prompts import Prompts, position_obstacle
from bandpo.runs.run_dir import RunDirectory
from bandpo.runs.steps import Steps, plan_steps, planned_rollouts
from bandpo.tasks import Problem
from bandpo.training.config import can_clip, clip_outlook
from bandpo.words import first_line

PROCESS_COUNTS = (1, 2, 4, 8, 16)
ASSUMED_PROMPT = 1024  # tokens, if the prompts cannot be read

Loaded = TypeVar("Loaded")


@dataclass(frozen=True)
class Needs:
    """What a run needs, from the model and the machine; None if unknown.

    Attributes:
        per_process: Number of processes -> memory on each of them, if the run may be distributed.
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
        clips: Whether a ratio can ever leave 1.
        outlook: The same as a sentence, with the updates per rollout.
        problems: Number of training and held-out problems; None if they cannot be read.
        obstacles: Why the run cannot start on this machine.
    """

    config: RunConfig
    steps: Steps
    clips: bool
    outlook: str
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


def make_plan(config: RunConfig, say: Callable[[str], None] = lambda text: None) -> Plan:
    """Load what a run would load, probe it, and leave nothing behind.

    Args:
        say: Called with a description before each step that takes time.

    Raises:
        ValueError: For settings that no machine could run. Whatever only this machine lacks (a hub that cannot be
            reached) becomes an obstacle in the plan instead.
    """
    libraries = resident_memory()
    obstacles: list[str] = []
    say(f"reading the problems of {config.task.label}")
    problems = _attempt(config.problems, obstacles)
    train, heldout = problems or ([], [])
    with tempfile.TemporaryDirectory(prefix="bandpo-plan-") as folder:  # the trainer creates its directory
        args = build_args(config, config.train, RunDirectory(Path(folder)))
        assert args.max_completion_length is not None
        steps = plan_steps(args, len(train) or None)
        if (missing := missing_sampler(args)) is not None:
            obstacles.append(missing)
        tested = [*train, *(heldout if config.eval is not None else ())]
        loaded, fits = None, True
        measured = not args.use_vllm and args.world_size == 1
        if measured:
            say(f"loading {config.model.path or 'the model'}")
            loaded = _attempt(lambda: _load(config, Path(folder)), obstacles)
        if loaded is not None and train:
            model, tokenizer = loaded
            fits = position_obstacle(config, model.config, tokenizer, tested, args.max_completion_length) is None
        if loaded is None or not fits:  # a model may fail beyond its positions
            say("estimating from the model's configuration")
            needs = _estimated(config, args, steps, train, tested, obstacles, again=measured)
        elif train:
            say(f"measuring a rollout of {steps.completions} completions and two micro-batches")
            needs = _measured(config, args, steps, loaded, train, len(heldout), libraries)
        else:
            needs = Needs()
    return Plan(
        config=config,
        steps=steps,
        clips=can_clip(args),
        outlook=clip_outlook(args),
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
    for part in loaded:  # reloaded as in a run, so that a reference model can be loaded too
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
    config: RunConfig,
    args: GRPOConfig,
    steps: Steps,
    train: list[Problem],
    tested: list[Problem],
    obstacles: list[str],
    again: bool,
) -> Needs:
    """Estimate from just the model's configuration and tokenizer.

    Args:
        tested: All problems whose prompts must fit.
        again: Loading the model was already tried: the hub is not accessed again, and obstacles are known.
    """
    known: list[str] = []
    sizes = _attempt(lambda: read_sizes(config, again), known)
    shape = None if sizes is None else _attempt(lambda: read_architecture(config, sizes), known)
    tokenizer = _attempt(lambda: _tokenizer(config, again), known)
    obstacles += [] if again else known
    prompts = None
    assert args.max_completion_length is not None
    if tokenizer is None:
        obstacles.append("without the tokenizer it is unknown whether the prompts fit, or need a chat template")
    elif train:
        texts = _attempt(lambda: [config.task.prompt(p, tokenizer) for p in train], obstacles)
        prompts = None if texts is None else Prompts.of(tokenizer, texts)
        if prompts is not None and sizes is not None:
            found = position_obstacle(config, sizes, tokenizer, tested, args.max_completion_length)
            obstacles += [] if found is None else [found]
    fits = [n for n in PROCESS_COUNTS if steps.completions % (steps.micro_batch * n) == 0]
    tokens = _prompt_tokens(prompts)
    per_process = {
        n: None if shape is None else _memory(config, args, shape, tokens, n)
        for n in sorted({*fits, args.world_size})
    }
    return Needs(prompts, shape, per_process[args.world_size], None, per_process)


def _tokenizer(config: RunConfig, cached: bool) -> Any:
    return build_model(config)[1] if config.model.path is None else load_tokenizer(config.model.path, cached)


def _measured(
    config: RunConfig,
    args: GRPOConfig,
    steps: Steps,
    loaded: tuple[Any, Any],
    train: list[Problem],
    heldout: int,
    libraries: int,
) -> Needs:
    """Measure with a probe of the loaded model on the rollout with the longest prompt."""
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


def read_sizes(config: RunConfig, cached: bool = False) -> Any:
    """The configuration of a recipe's model, without its weights.

    Args:
        cached: Do not access the hub.

    Raises:
        ValueError: If it cannot be read.
    """
    from transformers import AutoConfig

    if config.model.path is None:
        return build_model(config)[0].config
    source = loadable(config.model.path)
    try:
        return AutoConfig.from_pretrained(source, local_files_only=cached)
    except OSError as error:
        raise ValueError(f"the configuration of {config.model.path!r} cannot be read: {first_line(error)}") from error


def read_architecture(config: RunConfig, sizes: Any) -> Architecture:
    """The sizes of a recipe's model, adapters included, from its configuration."""
    from transformers import AutoModelForCausalLM

    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(sizes)
    if config.lora is not None:
        from peft import get_peft_model

        model = get_peft_model(model, peft_config(config.lora))
    return Architecture.of(model)
