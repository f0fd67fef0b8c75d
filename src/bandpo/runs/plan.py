"""What a run will do and need, found out without training: `bandpo train RECIPE --dry-run`.

Where the model can be loaded, memory and time are measured: one rollout and one micro-batch at the largest shape
that the run will meet, without an optimizer step; only the optimizer's state is added by its formula. Where it
cannot, or where a run is spread over several processes, memory is estimated from the model's configuration.
docs/scale.md states the formulas.
"""

from __future__ import annotations

import importlib.util
import math
import tempfile
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field, fields
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from rich.text import Text
from trl import GRPOConfig

from bandpo.core.rules import ClipRule
from bandpo.evaluation.sampling import encode
from bandpo.models import load_model, loadable, resolve
from bandpo.runs.config import RunConfig
from bandpo.runs.job import (
    build_args,
    build_model,
    build_trainer,
    check_train_settings,
    config_class,
    peft_config,
)
from bandpo.runs.memory import (
    ADAM_STATES,
    Architecture,
    Memory,
    estimate_memory,
    peak_memory,
    reset_peak_memory,
    resident_memory,
    show_bytes,
)
from bandpo.runs.run_dir import RunDirectory
from bandpo.tasks import Problem
from bandpo.tasks.base import Prompt
from bandpo.training.durable import DurableGRPOTrainer
from bandpo.training.trainer import can_clip

PROBABILITIES = (0.01, 0.1, 0.5, 0.9)
PROCESS_COUNTS = (1, 2, 4, 8, 16)
ASSUMED_PROMPT = 1024  # tokens, where the prompts cannot be read


@dataclass(frozen=True)
class Steps:
    """How many there will be of everything.

    Attributes:
        prompts, completions: A rollout, over all processes.
        micro_batches: Forward-backward passes a rollout, on each process.
        updates_per_rollout: Optimizer steps between one rollout and the next.
    """

    prompts: int
    completions: int
    micro_batch: int
    micro_batches: int
    accumulation: int
    updates_per_rollout: float
    updates: int | None
    rollouts: int | None
    epochs: float | None


@dataclass(frozen=True)
class Seconds:
    """Measured: a rollout with its old log-probs and rewards, and a micro-batch; reckoned from them: the rest."""

    rollout: float
    micro_batch: float
    evaluation: float
    warmup: float
    total: float


@dataclass
class Plan:
    """Everything that `--dry-run` prints; None where it could not be found out, and `obstacles` says why."""

    config: RunConfig
    steps: Steps
    clips: bool
    prompt_tokens: int
    completion_tokens: int
    problems: tuple[int, int] | None = None
    first_prompt: tuple[str, int] | None = None
    architecture: Architecture | None = None
    dtype: str = "float32"
    memory: Memory | None = None
    per_process: dict[int, Memory | None] = field(default_factory=dict)
    seconds: Seconds | None = None
    device: str = "cpu"
    processes: int = 1
    obstacles: list[str] = field(default_factory=list)


def make_plan(config: RunConfig) -> Plan:
    """Load what a run would load, probe it, and leave nothing behind.

    Raises:
        ValueError: For settings that no machine could run. What only this machine lacks (a hub that cannot be
            reached) is an obstacle in the plan instead.
    """
    settings = check_train_settings(config.train, config_class(config))
    libraries = resident_memory()
    obstacles: list[str] = []
    problems = _attempt(config.task.problems, obstacles)
    train, heldout = problems or ([], [])
    with tempfile.TemporaryDirectory(prefix="bandpo-plan-") as folder:  # the trainer makes its directory at once
        args = build_args(config, settings, RunDirectory(Path(folder)))
        assert args.max_completion_length is not None
        steps = plan_steps(args, len(train) or None)
        plan = Plan(
            config,
            steps,
            can_clip(args),
            ASSUMED_PROMPT,
            args.max_completion_length,
            problems=problems and (len(train), len(heldout)),
            dtype=config.model.dtype,
            device=args.device.type,
            processes=args.world_size,
            obstacles=obstacles,
        )
        if args.use_vllm and importlib.util.find_spec("vllm") is None:
            obstacles.append("train.use_vllm needs vLLM, which is not installed: pip install 'trl[vllm]'")
        if args.use_vllm or args.world_size > 1:
            _plan_without_weights(plan, args, train)
        elif (loaded := _attempt(lambda: build_model(config), obstacles)) is None:
            _plan_without_weights(plan, args, train, told=True)
        else:
            model, tokenizer = loaded
            if config.model.scratch is not None:  # loaded anew as in a run, so that a reference model can be too
                for part in loaded:
                    part.save_pretrained(f"{folder}/initial")
                model, tokenizer = load_model(f"{folder}/initial", config.model.dtype)
            if train:
                trainer = build_trainer(config, args, model, tokenizer, train)
                data: Any = trainer.train_dataset
                rollouts = _rollouts(trainer, steps)
                met = list(dict.fromkeys(i for rollout in rollouts for i in rollout))
                lengths = _describe_prompts(plan, tokenizer, [data[i]["prompt"] for i in met])
                longest = met[lengths.index(plan.prompt_tokens)]
                rows = next(rollout for rollout in rollouts if longest in rollout)
                plan.architecture = Architecture.of(trainer.model)
                _probe(plan, trainer, [data[i] for i in rows], len(heldout), libraries)
    return plan


def _attempt(load: Callable[[], Any], obstacles: list[str]) -> Any:
    try:
        return load()
    except ValueError as error:
        obstacles.append(" ".join(str(error).split()))
        return None


def plan_steps(args: GRPOConfig, problems: int | None, processes: int | None = None) -> Steps:
    """The batch arithmetic of TRL and transformers.

    Args:
        problems: Number of training problems; None if unknown, and then the length of an epoch is too.
        processes: Number of processes, instead of those of `args`.

    Raises:
        ValueError: If a rollout cannot be split over so many processes, or the data hold less than one rollout.
    """
    assert args.generation_batch_size is not None
    completions = args.generation_batch_size
    processes = processes or args.world_size
    together = args.per_device_train_batch_size * processes
    if completions % together:
        raise ValueError(
            f"generation_batch_size is {completions}, allowed is a multiple of per_device_train_batch_size "
            f"{args.per_device_train_batch_size} x {processes} processes = {together}"
        )
    assert args.num_generations is not None
    prompts = completions // args.num_generations
    micro_batches = completions // together * args.num_iterations
    accumulation = args.gradient_accumulation_steps
    an_epoch = None  # rollouts
    if problems is not None:
        an_epoch = problems // prompts
        if not an_epoch:
            raise ValueError(f"a rollout takes {prompts} prompts, but there are only {problems} training problems")
    updates = args.max_steps if args.max_steps > 0 else None
    rollouts = None if updates is None else math.ceil(updates * accumulation / micro_batches)
    if an_epoch is not None:
        updates_an_epoch = math.ceil(an_epoch * micro_batches / accumulation)  # the last one may be smaller
        if updates is None:
            updates = math.ceil(args.num_train_epochs * updates_an_epoch)
        whole, rest = divmod(updates, updates_an_epoch)
        rollouts = whole * an_epoch + math.ceil(rest * accumulation / micro_batches)
    return Steps(
        prompts=prompts,
        completions=completions,
        micro_batch=args.per_device_train_batch_size,
        micro_batches=micro_batches,
        accumulation=accumulation,
        updates_per_rollout=micro_batches / accumulation,
        updates=updates,
        rollouts=rollouts,
        epochs=None if rollouts is None or an_epoch is None else rollouts / an_epoch,
    )


def _sizes(plan: Plan, args: GRPOConfig, processes: int) -> dict[str, Any]:
    stored = getattr(torch, plan.dtype).itemsize
    return {
        "sequences": args.per_device_train_batch_size,
        "tokens": plan.prompt_tokens + plan.completion_tokens,
        "completion": plan.completion_tokens,
        "generated": 0 if args.use_vllm else plan.steps.completions // processes,
        "weight_bytes": stored,
        "compute_bytes": 2 if args.bf16 or args.fp16 else stored,
        "checkpointing": args.gradient_checkpointing,
        "reference": args.beta != 0 and plan.config.lora is None,
        "processes": processes,
    }


def _plan_without_weights(plan: Plan, args: GRPOConfig, train: list[Problem], told: bool = False) -> None:
    """The plan from the model's configuration and tokenizer alone.

    Args:
        told: That the model cannot be loaded is among the obstacles already.
    """
    from transformers import AutoTokenizer

    path = plan.config.model.path
    assert path is not None or not told
    obstacles: list[str] = []
    plan.architecture = _attempt(lambda: read_architecture(plan.config), obstacles)
    if not told:
        plan.obstacles += obstacles
    if path is not None and train:
        with suppress(OSError, ValueError):
            tokenizer = AutoTokenizer.from_pretrained(resolve(path))
            _describe_prompts(plan, tokenizer, [plan.config.task.prompt(p, tokenizer) for p in train])
    shape = plan.architecture
    fits = [n for n in PROCESS_COUNTS if plan.steps.completions % (plan.steps.micro_batch * n) == 0]
    for n in sorted({*fits, args.world_size}):
        plan.per_process[n] = None if shape is None else estimate_memory(shape, **_sizes(plan, args, n))
    plan.memory = plan.per_process[args.world_size]


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


def _describe_prompts(plan: Plan, tokenizer: Any, prompts: list[Prompt]) -> list[int]:
    """Note the first and the longest prompt; their lengths in tokens."""
    encoded = [encode(prompt, tokenizer) for prompt in prompts]
    lengths = [len(ids) for ids in encoded]
    plan.first_prompt = tokenizer.decode(encoded[0]), lengths[0]
    plan.prompt_tokens = max(lengths)
    return lengths


def _rollouts(trainer: DurableGRPOTrainer, steps: Steps) -> list[list[int]]:
    """Rows of the data set by rollout, in the run's own order; a short run meets only a part of the data."""
    stride = steps.completions * steps.micro_batches  # the sampler repeats a rollout for each micro-batch
    order = list(islice(trainer._get_train_sampler(), (steps.rollouts or 1) * stride))
    return [order[i : i + steps.completions] for i in range(0, len(order), stride)]


def _probe(plan: Plan, trainer: DurableGRPOTrainer, rows: list[dict[str, Any]], heldout: int, libraries: int) -> None:
    """One rollout of `rows`, and two micro-batches, the second on top of the first one's gradients."""
    args: Any = trainer.args
    steps, config = plan.steps, plan.config
    assert plan.architecture is not None
    # Every completion runs to the limit, and none may be masked for it: that is the largest shape.
    trainer.generation_config.min_new_tokens = plan.completion_tokens
    trainer.mask_truncated_completions = False
    args.dynamic_sampling = 0  # which draws more rollouts, but no larger ones
    trainer.current_gradient_accumulation_steps = args.gradient_accumulation_steps
    model = trainer.model
    assert model is not None
    model.train()
    loading = peak_memory()
    reset_peak_memory()
    generate, generating = trainer._generate_single_turn, [0.0]

    def timed(*arguments: Any, **options: Any) -> Any:
        begun = time.perf_counter()
        try:
            return generate(*arguments, **options)
        finally:
            generating[0] = time.perf_counter() - begun

    trainer._generate_single_turn = timed  # type: ignore[method-assign]
    started = time.perf_counter()
    batch = trainer._prepare_inputs(rows)
    rollout = time.perf_counter() - started
    rollout_peak = peak_memory()
    for _ in range(2):
        begun = time.perf_counter()
        with trainer.compute_loss_context_manager():
            loss = trainer.compute_loss(model, batch)
        trainer.accelerator.backward(loss)
        micro_batch = time.perf_counter() - begun
        if args.gradient_accumulation_steps == 1:
            model.zero_grad()
    update_peak = peak_memory()
    model.zero_grad()
    sizes = {p: p.numel() * p.element_size() for p in model.parameters()}
    gradients = sum(size for p, size in sizes.items() if p.requires_grad)
    optimizer = ADAM_STATES * gradients
    guess = estimate_memory(plan.architecture, **_sizes(plan, args, 1))
    reference = guess.reference if trainer.ref_model is not None else 0
    libraries = libraries if plan.device == "cpu" else 0
    peak = max(loading, max(rollout_peak, update_peak) + optimizer)
    weights = sum(sizes.values())
    known = libraries + weights + reference + gradients + optimizer + guess.logits
    plan.memory = Memory(
        libraries=libraries,
        weights=weights,
        reference=reference,
        gradients=gradients,
        optimizer=optimizer,
        working=max(peak - known, 0),
        logits=guess.logits,
        cache=guess.cache,
        peak=peak,
        measured=True,
    )
    assert steps.updates is not None
    assert steps.rollouts is not None
    graded = 0 if config.eval is None else heldout * (config.eval.samples + config.eval.greedy)
    evaluation = 2 * graded * generating[0] / steps.completions
    warmup = (
        config.warmup.steps * config.warmup.batch_size / steps.micro_batch * micro_batch if config.warmup else 0.0
    )
    training = steps.rollouts * rollout + steps.updates * steps.accumulation * micro_batch
    plan.seconds = Seconds(rollout, micro_batch, evaluation, warmup, training + evaluation + warmup)


def print_plan(plan: Plan, console: Console) -> None:
    """The plan on a page."""
    steps, memory, shape = plan.steps, plan.memory, plan.architecture
    tokens = plan.prompt_tokens + plan.completion_tokens
    table = Table(box=None, show_header=False, padding=(0, 2))
    table.add_column(style="bold", no_wrap=True)
    table.add_column(overflow="fold")

    name = plan.config.model.path or "from random weights"
    table.add_row("model", Text(f"{name}, {plan.dtype}, on {plan.device}"))
    if shape is not None:
        table.add_row("", f"{shape.parameters:,} weights, {shape.trainable:,} of them trained")
    if plan.problems is not None:
        table.add_row("task", f"{plan.problems[0]:,} training problems, {plan.problems[1]:,} held out")
    if plan.first_prompt is not None:
        table.add_row("first prompt", Text(f"{plan.first_prompt[0]!r} ({plan.first_prompt[1]} tokens)"))
        table.add_row("longest prompt", f"{plan.prompt_tokens} tokens")
    else:
        table.add_row("longest prompt", f"unknown, taken to be {plan.prompt_tokens} tokens")
    rule = plan.config.clip_rule()
    table.add_row("rule", Text("TRL's own loss" if rule is None else str(rule)))
    if rule is not None:
        table.add_row("", _bounds_table(rule))
    table.add_row(
        "rollout", f"{steps.prompts} prompts x {steps.completions // steps.prompts} = {steps.completions} completions"
    )
    together = f" ({plan.processes} process{'es' * (plan.processes > 1)})" if plan.per_process else ""
    table.add_row(
        "updates",
        f"{steps.updates_per_rollout:g} a rollout{together}, each of {steps.accumulation} micro-batches of "
        f"{steps.micro_batch} on each process",
    )
    if steps.updates is not None:
        epochs = "" if steps.epochs is None else f" = {steps.epochs:.2f} epochs"
        table.add_row("", f"{steps.updates:,} in all, from {steps.rollouts:,} rollouts{epochs}")
    table.add_row(
        "ratios", "can leave 1" if plan.clips else "[red]are always 1: one update a rollout, so no rule can act[/red]"
    )
    rows = steps.micro_batch
    table.add_row(
        "shapes",
        f"prompt ({rows}, {plan.prompt_tokens}), completion ({rows}, {plan.completion_tokens}), sequence "
        f"({rows}, {tokens})",
    )
    if shape is not None:
        table.add_row("", f"logits ({rows}, {plan.completion_tokens}, {shape.vocabulary}), computed in tiles")
    if memory is not None:
        kind = "measured, with the optimizer's state added" if memory.measured else "estimated"
        table.add_row("memory", f"peak {show_bytes(memory.peak)} on each process ({kind})")
        parts = {part.name: getattr(memory, part.name) for part in fields(memory)}
        del parts["peak"], parts["measured"]
        table.add_row("", ", ".join(f"{part} {show_bytes(size)}" for part, size in parts.items() if size))
    if plan.seconds is not None:
        seconds = plan.seconds
        table.add_row(
            "time",
            f"{seconds.rollout:.1f} s a rollout, {seconds.micro_batch:.2f} s a micro-batch, evaluation "
            f"{show_time(seconds.evaluation)}, warm-up {show_time(seconds.warmup)}; about {show_time(seconds.total)} "
            "in all if every completion runs to its limit",
        )
    console.print(table)
    if len(plan.per_process) > 1:
        console.print(_processes_table(plan))
    for obstacle in plan.obstacles:
        console.print(Text(f"not on this machine: {obstacle}", style="yellow"), soft_wrap=True)


def _bounds_table(rule: ClipRule) -> Table:
    table = Table("p", *(f"{p:g}" for p in PROBABILITIES), box=None, padding=(0, 2))
    bounds = rule.bounds(torch.tensor(PROBABILITIES, dtype=torch.float64).log())
    for name, values in (("lower", bounds.lower), ("upper", bounds.upper)):
        table.add_row(name, *(f"{value:.4g}" for value in values.tolist()))
    return table


def _processes_table(plan: Plan) -> Table:
    table = Table("training processes", "updates a rollout", "peak memory of each", title="sharded (FSDP, ZeRO-3)")
    for processes, memory in plan.per_process.items():
        updates = plan.steps.updates_per_rollout * plan.processes / processes
        table.add_row(str(processes), f"{updates:g}", "unknown" if memory is None else show_bytes(memory.peak))
    return table


def show_time(seconds: float) -> str:
    if seconds < 90:
        return f"{seconds:.0f} s"
    minutes = seconds / 60
    return f"{minutes:.0f} min" if minutes < 90 else f"{minutes / 60:.1f} h"
