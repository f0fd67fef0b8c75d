"""What a run came to: summary.json, and the table at its end."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from bandpo.files import write_atomic

LABELS = {
    "greedy": "success, greedy",
    "entropy": "entropy (nats/token)",
    "length": "length (tokens)",
    "truncated": "truncated",
    "timed_out": "not graded in time",
}


@dataclass(frozen=True)
class RunSummary:
    """summary.json: what a finished run came to.

    Attributes:
        steps: Updates made.
        rollouts: Rollouts made.
        seconds: Wall-clock seconds of the process that finished the run.
        stopped_by: The alarm that stopped it, or None.
        rule: The rule as the recipe states it: `name` and options.
        before, after: The evaluation (prompts, samples, temperature, timeouts, and metrics with their intervals), or
            None if the recipe asks for none.
    """

    steps: int
    rollouts: int
    seconds: float
    stopped_by: str | None = None
    rule: Mapping[str, Any] = field(default_factory=dict)
    before: Mapping[str, Any] | None = None
    after: Mapping[str, Any] | None = None

    @classmethod
    def load(cls, path: Path) -> RunSummary:
        """Read summary.json of a run directory.

        Raises:
            ValueError: If the file is damaged, or lacks a number that every run has.
        """
        try:
            found = json.loads(path.read_text(encoding="utf-8"))
            return cls(**{f.name: found[f.name] for f in fields(cls) if f.name in found})
        except (ValueError, TypeError) as error:
            raise ValueError(f"{str(path)!r} is not the summary of a run: {error}") from error

    def dump(self, path: Path) -> None:
        """Write summary.json."""
        write_atomic(path, json.dumps(asdict(self), indent=2) + "\n")


def print_summary(summary: RunSummary, output: Path, console: Console) -> None:
    """Held-out results before and after, with 95% intervals over prompts, if the run was evaluated."""
    before, after = summary.before, summary.after
    if before and after:
        table = Table(title=f"{before['prompts']} held-out problems, {before['samples']} samples each")
        for title in ("", "before", "after"):
            table.add_column(title, justify="left" if not title else "right")
        for row in metric_rows([before, after]):
            table.add_row(*row)
        console.print(table)
    console.print(
        f"{summary.steps} updates from {summary.rollouts} rollouts in {summary.seconds:.0f} s; "
        f"report: {output / 'report.html'}",
        soft_wrap=True,
    )


def metric_rows(results: Sequence[Mapping[str, Any]]) -> list[list[str]]:
    """One row per metric: its label, and its estimate in each result ('-' if it has none).

    The fraction that was not graded in time appears only if there was one.
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
