"""Learning curves (needs the `report` extra)."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TypeGuard

import numpy as np

from bandpo.core.rules import ClipRule
from bandpo.lab.statistics import mean_interval
from bandpo.report import drawing

# Title, metric, whether it is a share, whether its axis is logarithmic. No divergence, because each rule has its own.
CURVES: tuple[tuple[str, str, bool, bool], ...] = (
    ("Mean reward of the rollout", "reward", False, False),
    ("Entropy (nats per token)", "entropy", False, False),
    ("Clipped: A > 0, above upper", "clip_fraction_high", True, False),
    ("Clipped: A < 0, below lower", "clip_fraction_low", True, False),
    ("Largest ratio", "ratio_max", False, True),
    ("Smallest ratio", "ratio_min", False, True),
)
CROWDED = 6  # methods; the bands of more would hide each other

Points = list[tuple[float, float]]


@dataclass(frozen=True)
class RunRecord:
    """What a report needs of one run.

    Attributes:
        label: Its method; runs with the same label are seeds of one curve.
        seed: Its seed.
        series: Metric -> [(update, value)].
        path: Its run directory, None if only its numbers are available.
        rule: Its clip rule; None if it was trained with TRL's own loss, or only its numbers are available.
        settings: Its configuration as text, without the seed.
    """

    label: str
    seed: int
    series: dict[str, Points]
    path: Path | None = None
    rule: ClipRule | None = None
    settings: str = ""


def finite(value: float | None) -> TypeGuard[float]:
    """Whether there is a number to draw."""
    return isinstance(value, (int, float)) and math.isfinite(value)


def curves_pictures(points: Sequence[tuple[str, Sequence[RunRecord]]], prefix: str = "") -> list[drawing.Picture]:
    """Learning curves at each point of a sweep (one without a name, if there is no sweep)."""
    curves = CURVES if len(points) == 1 else CURVES[:2]
    runs_of = [Counter(record.label for record in records) for _, records in points]
    crowded = any(len(runs) > CROWDED for runs in runs_of)
    panels, shown, texts = [], [], []
    for point, records in points:
        for title, name, percent, log in curves:
            lines = _lines(records, name, log)
            if not lines:
                continue
            shown.append((title, lines))
            if name in ("reward", "entropy"):
                texts += [_in_words(f"{point} {line.label} {name}", line) for line in lines]
            panels.append(
                drawing.Panel(
                    f"{title}: {point}" if point else title,
                    "update",
                    [replace(line, low=None, high=None) for line in lines] if crowded else lines,
                    percent=percent,
                    log_y=log and _decades(lines) > 1,
                    y_limits=(None if log else 0, None),
                )
            )
    if not panels:
        return []
    several = any(count > 1 for runs in runs_of for count in runs.values())
    bands = (
        " Lines: mean over seeds; bands: 95% intervals over seeds (Student's t), cut off far from all lines."
        if several
        else ""
    )
    if crowded and several:
        bands = f" Lines: mean over seeds, without intervals, because there are more than {CROWDED} methods."
    pictures = [
        drawing.Picture(
            f"{prefix}curves",
            "Training",
            panels,
            caption="Each point is a mean over neighboring updates if there are more than "
            f"{drawing.MOST_POINTS}.{bands}",
            alt="From the first to the last point: " + "; ".join(texts) + ".",
        )
    ]
    if crowded and len(points) == 1:
        title, lines = shown[0]
        pictures.append(_each_picture(title, lines, prefix))
    return pictures


def _in_words(name: str, line: drawing.Line) -> str:
    return f"{name} {line.y[0]:.3g} to {line.y[-1]:.3g}".strip()


def _lines(records: Sequence[RunRecord], name: str, log: bool) -> list[drawing.Line]:
    """The curve of each label that has this series."""
    lines = []
    for style, label in enumerate(dict.fromkeys(record.label for record in records)):
        runs = [record.series[name] for record in records if record.label == label and record.series[name]]
        if runs:
            lines.append(_curve(label, runs, style, log))
    return lines


def _each_picture(title: str, lines: Sequence[drawing.Line], prefix: str) -> drawing.Picture:
    """Each curve in a separate panel, with the others behind it in gray."""
    top = max(value for line in lines for value in line.high or line.y)
    panels = [
        drawing.Panel(
            line.label,
            "update",
            [
                *(replace(o, label="other methods", low=None, high=None, style=None) for o in lines if o is not line),
                replace(line, label=""),
            ],
            y_limits=(0, top),
        )
        for line in lines
    ]
    return drawing.Picture(
        f"{prefix}methods",
        f"{title}, method by method",
        panels,
        caption="Lines: mean over seeds; band: 95% interval over seeds (Student's t); gray: the other methods.",
        alt=", ".join(line.label for line in lines) + ": the same numbers as in the picture above.",
    )


def _decades(lines: Sequence[drawing.Line]) -> float:
    """How many powers of ten the curves span; a logarithmic axis over less than one has hardly any ticks."""
    values = [value for line in lines for value in line.y if value > 0]
    return math.log10(max(values) / min(values)) if values else 0.0


def _curve(label: str, runs: Sequence[Points], style: int, log: bool) -> drawing.Line:
    """The mean over runs with its interval, at the first run's updates up to where all runs got.

    Extremes of ratios are averaged as logarithms; nothing that is drawn here is negative.
    """
    curves = [drawing.averaged(points) for points in runs]
    last = min(curve[-1][0] for curve in curves)
    x = [step for step, _ in curves[0] if step <= last]
    values = np.stack([np.interp(x, [u for u, _ in curve], [v for _, v in curve]) for curve in curves], -1)
    if log:
        values = np.log(np.maximum(values, np.finfo(np.float64).tiny))
    intervals = [mean_interval(row) for row in values.tolist()]

    def drawn(side: str) -> list[float]:
        found = np.array([getattr(interval, side) for interval in intervals], np.float64)
        return (np.exp(found) if log else np.maximum(found, 0)).tolist()

    if len(runs) == 1:
        return drawing.Line(label, x, drawn("mean"), style=style)
    return drawing.Line(label, x, drawn("mean"), drawn("low"), drawn("high"), style=style)
