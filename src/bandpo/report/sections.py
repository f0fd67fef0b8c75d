"""Sections that the report of a run and the report of a study share (needs the `report` extra)."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Any, TypeGuard

import numpy as np

from bandpo.core.rules import ClipRule
from bandpo.evaluation.store import SAMPLES, read_grades
from bandpo.files import read_lines
from bandpo.lab.statistics import Interval, mean_interval
from bandpo.report import figures, why
from bandpo.report.html import Block, Drawing, Sample, Samples, Section, Table, Text, TokenRow, Tokens
from bandpo.runs.run_dir import RunDirectory, rewards_of
from bandpo.training.batches import TokenBatch, read_batches

# Title, metric, whether a share, whether its axis is logarithmic. No divergence: each rule has its own.
CURVES: tuple[tuple[str, str, bool, bool], ...] = (
    ("Mean reward of the rollout", "reward", False, False),
    ("Entropy (nats a token)", "entropy", False, False),
    ("Clipped: A > 0, above upper", "clip_high", True, False),
    ("Clipped: A < 0, below lower", "clip_low", True, False),
    ("Largest ratio", "ratio_max", False, True),
    ("Smallest ratio", "ratio_min", False, True),
)
SAMPLES_A_ROLLOUT = 8
SHOWN_TOKENS = 80  # of one completion, side by side
CROWDED = 6  # methods; bands of more hide each other


Points = list[tuple[float, float]]


@dataclass(frozen=True)
class RunRecord:
    """What a report needs of one run.

    Attributes:
        label: Its method: runs with one label are seeds of one curve.
        seed: Of the run.
        series: Metric -> [(update, value)].
        path: Its run directory, None where only the figures are at hand.
    """

    label: str
    seed: int
    series: dict[str, Points]
    path: Path | None = None


def finite(value: Any) -> TypeGuard[float]:
    return isinstance(value, (int, float)) and math.isfinite(value)


def show(interval: Interval | None, form: str = ".3f") -> str:
    """'0.512 [0.481, 0.543]', without the brackets where there is no interval, '-' where there is nothing."""
    if interval is None:
        return "-"
    if interval.low is None or interval.high is None:
        return f"{interval.mean:{form}}"
    return f"{interval.mean:{form}} [{interval.low:{form}}, {interval.high:{form}}]"


def curves_pictures(places: Sequence[tuple[str, Sequence[RunRecord]]], prefix: str = "") -> list[figures.Picture]:
    """Learning curves at each place of a sweep (one without a name, where there is none)."""
    curves = CURVES if len(places) == 1 else CURVES[:2]
    panels, told, whole = [], [], []
    crowded = any(len({record.label for record in records}) > CROWDED for _, records in places)
    for place, records in places:
        labels = list(dict.fromkeys(record.label for record in records))
        for title, name, percent, log in curves:
            lines = []
            for style, label in enumerate(labels):
                own = [record.series[name] for record in records if record.label == label and record.series[name]]
                if own:
                    lines.append(_curve(label, own, style, log))
                    if name in ("reward", "entropy"):
                        told.append(f"{place} {label} {name} {lines[-1].y[0]:.3g} to {lines[-1].y[-1]:.3g}".strip())
            if lines:
                whole.append((title, lines))
                panels.append(
                    figures.Panel(
                        f"{title}: {place}" if place else title,
                        "update",
                        [replace(line, low=None, high=None) for line in lines] if crowded else lines,
                        percent=percent,
                        log_y=log and _decades(lines) > 1,
                        y_limits=(None if log else 0, None),
                    )
                )
    if not panels:
        return []
    seeds = max(
        sum(record.label == label for record in records)
        for _, records in places
        for label in {r.label for r in records}
    )
    bands = " Lines: mean over seeds; bands: 95% intervals over seeds (Student's t)." if seeds > 1 else ""
    if crowded and seeds > 1:
        bands = f" Lines: mean over seeds, without their intervals, since there are more than {CROWDED} methods."
    pictures = [
        figures.Picture(
            f"{prefix}curves",
            "Training",
            panels,
            caption=f"Each point is a mean over neighbouring updates where there are more than {figures.MOST_POINTS}."
            + bands,
            alt="From the first to the last point: " + "; ".join(told) + ".",
        )
    ]
    if crowded and len(places) == 1:
        title, lines = whole[0]
        pictures.append(_each_picture(title, lines, prefix))
    return pictures


def _each_picture(title: str, lines: Sequence[figures.Line], prefix: str) -> figures.Picture:
    """Each curve in a panel of its own, before the others in grey."""
    top = max(value for line in lines for value in line.high or line.y)
    panels = [
        figures.Panel(
            own.label,
            "update",
            [
                *(replace(o, label="other methods", low=None, high=None, style=None) for o in lines if o is not own),
                replace(own, label=""),
            ],
            y_limits=(0, top),
        )
        for own in lines
    ]
    return figures.Picture(
        f"{prefix}methods",
        f"{title}, method by method",
        panels,
        caption="Lines: mean over seeds; band: 95% interval over seeds (Student's t); grey: the other methods.",
        alt=", ".join(line.label for line in lines) + ": the same figures as in the picture above.",
    )


def _decades(lines: Sequence[figures.Line]) -> float:
    """How many powers of ten the curves span; a logarithmic axis over less than one has hardly a tick."""
    values = [value for line in lines for value in line.y if value > 0]
    return math.log10(max(values) / min(values)) if values else 0.0


def _curve(label: str, runs: Sequence[Points], style: int, log: bool) -> figures.Line:
    """The mean over runs, at the first run's updates as far as all of them got, with its interval.

    Extremes of ratios are averaged as logarithms; nothing that is drawn here is negative.
    """
    curves = [figures.averaged(points) for points in runs]
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
        return figures.Line(label, x, drawn("mean"), style=style)
    return figures.Line(label, x, drawn("mean"), drawn("low"), drawn("high"), style=style)


def shared_sections(
    records: Sequence[RunRecord], rules: Mapping[str, ClipRule], labels: Sequence[str], prefix: str
) -> list[Section]:
    """What the rules do, to tokens that were recorded and to any; and completions.

    Args:
        records: Runs of one place; of each label, tokens and completions are those of its first seed.
        rules: Label -> rule, where it has one.
        labels: All labels in the order in which curves are drawn: a method looks the same in all pictures.
        prefix: Of the names of sections and pictures.
    """
    first = list({record.label: record for record in reversed(records)}.values())[::-1]
    batches = {
        record.label: found
        for record in first
        if record.path and (found := read_batches(RunDirectory(record.path).batches))
    }
    compared = why.with_rivals(rules)
    styles = {label: i for i, label in enumerate(dict.fromkeys([*labels, *compared]))}
    sections = []
    if batches:
        blocks = _why_blocks(batches, compared, styles, prefix)
        sections.append(Section(f"{prefix}tokens", "Which tokens, and why", blocks))
    points = _points_of([batch for found in batches.values() for batch in found])
    pictures = [figures.bounds_picture(compared, styles), figures.regions_picture(compared, points)]
    drawings: list[Block] = [Drawing(replace(p, name=f"{prefix}{p.name}")) for p in pictures]
    sections.append(Section(f"{prefix}rules", "The rules", drawings))
    samples = [block for record in first for block in sample_blocks(record, count=max(2, 12 // len(first)))]
    if samples:
        sections.append(Section(f"{prefix}samples", "Completions", samples))
    return sections


def _points_of(batches: Sequence[TokenBatch], most: int = 250) -> Points:
    """(old probability, ratio) of some recorded tokens, taken at equal distances."""
    if not batches:
        return []
    old = np.concatenate([batch.old_logps[batch.mask] for batch in batches]).astype(np.float64)
    new = np.concatenate([batch.logps[batch.mask] for batch in batches]).astype(np.float64)
    pairs = np.stack([np.exp(old), np.exp(new - old)], -1).tolist()
    return [(p, ratio) for p, ratio in _spread(pairs, most)]


def _why_blocks(
    batches: Mapping[str, Sequence[TokenBatch]], rules: Mapping[str, ClipRule], styles: Mapping[str, int], prefix: str
) -> list[Block]:
    pooled = [batch for found in batches.values() for batch in found]
    steps = sorted({batch.step for batch in pooled})
    counts = why.count_clipped(rules, pooled)
    several = len(batches) > 1
    gains = {
        label: (why.probability_gain(found), why.probability_gain(found, positive=False))
        for label, found in batches.items()
    }
    entropies = {
        label if several else f"update {batch.step}": why.entropy_by_position(batch)
        for label, found in batches.items()
        for batch in (found[-1:] if several else found)
    }
    pictures = [
        figures.clipped_picture(counts, styles),
        figures.gains_picture(gains, styles),
        figures.entropy_picture(entropies, styles),
    ]
    drawings = [Drawing(replace(p, name=f"{prefix}{p.name}")) for p in pictures]
    if not counts.tokens.any():
        return [Text("No recorded token had an advantage: the rewards of each group were all equal."), drawings[2]]
    blocks: list[Block] = [
        Text(
            f"From the tokens recorded at updates {', '.join(map(str, steps))}, each the last of its rollout "
            f"({', '.join(batches)}; one seed)."
        ),
        drawings[0],
        _clip_table(counts),
        drawings[1],
        _gain_table({label: pair[0] for label, pair in gains.items()}),
        drawings[2],
    ]
    for label, found in batches.items():
        own = f"{label}, " if several else ""
        for row in why.telling_rows(rules, found[-1], 1 if several else 3):
            blocks.append(tokens_block(rules, found[-1], row, own))
    return blocks


def _clip_table(counts: why.ClipCounts) -> Table:
    labels = why.bin_labels(counts.edges)
    shares = counts.clipped.sum(2)
    totals = counts.tokens.sum(1)
    return Table(
        ["tokens held, by old probability", *labels, "all"],
        [
            ["tokens with an advantage", *(f"{n:,}" for n in totals), f"{totals.sum():,}"],
            *(
                [name, *(f"{n:,}" for n in shares[i]), f"{shares[i].sum() / max(1, totals.sum()):.2%}"]
                for i, name in enumerate(counts.rules)
            ),
        ],
        "Both signs of the advantage together.",
    )


def _gain_table(gains: Mapping[str, why.Gains]) -> Table:
    labels = why.bin_labels(next(iter(gains.values())).edges)
    rows = [
        [label, *("-" if not n else f"{gain:+.4f} ({n:,})" for gain, n in zip(own.mean, own.tokens, strict=True))]
        for label, own in gains.items()
    ]
    return Table(
        ["gain of tokens with A > 0, by old probability", *labels],
        rows,
        "Mean of p - old p since the rollout (number of tokens), under the rule that the run was trained with.",
    )


def tokens_block(rules: Mapping[str, ClipRule], batch: TokenBatch, row: int, where: str = "") -> Tokens:
    """One completion under every rule; of a long one, the stretch on which the rules disagree most."""
    verdicts = why.side_by_side(rules, batch, row)
    disputed = np.array([0 < sum(v.clipped) < len(v.clipped) for v in verdicts], dtype=int)
    start = 0
    if len(verdicts) > SHOWN_TOKENS:
        start = int(np.convolve(disputed, np.ones(SHOWN_TOKENS, int), mode="valid").argmax())
    shown = verdicts[start : start + SHOWN_TOKENS]
    advantages = batch.advantages[row][batch.mask[row]]
    advantage = float(advantages.mean()) if len(advantages) else 0.0
    cut = f", tokens {start + 1} to {start + len(shown)} of {len(verdicts)}" if len(shown) < len(verdicts) else ""
    return Tokens(
        f"{where}update {batch.step}, completion {row + 1}, advantage {advantage:+.2f}: "
        f"the rules disagree on {disputed.sum()} of {len(verdicts)} tokens{cut}",
        list(rules),
        ["old p", "p", "ratio", "entropy"],
        [
            TokenRow(
                v.text,
                [f"{v.old_p:.3g}", f"{v.p:.3g}", f"{v.p / v.old_p:.3f}" if v.old_p else "-", f"{v.entropy:.2f}"],
                v.clipped,
            )
            for v in shown
        ],
    )


def _spread(items: Sequence[Any], most: int) -> list[Any]:
    """At most `most` of them at equal distances, the first and the last among them."""
    return [items[i] for i in np.unique(np.linspace(0, len(items) - 1, min(most, len(items))).astype(int))]


def sample_blocks(record: RunRecord, count: int) -> list[Block]:
    """Completions of `count` held-out problems before and after training, and of half as many rollouts."""
    if record.path is None:
        return []
    run = RunDirectory(record.path)
    blocks: list[Block] = []
    for when in ("before", "after"):
        samples = []
        for grade in islice(read_grades(run.evaluation(when) / SAMPLES), count):
            for completion, reward in list(zip(grade.completions, grade.rewards, strict=True))[:2]:
                facts = f"reward {reward:g}, answer {grade.problem.answer}"
                samples.append(Sample(grade.problem.question, completion.text, facts))
        if samples:
            blocks.append(Samples(f"{record.label}: held-out problems {when} training", samples))
    rows: dict[int, list[dict[str, Any]]] = {}
    for row in read_lines(run.samples):
        rows.setdefault(row["step"], []).append(row)
    for step in _spread(list(rows), max(1, count // 2)):
        samples = []
        for row in _spread(rows[step], SAMPLES_A_ROLLOUT):  # neighbours answer the same prompt
            rewards = ", ".join(f"{name} {value:g}" for name, value in rewards_of(row).items())
            facts = f"{rewards}, advantage {row['advantage']:+.2f}"
            samples.append(Sample(row["prompt"], row["completion"], facts))
        blocks.append(Samples(f"{record.label}: rollout before update {step}", samples))
    return blocks


def describe(environment: Mapping[str, Any]) -> str:
    """Commit, versions and hardware in a sentence; of a run (environment.json) or of a study (metrics.json)."""
    packages = ", ".join(f"{name} {version}" for name, version in environment["packages"].items())
    processor = " ".join(str(environment[key]) for key in ("processor", "cores") if environment.get(key)) + (
        " cores" if environment.get("cores") else ""
    )
    threads = f"CPU threads: {environment['cpu_threads']}" if "cpu_threads" in environment else ""
    hardware = ", ".join(filter(None, [*environment["gpus"], processor, threads]))
    return (
        f"Commit {environment['commit'] or 'unknown'}; Python {environment['python']}; {packages}; {hardware}; "
        f"{environment['platform']}."
    )
