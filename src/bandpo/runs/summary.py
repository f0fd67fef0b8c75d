"""The results of a run: summary.json, and the final table."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from bandpo.evaluation.result import EvaluationResult, metric_rows
from bandpo.evaluation.statistics import Estimate
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
    """Print the results of a run: a table, one sentence, and commands to try next.

    The table has the held-out results before and after with 95% intervals over prompts, if the run was evaluated.
    """
    before, after = summary.before, summary.after
    if before and after:
        table = Table(
            title=f"{before.prompts} held-out problems, {before.samples} samples each",
            box=SIMPLE_HEAD,
            show_edge=False,
            pad_edge=False,
        )
        for title in ("", "before", "after"):
            table.add_column(title, justify="left" if not title else "right")
        for row in metric_rows([before, after]):
            table.add_row(*row)
        console.print(table)
    next_steps = {
        f"bandpo samples {output}": "read completions",
        f"bandpo explore {output}": "curves, tokens and rules in a browser",
        f"bandpo train {output / 'config.yaml'} {other_rule(summary.rule)}": "the same run under another rule",
    }
    width = max(map(len, next_steps))
    lines = [
        outcome(summary),
        f"report: {output / 'report.html'}",
        "next:",
        *(f"  {command:{width}}  {purpose}" for command, purpose in next_steps.items()),
    ]
    console.print("\n".join(lines), soft_wrap=True, highlight=False, markup=False)


def outcome(summary: RunSummary) -> str:
    """What was learned, in one sentence.

    A change is stated as one if the 95% intervals before and after do not overlap, which is stricter than 5%.
    """
    made = f"{summary.steps} updates ({summary.rollouts} rollouts, {summary.seconds:.0f} s)"
    before, after = summary.before, summary.after
    if before is None or after is None:
        return f"Made {made}; the recipe asks for no evaluation."
    names = [
        name for name in (f"mean@{before.samples}", "entropy") if name in before.metrics and name in after.metrics
    ]
    changes = [_change(name, before.metrics[name], after.metrics[name]) for name in names]
    return f"In {made} {' and '.join(changes)}."


def _change(name: str, before: Estimate, after: Estimate) -> str:
    if after.low > before.high or after.high < before.low:
        return f"{name} {'rose' if after.mean > before.mean else 'fell'} from {before.mean:.3f} to {after.mean:.3f}"
    return f"{name} shows no clear change ({before.mean:.3f} before, {after.mean:.3f} after)"


def other_rule(rule: Mapping[str, Any]) -> str:
    """The override that compares this rule with: a fixed clip, or Band if it is one."""
    return "rule.name=band" if rule.get("name") == "clip" else "rule.name=clip"
