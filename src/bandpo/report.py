"""The report of runs and studies, from what they left on disk (needs the `report` extra).

A run directory, a study's directory, or a study's metrics.json alone become one HTML page that needs nothing else,
with PNG pictures and report.md (tables for a paper) beside it.
"""

from __future__ import annotations

import json
import math
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from bandpo.evaluation.store import SAMPLES, read_grades
from bandpo.files import read_lines, write_atomic
from bandpo.lab import figures, why
from bandpo.lab.html import Block, Code, Drawing, Page, Sample, Samples, Section, Table, Text, TokenRow, Tokens
from bandpo.lab.statistics import Comparison, Interval, compare, mean_interval
from bandpo.rules import ClipRule, make_rule
from bandpo.training.batches import TokenBatch, read_batches
from bandpo.training.run_dir import RunDirectory
from bandpo.training.summary import label as metric_label
from bandpo.training.summary import metric_rows

HTML, MARKDOWN, METRICS = "report.html", "report.md", "metrics.json"
# Title, metric, whether a share, whether its axis is logarithmic. No divergence: each rule has its own.
CURVES: tuple[tuple[str, str, bool, bool], ...] = (
    ("Mean reward of the rollout", "reward", False, False),
    ("Entropy (nats a token)", "entropy", False, False),
    ("Clipped: A > 0, above upper", "clip_high", True, False),
    ("Clipped: A < 0, below lower", "clip_low", True, False),
    ("Largest ratio", "ratio_max", False, True),
    ("Smallest ratio", "ratio_min", False, True),
)
# Where metrics.jsonl has them: with a clip rule of ours, or with a loss of TRL's own.
LOGGED = {
    "clip_high": ("band/clip_fraction_high", "clip_ratio/high_mean"),
    "clip_low": ("band/clip_fraction_low", "clip_ratio/low_mean"),
    "ratio_max": ("band/ratio_max",),
    "ratio_min": ("band/ratio_min",),
}
SAMPLED_PROBLEMS, SAMPLED_ROLLOUTS, SAMPLES_A_ROLLOUT = 12, 6, 8
SHOWN_TOKENS = 80  # of one completion, side by side

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


def read_run(path: Path) -> tuple[RunRecord, dict[str, Any]]:
    """A run directory's figures and its configuration.

    Raises:
        ValueError: If there is no run directory at `path`.
    """
    run = RunDirectory.open(path)
    config = yaml.safe_load(run.config.read_text(encoding="utf-8"))
    rows = list(read_lines(run.metrics))
    series = {}
    for _, name, _, _ in CURVES:
        keys = LOGGED.get(name, (name,))
        points = [(row["step"], row[key]) for row in rows for key in keys[:1] if _finite(row.get(key))]
        if not points and len(keys) > 1:
            points = [(row["step"], row[keys[1]]) for row in rows if _finite(row.get(keys[1]))]
        series[name] = points
    return RunRecord(_method_of(config), int(config.get("seed", 0)), series, run.path), config


def _method_of(config: dict[str, Any]) -> str:
    rule = _rule_of(config)
    if rule is not None:
        return why.name_rule(rule)
    train = config.get("train") or {}
    return f"TRL {train.get('loss_type', 'default')}" + (
        " (sequence)" if train.get("importance_sampling_level") == "sequence" else ""
    )


def _rule_of(config: dict[str, Any]) -> ClipRule | None:
    """The rule of a run; None where TRL's own loss stays as it is."""
    try:
        return make_rule(**config["rule"])
    except (KeyError, ValueError):
        return None


def _finite(value: Any) -> bool:
    return isinstance(value, (int, float)) and math.isfinite(value)


def write_report(paths: Sequence[Path], output: Path | None = None) -> Path:
    """Write report.html, report.md and the pictures.

    Args:
        paths: Run directories, study directories and metrics.json files.
        output: Directory for the report; None writes it into the one run or study given.

    Returns:
        The path of report.html.

    Raises:
        ValueError: If a path is none of these, no path is given, or several are and `output` is None.
    """
    if not paths:
        raise ValueError("paths is empty, allowed is at least one run directory, study directory or metrics.json")
    if output is None:
        if len(paths) > 1:
            raise ValueError(f"{len(paths)} paths are given; a report on several needs --output DIR")
        output = paths[0].parent if paths[0].is_file() else paths[0]
    studies = [path for path in paths if _is_study(path)]
    runs = [path for path in paths if not _is_study(path)]
    sections: list[Section] = []
    for i, path in enumerate(studies):
        sections += study_sections(path, "" if not i else f"study{i + 1}-")
    if runs:
        sections += run_sections(runs, "runs-" if studies else "")
    titles = [(path.parent if path.is_file() else path).resolve().name for path in paths]
    page = Page(
        title=titles[0] if len(paths) == 1 else f"{len(paths)} runs and studies: {', '.join(titles)}",
        description=_description(paths[0]) if len(paths) == 1 else "",
        sections=sections,
    )
    output.mkdir(parents=True, exist_ok=True)
    for picture in page.pictures:
        figures.save(picture, output / f"{picture.name}.png", columns=2 if len(picture.panels) < 5 else 3)
    write_atomic(output / MARKDOWN, page.markdown() + "\n")
    write_atomic(output / HTML, page.html())
    return output / HTML


def plot_bounds(rules: Mapping[str, ClipRule], path: Path) -> None:
    """Ratio bounds, and the probability they allow, against the old probability, for each rule, into a PNG or SVG."""
    picture = figures.bounds_picture(rules)
    figures.save(replace(picture, panels=picture.panels[:2]), path)


def _is_study(path: Path) -> bool:
    return path.is_file() or (path / METRICS).is_file()


def _description(path: Path) -> str:
    if _is_study(path):
        return str(read_metrics(path)["study"].get("description", ""))
    return str(yaml.safe_load(RunDirectory.open(path).config.read_text(encoding="utf-8")).get("description") or "")


# Runs


def run_sections(paths: Sequence[Path], prefix: str = "") -> list[Section]:
    """The sections on one run, or on several runs beside each other."""
    found = [read_run(path) for path in paths]
    configs = [config for _, config in found]
    records = _distinct_labels([record for record, _ in found], configs)
    rules = {
        record.label: rule for record, config in zip(records, configs, strict=True) if (rule := _rule_of(config))
    }
    sections = [Section(f"{prefix}results", "Results", _run_results(records))]
    pictures = curves_pictures([("", records)], prefix)
    if pictures:
        sections.append(Section(f"{prefix}curves", "Learning curves", [Drawing(p) for p in pictures]))
    return [*sections, *_shared_sections(records, rules, prefix), _how_to_repeat(paths, prefix)]


def _distinct_labels(records: list[RunRecord], configs: list[dict[str, Any]]) -> list[RunRecord]:
    """Runs that differ in more than the seed get different labels: the directory's name beside the rule's."""
    kinds = [json.dumps({**config, "seed": None}, sort_keys=True) for config in configs]
    of_label: dict[str, dict[str, None]] = {}
    for record, kind in zip(records, kinds, strict=True):
        of_label.setdefault(record.label, {})[kind] = None
    named: dict[str, str] = {}
    for record, kind in zip(records, kinds, strict=True):
        assert record.path is not None
        several = len(of_label[record.label]) > 1
        named.setdefault(kind, f"{record.label}, {record.path.resolve().name}" if several else record.label)
    return [replace(record, label=named[kind]) for record, kind in zip(records, kinds, strict=True)]


def _run_results(records: Sequence[RunRecord]) -> list[Block]:
    summaries = [_summary(record.path) for record in records]
    blocks: list[Block] = []
    if len(records) == 1:
        summary = summaries[0]
        if summary is None:
            return [Text("The run has no summary: it did not finish.")]
        blocks.append(
            Text(f"{summary['steps']} updates from {summary['rollouts']} rollouts in {summary['seconds']:.0f} s.")
        )
        before, after = summary["before"], summary["after"]
        if before and after:
            blocks.append(
                Table(
                    ["held out", "before", "after"],
                    metric_rows([before, after]),
                    f"{before['prompts']} held-out problems, {before['samples']} samples each; 95% bootstrap "
                    "intervals over problems.",
                )
            )
        return blocks
    rows, names = [], dict[str, float]()
    for summary in summaries:
        if summary and summary["after"]:
            names |= dict.fromkeys(summary["after"]["metrics"], summary["after"]["temperature"])
    for label in dict.fromkeys(record.label for record in records):
        own = [s for record, s in zip(records, summaries, strict=True) if record.label == label and s]
        after = [s["after"]["metrics"] for s in own if s["after"]]
        cells = [
            show(mean_interval(values)) if (values := [m[name]["mean"] for m in after if name in m]) else "-"
            for name in names
        ]
        rows.append(
            [label, str(len(own)), *cells, show(mean_interval([s["seconds"] for s in own]), 0) if own else "-"]
        )
    blocks.append(
        Table(
            ["method", "seeds", *(metric_label(name, temperature) for name, temperature in names.items()), "seconds"],
            rows,
            "After training. Mean over seeds with 95% intervals over seeds (Student's t); one seed has none.",
        )
    )
    unfinished = [str(record.path) for record, s in zip(records, summaries, strict=True) if s is None]
    if unfinished:
        blocks.append(Text(f"Did not finish: {', '.join(unfinished)}."))
    return blocks


def _summary(path: Path | None) -> dict[str, Any] | None:
    file = None if path is None else RunDirectory(path).summary
    return None if file is None or not file.exists() else json.loads(file.read_text(encoding="utf-8"))


def show(interval: Interval | None, digits: int = 3) -> str:
    """'0.512 [0.481, 0.543]', without the brackets where there is no interval, '-' where there is nothing."""
    if interval is None:
        return "-"
    if interval.low is None or interval.high is None:
        return f"{interval.mean:.{digits}f}"
    return f"{interval.mean:.{digits}f} [{interval.low:.{digits}f}, {interval.high:.{digits}f}]"


# Studies


def read_metrics(path: Path) -> dict[str, Any]:
    """The content of a study's metrics.json.

    Raises:
        ValueError: If it is damaged or something else.
    """
    file = path if path.is_file() else path / METRICS
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{str(file)!r} is damaged: {error}") from error
    if not isinstance(found, dict) or not {"study", "runs"} <= found.keys():
        raise ValueError(f"{str(file)!r} is not the metrics.json of a study")
    return found


def study_sections(path: Path, prefix: str = "") -> list[Section]:
    """The sections on one study."""
    metrics = read_metrics(path)
    comparisons = compare(metrics)
    results: list[Block] = []
    for comparison in comparisons:
        results += [comparison_table(comparison)]
    differences = differences_picture(comparisons, prefix)
    if differences.panels:
        results.append(Drawing(differences))
    if len(comparisons) > 1:
        results.append(Drawing(sweep_picture(comparisons, prefix)))
    sections = [Section(f"{prefix}results", "Results", results)]
    records = {_point(c.point): study_records(path, metrics, c.point) for c in comparisons}
    pictures = curves_pictures(list(records.items()), prefix)
    if pictures:
        sections.append(Section(f"{prefix}curves", "Learning curves", [Drawing(p) for p in pictures]))
    first = next(iter(records.values()), [])
    rules: dict[str, ClipRule] = {}
    for record in first:
        if record.path is not None and record.label not in rules:
            rule = _rule_of(yaml.safe_load(RunDirectory(record.path).config.read_text(encoding="utf-8")))
            rules |= {} if rule is None else {record.label: rule}
    return [*sections, *_shared_sections(first, rules, prefix), _how_to_repeat_study(path, metrics, prefix)]


def _point(point: Mapping[str, str]) -> str:
    return ", ".join(f"{axis} = {label}" for axis, label in point.items())


def study_records(path: Path, metrics: dict[str, Any], point: dict[str, str]) -> list[RunRecord]:
    """The finished runs at one place of the sweep."""
    records = []
    for run in metrics["runs"]:
        if run["point"] == point and run["status"] == "finished":
            series = {
                name: [
                    (step, value)
                    for step, value in zip(run[part]["step"], run[part].get(name, []), strict=False)
                    if _finite(value)
                ]
                for _, name, _, _ in CURVES
                for part in ("rollouts" if name == "reward" else "updates",)
            }
            folder = path / str(run.get("folder", ""))
            at_hand = path.is_dir() and "folder" in run and RunDirectory(folder).config.is_file()
            records.append(RunRecord(run["method"], run["seed"], series, folder if at_hand else None))
    return records


def comparison_table(comparison: Comparison) -> Table:
    """One row a method: final figure, difference to the reference, and what it cost to get there."""
    ks = max((tuple(r.pass_at) for r in comparison.results if r.pass_at), key=len, default=())
    rows = []
    for result in comparison.results:
        target = result.target
        reached = "-"
        if target is not None:
            updates = target.medians["updates"]
            reached = f"{'never' if updates is None else f'{updates:.0f}'} ({target.reached}/{target.runs})"
        rows.append(
            [
                result.method + (f" ({result.failed} failed)" if result.failed else ""),
                str(len(result.seeds)),
                show(result.final),
                show(result.difference),
                "-" if result.p_corrected is None else f"{result.p_corrected:.3f}",
                "-" if result.improvement is None else f"{result.improvement:.2f}",
                *(show((result.pass_at or {}).get(k)) for k in ks),
                show(result.area),
                show(result.end_entropy),
                show(result.matched_entropy),
                reached,
            ]
        )
    place = f"{_point(comparison.point)}. " if comparison.point else ""
    return Table(
        [
            "method",
            "seeds",
            comparison.metric,
            f"minus {comparison.reference}",
            "p (Holm)",
            "P(better)",
            *(f"pass@{k}" for k in ks),
            "mean reward while training",
            "entropy at the end",
            "entropy at matched reward",
            "updates to target",
        ],
        rows,
        f"{place}Means over seeds with 95% intervals over seeds; differences are paired by seed, p corrected by Holm "
        f"over the methods. P(better): probability that a run ends above one of {comparison.reference}. Target: the "
        f"reward at which {comparison.reference} of the same seed ended; median, and how many runs got there.",
    )


def differences_picture(comparisons: Sequence[Comparison], prefix: str = "") -> figures.Picture:
    """Differences to the reference with their intervals, a panel a place of the sweep."""
    panels, told = [], []
    for comparison in comparisons:
        results = [r for r in comparison.results if r.difference is not None]
        lines = [figures.Line("", [-0.5, len(results) - 0.5], [0, 0], style=None)]
        for place, result in enumerate(results):
            found = result.difference
            assert found is not None
            lines.append(
                figures.Line(
                    "",
                    [place],
                    [found.mean],
                    None if found.low is None else [found.low],
                    None if found.high is None else [found.high],
                    style=place,
                    bars=True,
                )
            )
            told.append(f"{_point(comparison.point)} {result.method} {show(found)}".strip())
        if results:
            title = _point(comparison.point) or f"{comparison.metric}: difference to {comparison.reference}"
            panels.append(figures.Panel(title, "", lines, ticks=[result.method for result in results]))
    reference = comparisons[0].reference if comparisons else ""
    return figures.Picture(
        f"{prefix}differences",
        f"Difference to {reference}",
        panels,
        caption="Mean over seeds and its 95% interval, paired by seed, not corrected for their number.",
        alt="; ".join(told),
    )


def sweep_picture(comparisons: Sequence[Comparison], prefix: str = "") -> figures.Picture:
    """The final figure along the last axis of the sweep, a panel for each place on the others."""
    last = list(comparisons[0].point)[-1]
    groups: dict[str, list[Comparison]] = {}
    for comparison in comparisons:
        others = {axis: label for axis, label in comparison.point.items() if axis != last}
        groups.setdefault(_point(others), []).append(comparison)
    panels = []
    for title, members in groups.items():
        lines = []
        for style, method in enumerate(result.method for result in members[0].results):
            finals = [next(r.final for r in c.results if r.method == method) for c in members]
            lines.append(
                figures.Line(
                    method,
                    range(len(members)),
                    [math.nan if f is None else f.mean for f in finals],
                    [math.nan if f is None or f.low is None else f.low for f in finals],
                    [math.nan if f is None or f.high is None else f.high for f in finals],
                    style=style,
                    bars=True,
                )
            )
        panels.append(
            figures.Panel(title or comparisons[0].metric, last, lines, ticks=[c.point[last] for c in members])
        )
    return figures.Picture(
        f"{prefix}sweep",
        f"{comparisons[0].metric} over the sweep",
        panels,
        caption="Mean over seeds with 95% intervals over seeds.",
        alt="; ".join(
            f"{_point(c.point)}: " + ", ".join(f"{r.method} {show(r.final)}" for r in c.results) for c in comparisons
        ),
    )


# What runs and studies share


def curves_pictures(places: Sequence[tuple[str, Sequence[RunRecord]]], prefix: str = "") -> list[figures.Picture]:
    """Learning curves at each place of a sweep (one without a name, where there is none)."""
    curves = CURVES if len(places) == 1 else CURVES[:2]
    panels, told = [], []
    for place, records in places:
        labels = list(dict.fromkeys(record.label for record in records))
        for title, name, percent, log in curves:
            lines = []
            for style, label in enumerate(labels):
                own = [record.series[name] for record in records if record.label == label and record.series[name]]
                if own:
                    lines.append(_curve(label, own, style, bounded=name == "reward" or percent))
                    if name in ("reward", "entropy"):
                        told.append(f"{place} {label} {name} {lines[-1].y[0]:.3g} to {lines[-1].y[-1]:.3g}".strip())
            if lines:
                panels.append(
                    figures.Panel(
                        f"{title}: {place}" if place else title,
                        "update",
                        lines,
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
    band = " Lines: mean over seeds; bands: 95% intervals over seeds (Student's t)." if seeds > 1 else ""
    return [
        figures.Picture(
            f"{prefix}curves",
            "Training",
            panels,
            caption=f"Each point is a mean over neighbouring updates where there are more than {figures.MOST_POINTS}."
            + band,
            alt="From the first to the last point: " + "; ".join(told) + ".",
        )
    ]


def _decades(lines: Sequence[figures.Line]) -> float:
    """How many powers of ten the curves span; a logarithmic axis over less than one has hardly a tick."""
    values = [value for line in lines for value in line.y if value > 0]
    return math.log10(max(values) / min(values)) if values else 0.0


def _curve(label: str, runs: Sequence[Points], style: int, bounded: bool) -> figures.Line:
    """The mean over runs, at the first run's updates as far as all of them got, with its interval."""
    curves = [figures.averaged(points) for points in runs]
    last = min(curve[-1][0] for curve in curves)
    x = [step for step, _ in curves[0] if step <= last]
    values = np.stack([np.interp(x, [u for u, _ in curve], [v for _, v in curve]) for curve in curves], -1)
    intervals = [mean_interval(row) for row in values.tolist()]
    low, high = ([getattr(i, side) for i in intervals] for side in ("low", "high"))
    if len(runs) == 1:
        low = high = None  # type: ignore[assignment]
    elif bounded:
        low, high = np.clip(low, 0, None).tolist(), np.clip(high, 0, None).tolist()
    return figures.Line(label, x, [i.mean for i in intervals], low, high, style=style)


def _shared_sections(records: Sequence[RunRecord], rules: Mapping[str, ClipRule], prefix: str) -> list[Section]:
    batches = {
        record.label: found for record in _first_seeds(records) if record.path and (found := _batches(record.path))
    }
    compared = why.with_rivals(rules)
    sections = []
    if batches:
        sections.append(Section(f"{prefix}tokens", "Which tokens, and why", _why_blocks(batches, compared, prefix)))
    pooled = [batch for found in batches.values() for batch in found]
    pictures = [figures.bounds_picture(compared), figures.regions_picture(compared, _points_of(pooled))]
    drawings: list[Block] = [Drawing(replace(p, name=f"{prefix}{p.name}")) for p in pictures]
    sections.append(Section(f"{prefix}rules", "The rules", drawings))
    samples = [block for record in _first_seeds(records) for block in sample_blocks(record)]
    if samples:
        sections.append(Section(f"{prefix}samples", "Completions", samples))
    return sections


def _first_seeds(records: Sequence[RunRecord]) -> list[RunRecord]:
    """One run of each label."""
    return list({record.label: record for record in reversed(records)}.values())[::-1]


def _batches(path: Path) -> list[TokenBatch]:
    return read_batches(RunDirectory(path).batches)


def _points_of(batches: Sequence[TokenBatch], most: int = 250) -> Points:
    """(old probability, ratio) of some recorded tokens, taken at equal distances."""
    if not batches:
        return []
    old = np.concatenate([batch.old_logps[batch.mask] for batch in batches]).astype(np.float64)
    new = np.concatenate([batch.logps[batch.mask] for batch in batches]).astype(np.float64)
    chosen = np.unique(np.linspace(0, len(old) - 1, min(most, len(old))).astype(int))
    return list(zip(np.exp(old[chosen]).tolist(), np.exp(new - old)[chosen].tolist(), strict=True))


def _why_blocks(
    batches: Mapping[str, Sequence[TokenBatch]], rules: Mapping[str, ClipRule], prefix: str
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
    pictures = [figures.clipped_picture(counts), figures.gains_picture(gains), figures.entropy_picture(entropies)]
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
        *drawings[1:],
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


def sample_blocks(record: RunRecord) -> list[Block]:
    """Held-out completions before and after training, and completions of some rollouts."""
    if record.path is None:
        return []
    run = RunDirectory(record.path)
    blocks: list[Block] = []
    for when in ("before", "after"):
        samples = []
        for grade in islice(read_grades(run.evaluation(when) / SAMPLES), SAMPLED_PROBLEMS):
            for completion, reward in list(zip(grade.completions, grade.rewards, strict=True))[:2]:
                facts = f"reward {reward:g}, answer {grade.problem.answer}"
                samples.append(Sample(grade.problem.question, completion.text, facts))
        if samples:
            blocks.append(Samples(f"{record.label}: held-out problems {when} training", samples))
    rows: dict[int, list[dict[str, Any]]] = {}
    for row in read_lines(run.samples):
        rows.setdefault(row["step"], []).append(row)
    chosen = np.unique(np.linspace(0, len(rows) - 1, min(SAMPLED_ROLLOUTS, len(rows))).astype(int))
    for step in (list(rows)[i] for i in chosen):
        samples = []
        for row in rows[step][:SAMPLES_A_ROLLOUT]:
            known = ("step", "prompt", "completion", "advantage")
            rewards = ", ".join(
                f"{k} {v:g}" for k, v in row.items() if k not in known and isinstance(v, (int, float))
            )
            facts = f"{rewards}, advantage {row['advantage']:+.2f}"
            samples.append(Sample(row["prompt"], row["completion"], facts))
        blocks.append(Samples(f"{record.label}: rollout before update {step}", samples))
    return blocks


def _how_to_repeat(paths: Sequence[Path], prefix: str) -> Section:
    blocks: list[Block] = []
    for path in paths:
        run = RunDirectory.open(path)
        environment = json.loads(run.environment.read_text(encoding="utf-8"))
        blocks += [
            Code(shlex.join(["bandpo", *environment["command"][1:]])),
            Text(describe(environment)),
            Code(run.config.read_text(encoding="utf-8"), f"The whole configuration of {run.path.resolve().name}"),
        ]
    return Section(f"{prefix}repeat", "How to repeat it", blocks)


def describe(environment: Mapping[str, Any]) -> str:
    """Commit, versions and hardware in a sentence."""
    packages = ", ".join(f"{name} {version}" for name, version in environment["packages"].items())
    hardware = ", ".join(environment["gpus"]) or f"{environment['cpu_threads']} CPU threads"
    return (
        f"Commit {environment['commit'] or 'unknown'}; Python {environment['python']}; {packages}; {hardware}, "
        f"{environment['platform']}."
    )


def _how_to_repeat_study(path: Path, metrics: dict[str, Any], prefix: str) -> Section:
    blocks: list[Block] = []
    environment = metrics.get("environment")
    if environment:
        blocks += [Code(shlex.join(["bandpo", *environment["command"][1:]])), Text(describe(environment))]
    blocks.append(Code(yaml.safe_dump(metrics["study"], sort_keys=False, allow_unicode=True), "The whole study"))
    return Section(f"{prefix}repeat", "How to repeat it", blocks)
