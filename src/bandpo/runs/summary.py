"""The table at the end of a run."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

LABELS = {
    "greedy": "success, greedy",
    "entropy": "entropy (nats/token)",
    "length": "length (tokens)",
    "truncated": "truncated",
    "timed_out": "not graded in time",
}


def print_summary(summary: dict[str, Any], output: Path, console: Console) -> None:
    """Held-out figures before and after, with 95% intervals over prompts, where the run was evaluated."""
    before, after = summary["before"], summary["after"]
    if before and after:
        table = Table(title=f"{before['prompts']} held-out problems, {before['samples']} samples each")
        for title in ("", "before", "after"):
            table.add_column(title, justify="left" if not title else "right")
        for row in metric_rows([before, after]):
            table.add_row(*row)
        console.print(table)
    console.print(
        f"{summary['steps']} updates from {summary['rollouts']} rollouts in {summary['seconds']:.0f} s; "
        f"report: {output / 'report.html'}",
        soft_wrap=True,
    )


def metric_rows(results: Sequence[dict[str, Any]]) -> list[list[str]]:
    """A row a metric: its label, and its estimate in each result ('-' where it has none).

    The share that was not graded in time appears only where there was one.
    """
    metrics = [result["metrics"] for result in results]
    names = dict.fromkeys(name for own in metrics for name in own)
    if not any(own["timed_out"]["mean"] for own in metrics):
        del names["timed_out"]
    temperature = results[0]["temperature"]
    return [
        [label(name, temperature), *(show(own[name]) if name in own else "-" for own in metrics)] for name in names
    ]


def label(name: str, temperature: float) -> str:
    if name in LABELS:
        return LABELS[name]
    return f"{name} (temperature {temperature:g})"


def show(estimate: dict[str, float]) -> str:
    return f"{estimate['mean']:.3f} [{estimate['low']:.3f}, {estimate['high']:.3f}]"
