"""The report of a study, from its metrics.json; with completions and tokens if its run directories are available."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

import yaml

from bandpo.core.rules import ClipRule
from bandpo.lab.comparison import Comparison, compare
from bandpo.lab.metrics import Calibration, FinishedRun, StudyResult
from bandpo.lab.study import Run
from bandpo.lab.tables import LEGEND, Table, brackets, failures_table, point_text, study_tables
from bandpo.report.curves import CURVES, Points, RunRecord, curves_pictures, finite
from bandpo.report.drawing import Line, Panel, Picture
from bandpo.report.html import Block, Code, Drawing, Section, Text
from bandpo.report.sections import describe, shared_sections
from bandpo.runs.config import clip_rule_of
from bandpo.runs.run_dir import RunDirectory


def study_sections(study: StudyResult, directory: Path | None, prefix: str = "") -> list[Section]:
    """The sections on one study.

    Args:
        study: Its metrics.json.
        directory: The study's directory; None if only its metrics.json is available; then there are no completions
            and no tokens.
        prefix: Of the names of sections and pictures, which must be unique in a page.
    """
    comparisons = [c for c in compare(study) if any(result.seeds for result in c.results)]
    sections = [Section(f"{prefix}results", "Results", _results(study, comparisons, prefix))]
    records = {point_text(c.point): study_records(study, c.point, directory) for c in comparisons}
    curves = curves_pictures(list(records.items()), prefix)
    if curves:
        sections.append(Section(f"{prefix}curves", "Learning curves", [Drawing(picture) for picture in curves]))
    # Rules, tokens and completions are those of the first point of the sweep.
    first = next(iter(records.values()), [])
    shared = shared_sections(first, _rules(study, comparisons[:1]), list(study.study.methods), prefix)
    return [*sections, *shared, _how_to_repeat(study, prefix)]


def _results(study: StudyResult, comparisons: Sequence[Comparison], prefix: str) -> list[Block]:
    blocks: list[Block] = []
    waiting = sum(run.status == "waiting" for run in study.runs)
    if waiting:
        blocks.append(Text(f"The study is not finished: {waiting} of {len(study.runs)} runs are missing."))
    pictures = [differences_picture(comparisons, prefix)] if comparisons else []
    if len(comparisons) > 1:
        pictures.insert(0, sweep_picture(comparisons, prefix))
    drawings = [Drawing(picture) for picture in pictures if picture.panels]
    tables = [table for comparison in comparisons for table in study_tables(comparison)]
    # For a sweep the pictures show more than its many tables.
    blocks += [*drawings, *tables] if len(comparisons) > 1 else [*tables, *drawings]
    if tables:
        blocks.append(Text(LEGEND.format(reference=study.study.reference)))
    if (failures := failures_table(study)) is not None:
        blocks.append(failures)
    return blocks


def _rules(study: StudyResult, comparisons: Sequence[Comparison]) -> dict[str, ClipRule]:
    """The rule of each method, from its runs, because a matched control's setting is known only then."""
    points = [comparison.point for comparison in comparisons]
    settings = {run.method: run.rule for run in study.finished if run.point in points}
    return {
        method: rule
        for method in study.study.methods
        if method in settings and (rule := clip_rule_of(settings[method])) is not None
    }


def study_records(study: StudyResult, point: dict[str, str], directory: Path | None = None) -> list[RunRecord]:
    """The finished runs at one point of the sweep."""
    records = []
    for run in study.finished:
        if run.point == point:
            folder = None if directory is None else directory / Run(run.method, run.point, run.seed).folder
            at_hand = folder is not None and RunDirectory(folder).config.is_file()
            series = {name: _points_of(run, name) for _, name, _, _ in CURVES}
            records.append(RunRecord(run.method, run.seed, series, folder if at_hand else None))
    return records


def _points_of(run: FinishedRun, name: str) -> Points:
    part = run.rollouts if name == "reward" else run.updates
    return [(step, value) for step, value in zip(part.step, getattr(part, name), strict=False) if finite(value)]


def differences_picture(comparisons: Sequence[Comparison], prefix: str = "") -> Picture:
    """Each method's difference from the reference with its interval, one panel per point of the sweep."""
    panels, texts = [], []
    for comparison in comparisons:
        compared = [(i, r.method, r.difference) for i, r in enumerate(comparison.results) if r.difference is not None]
        if not compared:
            continue
        lines = [Line("", [-0.5, len(compared) - 0.5], [0, 0], style=None)]
        for place, (style, method, difference) in enumerate(compared):
            low, high = (None if end is None else [end] for end in (difference.low, difference.high))
            lines.append(Line("", [place], [difference.mean], low, high, style=style, bars=True))
            texts.append(f"{point_text(comparison.point)} {method} {brackets(difference, '+.3f')}".strip())
        title = point_text(comparison.point) or f"{comparison.metric}: difference to {comparison.reference}"
        panels.append(Panel(title, "", lines, ticks=[method for _, method, _ in compared]))
    reference = comparisons[0].reference if comparisons else ""
    return Picture(
        f"{prefix}differences",
        f"Difference to {reference}",
        panels,
        caption="Mean over seeds and its 95% interval, paired by seed, not corrected for their number.",
        alt="; ".join(texts),
    )


def sweep_picture(comparisons: Sequence[Comparison], prefix: str = "") -> Picture:
    """The study's metric along the last axis of the sweep, one panel per point of the others."""
    last = list(comparisons[0].point)[-1]
    groups: dict[str, list[Comparison]] = {}
    for comparison in comparisons:
        others = {axis: label for axis, label in comparison.point.items() if axis != last}
        groups.setdefault(point_text(others), []).append(comparison)
    panels = []
    for title, members in groups.items():
        lines = []
        for style, method in enumerate(result.method for result in members[0].results):
            finals = [next(r.final for r in c.results if r.method == method) for c in members]
            lines.append(
                Line(
                    method,
                    range(len(members)),
                    [math.nan if f is None else f.mean for f in finals],
                    [math.nan if f is None or f.low is None else f.low for f in finals],
                    [math.nan if f is None or f.high is None else f.high for f in finals],
                    style=style,
                    bars=True,
                )
            )
        panels.append(Panel(title or comparisons[0].metric, last, lines, ticks=[c.point[last] for c in members]))
    return Picture(
        f"{prefix}sweep",
        f"{comparisons[0].metric} over the sweep",
        panels,
        caption="Mean over seeds with 95% intervals over seeds.",
        alt="; ".join(
            f"{point_text(c.point)}: " + ", ".join(f"{r.method} {brackets(r.final)}" for r in c.results)
            for c in comparisons
        ),
    )


def _how_to_repeat(study: StudyResult, prefix: str) -> Section:
    commands = [run.command for run in study.runs if run.command]
    commits = sorted({run.commit for run in study.finished if run.commit})
    blocks: list[Block] = [Code("bandpo compare study.yaml --output DIR")]
    environment = study.environment
    if environment is not None:  # missing until the first run has ended
        together = f" {environment.workers} runs in parallel with {environment.threads} threads each."
        several = f" Runs were made at commits {', '.join(commits)}." if len(commits) > 1 else ""
        blocks.append(Text(describe(environment) + together + several))
    if (controls := _controls_table(study.calibration)) is not None:
        blocks.append(controls)
    text = yaml.safe_dump(study.study.model_dump(mode="json"), sort_keys=False, allow_unicode=True)
    blocks += [
        Code(text, "study.yaml"),
        Code("\n".join(commands), f"The commands of the {len(commands)} runs, in the study's directory"),
    ]
    return Section(f"{prefix}repeat", "How to repeat it", blocks)


def _controls_table(calibration: dict[str, Calibration]) -> Table | None:
    rows = [
        [
            label,
            ", ".join(f"{key}={found.value:.4g}" for key in found.keys),
            found.metric,
            f"{found.target:.4g} ({found.matches})",
            f"{found.reached:.4g}",
        ]
        for label, found in calibration.items()
        if found.value is not None
    ]
    header = ["matched control", "chosen", "metric", "target", "reached"]
    return Table.of_text(header, rows, "Chosen by separate pilot runs.") if rows else None
