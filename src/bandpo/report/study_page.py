"""The report of a study, from its metrics.json; completions and tokens where its run directories are at hand."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import yaml

from bandpo.core.rules import ClipRule
from bandpo.lab.metrics import METRICS, read_metrics
from bandpo.lab.statistics import Comparison, compare
from bandpo.lab.study import Run
from bandpo.report import figures
from bandpo.report.html import Block, Code, Drawing, Section, Table, Text
from bandpo.report.sections import CURVES, RunRecord, curves_pictures, describe, finite, shared_sections, show
from bandpo.runs.config import clip_rule_of
from bandpo.runs.run_dir import RunDirectory

LEGEND = (
    "Means over seeds with 95% intervals over seeds. Differences are paired by seed; p is corrected for the number "
    "of methods by Holm's method. P(better): probability that a run ends above one of {reference}. Mean reward and "
    "clipped (share of the tokens) are those of the whole training; entropy in nats a token, at the end and where "
    "the reward first was half-way between the first and the last of {reference} (same seed). Target: the reward at "
    "which {reference} of the same seed ended; medians over runs, never where half of them or more did not get there."
)


def metrics_file(path: Path) -> Path:
    """metrics.json of a study's directory, or the file itself."""
    return path if path.is_file() else path / METRICS


def study_sections(path: Path, prefix: str = "") -> list[Section]:
    """The sections on one study.

    Args:
        path: The study's directory, or its metrics.json alone: then there are no completions and no tokens.
        prefix: Of the names of sections and pictures, which must be unique in a page.
    """
    metrics = read_metrics(metrics_file(path))
    named = _metric(metrics)
    comparisons = [replace(c, metric=named) for c in compare(metrics) if any(result.seeds for result in c.results)]
    failed = [run for run in metrics["runs"] if run["status"] == "failed"]
    waiting = sum(run["status"] not in ("finished", "failed") for run in metrics["runs"])
    results: list[Block] = []
    if waiting:
        results.append(Text(f"The study is not finished: {waiting} of {len(metrics['runs'])} runs are to come."))
    pictures = [differences_picture(comparisons, prefix)] if comparisons else []
    if len(comparisons) > 1:
        pictures.insert(0, sweep_picture(comparisons, prefix))
    tables = [table for comparison in comparisons for table in (scores_table(comparison), learning_table(comparison))]
    drawings = [Drawing(picture) for picture in pictures if picture.panels]
    # Of a sweep the pictures say more than its many tables.
    results += [*drawings, *tables] if len(comparisons) > 1 else [*tables, *drawings]
    if tables:
        results.append(Text(LEGEND.format(reference=comparisons[0].reference)))
    if failed:
        rows = [[run["method"], _point(run["point"]), str(run["seed"]), str(run.get("error", ""))] for run in failed]
        results.append(Table(["failed run", "place", "seed", "why"], rows))
    sections = [Section(f"{prefix}results", "Results", results)]
    records = {_point(c.point): study_records(path, metrics, c.point) for c in comparisons}
    curves = curves_pictures(list(records.items()), prefix)
    if curves:
        sections.append(Section(f"{prefix}curves", "Learning curves", [Drawing(picture) for picture in curves]))
    # The rules are those of the first place of the sweep; so are tokens and completions.
    first = next(iter(records.values()), [])
    shared = shared_sections(first, _rules(metrics, comparisons[:1]), list(metrics["study"]["methods"]), prefix)
    return [*sections, *shared, _how_to_repeat(metrics, prefix)]


def _metric(metrics: Mapping[str, Any]) -> str:
    """The study's metric as the field writes it: mean@n with its number of samples."""
    metric = str(metrics["study"]["metric"])
    samples = {
        run["evaluation"]["after"]["samples"]
        for run in metrics["runs"]
        if run["status"] == "finished" and run["evaluation"]
    }
    return f"mean@{samples.pop()}" if metric == "mean" and len(samples) == 1 else metric


def _rules(metrics: Mapping[str, Any], places: Sequence[Comparison]) -> dict[str, ClipRule]:
    """The rule of each method, as its runs had it: a matched control's setting is known only then."""
    found = {
        run["method"]: run["rule"]
        for run in metrics["runs"]
        if run["status"] == "finished" and any(run["point"] == place.point for place in places)
    }
    return {
        method: rule
        for method in metrics["study"]["methods"]
        if method in found and (rule := clip_rule_of(found[method])) is not None
    }


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
                    if finite(value)
                ]
                for _, name, _, _ in CURVES
                for part in ("rollouts" if name == "reward" else "updates",)
            }
            folder = path / Run(run["method"], run["point"], run["seed"]).folder
            at_hand = path.is_dir() and RunDirectory(folder).config.is_file()
            records.append(RunRecord(run["method"], run["seed"], series, folder if at_hand else None))
    return records


def scores_table(comparison: Comparison) -> Table:
    """One row a method: the figure that decides, and its difference to the reference's."""
    ks = max((tuple(r.pass_at) for r in comparison.results if r.pass_at), key=len, default=())
    rows = [
        [
            result.method + (f" ({result.failed} failed)" if result.failed else ""),
            str(len(result.seeds)),
            show(result.final),
            show(result.difference, form="+.3f"),
            "-" if result.p_corrected is None else f"{result.p_corrected:.3f}",
            "-" if result.improvement is None else f"{result.improvement:.2f}",
            *(show((result.pass_at or {}).get(k)) for k in ks),
        ]
        for result in comparison.results
    ]
    return Table(
        [
            "method",
            "seeds",
            comparison.metric,
            f"minus {comparison.reference}",
            "p (Holm)",
            "P(better)",
            *(f"pass@{k}" for k in ks),
        ],
        rows,
        title=_heading("Scores", comparison),
    )


def learning_table(comparison: Comparison) -> Table:
    """One row a method: how it learnt, and what it cost to reach what the reference reached."""
    rows = []
    for result in comparison.results:
        target = result.target
        cells = ["-"] * 4
        if target is not None:
            medians = [target.medians[kind] for kind in ("updates", "tokens", "seconds")]
            cells = [f"{target.reached} of {target.runs}", *("never" if m is None else f"{m:,.0f}" for m in medians)]
        figures_ = [show(i) for i in (result.clipped, result.end_entropy, result.matched_entropy)]
        p = "-" if result.area_p_corrected is None else f"{result.area_p_corrected:.3f}"
        rows.append([result.method, show(result.area), show(result.area_difference, "+.3f"), p, *figures_, *cells])
    return Table(
        [
            "method",
            "mean reward",
            f"minus {comparison.reference}",
            "p (Holm)",
            "clipped",
            "entropy, end",
            "entropy, half-way",
            "target reached",
            "updates",
            "tokens",
            "seconds",
        ],
        rows,
        title=_heading("Learning", comparison),
    )


def _heading(title: str, comparison: Comparison) -> str:
    return f"{title}, {_point(comparison.point)}" if comparison.point else title


def differences_picture(comparisons: Sequence[Comparison], prefix: str = "") -> figures.Picture:
    """Differences to the reference with their intervals, a panel a place of the sweep."""
    panels, told = [], []
    for comparison in comparisons:
        results = [(style, r) for style, r in enumerate(comparison.results) if r.difference is not None]
        lines = [figures.Line("", [-0.5, len(results) - 0.5], [0, 0], style=None)]
        for place, (style, result) in enumerate(results):
            found = result.difference
            assert found is not None
            lines.append(
                figures.Line(
                    "",
                    [place],
                    [found.mean],
                    None if found.low is None else [found.low],
                    None if found.high is None else [found.high],
                    style=style,
                    bars=True,
                )
            )
            told.append(f"{_point(comparison.point)} {result.method} {show(found, form='+.3f')}".strip())
        if results:
            title = _point(comparison.point) or f"{comparison.metric}: difference to {comparison.reference}"
            panels.append(figures.Panel(title, "", lines, ticks=[r.method for _, r in results]))
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


def _how_to_repeat(metrics: Mapping[str, Any], prefix: str) -> Section:
    study, environment = metrics["study"], metrics["environment"]
    commands = [run["command"] for run in metrics["runs"] if "command" in run]
    commits = sorted({run["commit"] for run in metrics["runs"] if run.get("commit")})
    blocks: list[Block] = [Code("bandpo compare study.yaml --output DIR")]
    if environment:  # not yet there before the first run has ended
        together = f" {environment['workers']} runs at a time with {environment['threads']} threads each."
        several = f" Runs were made at commits {', '.join(commits)}." if len(commits) > 1 else ""
        blocks.append(Text(describe(environment) + together + several))
    matched = {place: found for place, found in metrics["calibration"].items() if "value" in found}
    if matched:
        rows = [
            [
                place,
                ", ".join(f"{key}={found['value']:.4g}" for key in found["keys"]),
                found["metric"],
                f"{found['target']:.4g} ({found['matches']})",
                f"{found['reached']:.4g}",
            ]
            for place, found in matched.items()
        ]
        blocks.append(
            Table(
                ["matched control", "chosen", "figure", "target", "reached"],
                rows,
                "Chosen by pilot runs of their own.",
            )
        )
    blocks += [
        Code(yaml.safe_dump(study, sort_keys=False, allow_unicode=True), "study.yaml"),
        Code("\n".join(commands), f"The commands of the {len(commands)} runs, in the study's directory"),
    ]
    return Section(f"{prefix}repeat", "How to repeat it", blocks)
