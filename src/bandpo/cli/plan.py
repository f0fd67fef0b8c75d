"""The page that `bandpo train --dry-run` prints."""

from __future__ import annotations

from dataclasses import fields

import torch
from rich.console import Console
from rich.table import Table
from rich.text import Text

from bandpo.core.rules import ClipRule
from bandpo.runs.memory import Memory, show_bytes
from bandpo.runs.plan import Plan
from bandpo.runs.probe import Seconds
from bandpo.runs.steps import Steps

PROBABILITIES = (0.01, 0.1, 0.5, 0.9)
Rows = list[tuple[str, "str | Text | Table"]]


def print_plan(plan: Plan, console: Console) -> None:
    """Print the plan."""
    table = Table(box=None, show_header=False, padding=(0, 2))
    table.add_column(style="bold", no_wrap=True)
    table.add_column(overflow="fold")
    rows = [*_model(plan), *_rule(plan), *_batches(plan), *_shapes(plan)]
    if plan.needs.memory is not None:
        rows += _memory(plan.needs.memory)
    if plan.needs.seconds is not None:
        rows += _time(plan.needs.seconds)
    for row in rows:
        table.add_row(*row)
    console.print(table)
    if plan.needs.per_process is not None and len(plan.needs.per_process) > 1:
        console.print(_processes(plan))
    for obstacle in plan.obstacles:
        console.print(Text(f"not on this machine: {obstacle}", style="yellow"), soft_wrap=True)


def _model(plan: Plan) -> Rows:
    name = plan.config.model.path or "from random weights"
    rows: Rows = [("model", Text(f"{name}, {plan.config.model.dtype}, on {plan.device}"))]
    shape, prompts = plan.needs.architecture, plan.needs.prompts
    if shape is not None:
        rows.append(("", f"{shape.parameters:,} parameters, {shape.trainable:,} of them trained"))
    if plan.problems is not None:
        rows.append(("task", f"{plan.problems[0]:,} training problems, {plan.problems[1]:,} held out"))
    if prompts is None:
        return [*rows, ("longest prompt", f"unknown, assumed to be {plan.prompt_tokens} tokens")]
    rows.append(("first prompt", Text(f"{prompts.first!r} ({prompts.first_tokens} tokens)")))
    return [*rows, ("longest prompt", f"{prompts.longest_tokens} tokens")]


def _rule(plan: Plan) -> Rows:
    rule = plan.config.rule.clip_rule
    if rule is None:
        return [("rule", "TRL's own loss")]
    rows: Rows = [("rule", Text(str(rule)))]
    # A rule that needs more than log-probs has no bounds as a function of the probability.
    return rows if rule.needs else [*rows, ("", _bounds(rule))]


def _batches(plan: Plan) -> Rows:
    steps: Steps = plan.steps
    each = steps.completions // steps.prompts
    rows: Rows = [("rollout", f"{steps.prompts} prompts x {each} = {steps.completions} completions")]
    spread = f" ({plan.processes} process{'es' * (plan.processes > 1)})" if plan.needs.per_process else ""
    rows.append(
        (
            "updates",
            f"{steps.updates_per_rollout:g} per rollout{spread}, each of {steps.accumulation} micro-batches of "
            f"{steps.micro_batch} on each process",
        )
    )
    if steps.updates is not None:
        epochs = "" if steps.epochs is None else f" = {steps.epochs:.2f} epochs"
        rows.append(("", f"{steps.updates:,} in total, from {steps.rollouts:,} rollouts{epochs}"))
    return [*rows, ("ratios", plan.outlook if plan.clips else f"[red]{plan.outlook}[/red]")]


def _shapes(plan: Plan) -> Rows:
    rows, prompt, completion = plan.steps.micro_batch, plan.prompt_tokens, plan.completion_tokens
    shapes: Rows = [
        (
            "shapes",
            f"prompt ({rows}, {prompt}), completion ({rows}, {completion}), sequence ({rows}, {prompt + completion})",
        )
    ]
    shape = plan.needs.architecture
    if shape is not None:
        shapes.append(("", f"logits ({rows}, {completion}, {shape.vocabulary}), computed in tiles"))
    return shapes


def _memory(memory: Memory) -> Rows:
    kind = "measured, with the optimizer's state added" if memory.measured else "estimated"
    parts = {part.name: getattr(memory, part.name) for part in fields(memory)}
    del parts["peak"], parts["measured"]
    return [
        ("memory", f"peak {show_bytes(memory.peak)} on each process ({kind})"),
        ("", ", ".join(f"{part} {show_bytes(size)}" for part, size in parts.items() if size)),
    ]


def _time(seconds: Seconds) -> Rows:
    return [
        (
            "time",
            f"{seconds.rollout:.1f} s per rollout, {seconds.micro_batch:.2f} s per micro-batch, evaluation "
            f"{show_time(seconds.evaluation)}, warm-up {show_time(seconds.warmup)}; about {show_time(seconds.total)} "
            "in total if every completion runs to its limit",
        )
    ]


def _bounds(rule: ClipRule) -> Table:
    table = Table("p", *(f"{p:g}" for p in PROBABILITIES), box=None, padding=(0, 2))
    bounds = rule.bounds(torch.tensor(PROBABILITIES, dtype=torch.float64).log())
    for name, values in (("lower", bounds.lower), ("upper", bounds.upper)):
        table.add_row(name, *(f"{value:.4g}" for value in values.tolist()))
    return table


def _processes(plan: Plan) -> Table:
    table = Table("training processes", "updates per rollout", "peak memory of each", title="sharded (FSDP, ZeRO-3)")
    for processes, memory in (plan.needs.per_process or {}).items():
        updates = plan.steps.updates_per_rollout * plan.processes / processes
        table.add_row(str(processes), f"{updates:g}", "unknown" if memory is None else show_bytes(memory.peak))
    return table


def show_time(seconds: float) -> str:
    """Seconds, minutes or hours, whichever reads best."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    minutes = seconds / 60
    return f"{minutes:.0f} min" if minutes < 90 else f"{minutes / 60:.1f} h"
