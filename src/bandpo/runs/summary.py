"""The results of a run: summary.json, and the final table."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from bandpo.evaluation.result import EvaluationResult, metric_rows
from bandpo.files import write_json


@dataclass(frozen=True)
class RunSummary:
    """summary.json: the results of a finished run.

    Attributes:
        steps: Updates made.
        rollouts: Rollouts made.
        seconds: Wall-clock seconds of the process that finished the run.
        stopped_by: The alarm that stopped it, or None.
        rule: The rule as in the recipe: `name` and options.
        before, after: The evaluations on the held-out problems; None if the recipe has none.
    """

    steps: int
    rollouts: int
    seconds: float
    stopped_by: str | None = None
    rule: Mapping[str, Any] = field(default_factory=dict)
    before: EvaluationResult | None = None
    after: EvaluationResult | None = None

    @classmethod
    def load(cls, path: Path) -> RunSummary:
        """Read summary.json of a run directory.

        Raises:
            ValueError: If the file is damaged, or lacks a number that every run has.
        """
        try:
            data = json.loads(path.read_text(encoding="utf-8"))
            found = {f.name: data[f.name] for f in fields(cls) if f.name in data}
            for when in ("before", "after"):
                if found.get(when) is not None:
                    found[when] = EvaluationResult.parse(found[when], when)
            return cls(**found)
        except (ValueError, TypeError) as error:
            raise ValueError(f"{str(path)!r} is not the summary of a run: {error}") from error

    def dump(self, path: Path) -> None:
        """Write summary.json."""
        write_json(path, asdict(self))


def print_summary(summary: RunSummary, output: Path, console: Console) -> None:
    """Held-out results before and after, with 95% intervals over prompts, if the run was evaluated."""
    before, after = summary.before, summary.after
    if before and after:
        table = Table(title=f"{before.prompts} held-out problems, {before.samples} samples each")
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
