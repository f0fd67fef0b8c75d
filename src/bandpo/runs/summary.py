"""The table at the end of a run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from bandpo.evaluation import result as evaluation
from bandpo.evaluation.result import EvaluationResult


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


def metric_rows(results: Sequence[Mapping[str, Any]]) -> list[list[str]]:
    """`bandpo.evaluation.metric_rows` of results as summary.json holds them."""
    return evaluation.metric_rows([EvaluationResult.parse(result) for result in results])
