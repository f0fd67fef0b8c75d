"""The table at the end of a run."""

from __future__ import annotations

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
    """Held-out figures before and after, with 95% intervals over prompts."""
    before, after = summary["before"], summary["after"]
    table = Table(title=f"{before['prompts']} held-out problems, {before['samples']} samples each")
    for title in ("", "before", "after"):
        table.add_column(title, justify="left" if not title else "right")
    for name in before["metrics"]:
        table.add_row(label(name, before["temperature"]), *(show(r["metrics"][name]) for r in (before, after)))
    console.print(table)
    console.print(
        f"{summary['steps']} updates from {summary['rollouts']} rollouts in {summary['seconds']:.0f} s; "
        f"report: {output / 'report.md'}",
        soft_wrap=True,
    )


def label(name: str, temperature: float) -> str:
    if name in LABELS:
        return LABELS[name]
    return f"{name} (temperature {temperature:g})"


def show(estimate: dict[str, float]) -> str:
    return f"{estimate['mean']:.3f} [{estimate['low']:.3f}, {estimate['high']:.3f}]"
