"""A simulation as tables and as a picture."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import fields
from itertools import pairwise
from statistics import fmean
from typing import Any

from bandpo.core.control import HELD
from bandpo.lab.simulation import EDGES, Ledger, Series, SimulationResult, agreements, ledger_totals
from bandpo.lab.statistics import Interval
from bandpo.lab.tables import Cell, Column, Table
from bandpo.report.drawing import Line, Panel, Picture
from bandpo.report.why import bin_labels

# Series of `RuleRun` -> heading in the table, title of the panel.
SERIES = {
    "success": ("success", "Success"),
    "entropy_deciding": ("H deciding", "Entropy of deciding tokens"),
    "entropy_neutral": ("H neutral", "Entropy of neutral tokens"),
    "spread": ("H right", "Entropy within the right answers"),
    "divergence": ("KL", "KL(sampler || policy) after a rollout"),
}
CLIPPED = {"clip_fraction_low": "clipped below", "clip_fraction_high": "above"}
LEDGER_NOTE = (
    "nats per token, summed over the run; let in: tokens that kept their gradient, with A > 0 (high) and A < 0 "
    "(low); kept out: what clipped tokens would have added; predicted = let in, to first order"
)


def simulation_tables(result: SimulationResult) -> list[Table]:
    """The results, the entropy ledger, and expected versus observed numbers if the simulation expects any."""
    shown = [name for name in SERIES if any(getattr(run, name) for run in result.runs.values())]
    columns = [Column("rule"), *(Column(SERIES[name][0]) for name in shown)]
    columns += [Column(title, form=".2%") for title in CLIPPED.values()]
    rows = []
    for label, run in result.runs.items():
        ends = [_end(getattr(run, name)) for name in shown]
        means = [sum(getattr(run, name).mean) / len(run.ledger.realized) for name in CLIPPED]
        rows.append([label, *ends, *means])
    tables = [Table(columns, rows, f"{result.name}: after {result.settings.rollouts} rollouts")]
    names = [field.name for field in fields(Ledger)]
    order = [*names[:-1], "predicted", "realized"]
    ledger = [Column("rule"), *(Column(name.replace("_", " "), form="+.3f") for name in order)]
    totals = {label: ledger_totals(run) for label, run in result.runs.items()}
    rows = [[label, *(total[name] for name in order)] for label, total in totals.items()]
    tables += [Table(ledger, rows, "Entropy ledger", LEDGER_NOTE), *_ledger_by_kind(result), *_ledger_by_bin(result)]
    tables += [_controllers(result)] if any(run.control for run in result.runs.values()) else []
    return [*tables, *([_agreement(result)] if result.settings.expected else [])]


def _ledger_by_kind(result: SimulationResult) -> list[Table]:
    """Deciding next to neutral tokens, if there are both."""
    kinds = ("deciding", "neutral")
    if not all(getattr(run, f"ledger_{kind}") for run in result.runs.values() for kind in kinds):
        return []
    names = {"predicted": "let in", "kept_out_high": "out high", "kept_out_low": "out low", "realized": "realized"}
    columns = [
        Column("rule"),
        *(Column(f"{kind[0].upper()}: {x}", form="+.3f") for kind in kinds for x in names.values()),
    ]
    rows: list[list[Cell]] = []
    for label, run in result.runs.items():
        totals = [ledger_totals(run, f"ledger_{kind}") for kind in kinds]
        rows.append([label, *(total[name] for total in totals for name in names)])
    note = "D: nats per deciding token, N: per neutral token; let in: high and low together; out: kept out"
    return [Table(columns, rows, "Entropy ledger by kind of token", note)]


def _ledger_by_bin(result: SimulationResult) -> list[Table]:
    """Let in and kept out, by the tokens' old probability."""
    rows: list[list[Cell]] = []
    for label, run in result.runs.items():
        if (ledger := run.ledger_by_probability) is None:
            return []
        for title in ("let_in", "kept_out"):
            both = zip(*ledger[f"{title}_high"], *ledger[f"{title}_low"], strict=True)
            rows.append([f"{label}: {title.replace('_', ' ')}", *map(sum, both)])
    bins = zip(bin_labels(EDGES), EDGES[1:], strict=True)
    columns = [Column("rule"), *(Column(name, f"<{end:g}" if end < 1 else "to 1", "+.3f") for name, end in bins)]
    return [Table(columns, rows, "Entropy ledger by old probability", "the same nats, high and low together")]


def _end(series: Series | None) -> Interval | None:
    if series is None:
        return None
    mean, half = series.mean[-1], 1.96 * series.error[-1]
    return Interval(mean, mean - half, mean + half)


def _controllers(result: SimulationResult) -> Table:
    """How each controller reached and held its target, from one change of the settings to the next."""
    columns = [Column("rule"), Column("rollouts"), Column("target", form=".3g"), Column("reached after", form="d"),
               Column("then within", form=".1%"), Column("mean of last 10", form=".3g"), Column("number", form=".3g"),
               ]  # fmt: skip
    ends = [*sorted(result.settings.changes), result.settings.rollouts]
    rows: list[list[Any]] = []
    runs = {label: run.control for label, run in result.runs.items() if run.control is not None}
    for label, run in runs.items():
        for start, end in pairwise([0, *ends]):
            errors, target = run.errors(start, end), run.target[start]
            reached = next((i for i, error in enumerate(errors) if abs(error) <= HELD), None)
            worst = None if reached is None else max(map(abs, errors[reached:]))
            last = target * (1 + fmean(errors[-10:]))
            rows.append([label, f"{start + 1} to {end}", target, reached, worst, last, run.value[end - 1]])
    notes = [
        f"reached after: rollouts until the measured value is within {HELD:.0%} of the target; then within: the "
        "largest distance from there on; number: the floor or radius at the end",
        *(f"{label}: {run.warning}" for label, run in runs.items() if run.warning),
    ]
    return Table(columns, rows, "Controllers", "\n".join(notes))


def _agreement(result: SimulationResult) -> Table:
    """Expected and observed numbers; `z` is their difference in standard errors."""
    columns = [Column("rule"), Column("metric"), Column("place"), Column("expected"), Column("seen"),
               Column("error"), Column("z", form="+.1f"), Column("agrees")]  # fmt: skip
    cells = agreements(result)
    rows = [
        [
            c.rule,
            c.metric.replace("_", " "),
            c.place,
            c.expected,
            c.seen,
            c.error,
            c.z,
            "-" if c.z is None else _verdict(c.z),
        ]
        for c in cells
    ]
    within = sum(cell.z is not None and abs(cell.z) <= 2 for cell in cells)
    note = f"{within} of {len(cells)} within 2 standard errors, which include both runs' sampling and the rounding"
    return Table(columns, rows, "Expected and observed", note)


def _verdict(z: float) -> str:
    return "yes" if abs(z) <= 2 else "within 3" if abs(z) <= 3 else "no"


def simulation_picture(result: SimulationResult) -> Picture:
    """One panel per series over the rollouts, the clipped shares, and the ledger next to the realized change."""
    panels = []
    for name, (_, title) in SERIES.items():
        lines = [
            _line(label, series.mean, style, series, int(name == "divergence"))
            for style, (label, run) in enumerate(result.runs.items())
            if (series := getattr(run, name)) is not None
        ]
        if lines:
            panels.append(Panel(title, "rollouts", lines, y_label="" if name == "success" else "nats"))
    for name, title in CLIPPED.items():
        shares = {label: getattr(run, name).mean for label, run in result.runs.items()}
        lines = [_line(label, share, style, first=1) for style, (label, share) in enumerate(shares.items())]
        panels.append(Panel(title.replace("above", "clipped above").capitalize(), "rollouts", lines, percent=True))
    for title, of in (("Ledger: entropy moved, predicted", "predicted"), ("Entropy moved, realized", "realized")):
        lines = [_line(label, _sums(getattr(r.ledger, of)), i) for i, (label, r) in enumerate(result.runs.items())]
        panels.append(Panel(title, "rollouts", lines, y_label="nats"))
    return Picture(result.name, result.name, panels, result.settings.description)


def _line(label: str, y: Sequence[float], style: int, series: Series | None = None, first: int = 0) -> Line:
    low, high = (
        ([m + sign * 1.96 * e for m, e in zip(series.mean, series.error, strict=True)] for sign in (-1, 1))
        if series is not None
        else (None, None)
    )
    return Line(label, range(first, first + len(y)), y, low, high, style)


def _sums(values: Sequence[float]) -> list[float]:
    """Running sums, from 0."""
    sums = [0.0]
    for value in values:
        sums.append(sums[-1] + value)
    return sums
