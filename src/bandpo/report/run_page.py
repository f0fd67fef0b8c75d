"""The report of runs, from their run directories."""

from __future__ import annotations

import json
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import yaml
from pydantic import JsonValue

from bandpo.evaluation.result import metric_label, metric_rows
from bandpo.files import read_lines
from bandpo.lab.collect import logged, read_environment, read_summary
from bandpo.lab.statistics import mean_interval
from bandpo.lab.tables import Cell, Column, Table
from bandpo.report import why
from bandpo.report.curves import CURVES, RunRecord, curves_pictures, finite
from bandpo.report.html import Block, Code, Drawing, Section, Text
from bandpo.report.sections import describe, shared_sections
from bandpo.runs.config import clip_rule_of
from bandpo.runs.run_dir import RunDirectory
from bandpo.runs.summary import RunSummary


def read_run(path: Path) -> RunRecord:
    """What a report needs of a run.

    Raises:
        ValueError: If there is no run directory at `path`.
    """
    run = RunDirectory.open(path)
    rows = list(read_lines(run.metrics))
    series = {
        name: [(row["step"], value) for row in rows if finite(value := logged(row, name))] for _, name, _, _ in CURVES
    }
    return replace(describe_run(run), series=series)


def describe_run(run: RunDirectory) -> RunRecord:
    """A run's record without series, from its config.yaml."""
    config = yaml.safe_load(run.config.read_text(encoding="utf-8"))
    rule = clip_rule_of(config["rule"])
    return RunRecord(
        label=_trl_label(config["train"]) if rule is None else why.name_rule(rule),
        seed=int(config.get("seed", 0)),
        series={},
        path=run.path,
        rule=rule,
        settings=json.dumps({**config, "seed": None}, sort_keys=True),
    )


def _trl_label(train: Mapping[str, JsonValue]) -> str:
    sequence = train.get("importance_sampling_level") == "sequence"
    return f"TRL {train.get('loss_type', 'default')}{', whole sequences' if sequence else ''}"


def run_sections(paths: Sequence[Path], prefix: str = "") -> list[Section]:
    """The sections on one run, or on several runs side by side."""
    records = [read_run(path) for path in paths]
    rules = {why.name_rule(record.rule): record.rule for record in records if record.rule is not None}
    records = _distinct_labels(records)
    labels = list(dict.fromkeys(record.label for record in records))
    sections = [Section(f"{prefix}results", "Results", _results(records))]
    pictures = curves_pictures([("", records)], prefix)
    if pictures:
        sections.append(Section(f"{prefix}curves", "Learning curves", [Drawing(p) for p in pictures]))
    return [*sections, *shared_sections(records, rules, labels, prefix), _how_to_repeat(paths, prefix)]


def _distinct_labels(records: list[RunRecord]) -> list[RunRecord]:
    """Runs that differ in more than the seed get different labels: the rule's and the directory's name."""
    settings_of: dict[str, set[str]] = {}
    for record in records:
        settings_of.setdefault(record.label, set()).add(record.settings)
    labels: dict[str, str] = {}
    for record in records:
        assert record.path is not None
        several = len(settings_of[record.label]) > 1
        label = f"{record.label}, {record.path.resolve().name}" if several else record.label
        labels.setdefault(record.settings, label)
    return [replace(record, label=labels[record.settings]) for record in records]


def _results(records: Sequence[RunRecord]) -> list[Block]:
    summaries = [None if record.path is None else read_summary(RunDirectory(record.path)) for record in records]
    if len(records) == 1:
        return _results_of_one(records[0], summaries[0])
    blocks: list[Block] = [_results_table(records, summaries)]
    unfinished = [str(record.path) for record, summary in zip(records, summaries, strict=True) if summary is None]
    if unfinished:
        blocks.append(Text(f"Did not finish: {', '.join(unfinished)}."))
    return blocks


def _results_of_one(record: RunRecord, summary: RunSummary | None) -> list[Block]:
    if summary is None:
        assert record.path is not None
        state = RunDirectory(record.path).state()
        return [
            Text(f"The run has no summary: it did not finish, its status is {state!r}. To resume it:"),
            Code(shlex.join(["bandpo", "train", str(record.path), "--resume"])),
        ]
    text = f"{summary.steps} updates from {summary.rollouts} rollouts in {summary.seconds:.0f} s."
    before, after = summary.before, summary.after
    if before is None or after is None:
        return [Text(text)]
    notes = (
        f"{before.prompts} held-out problems, {before.samples} samples each; 95% bootstrap intervals over problems."
    )
    rows = metric_rows([before, after])
    return [Text(text), Table.of_text(["held out", "before", "after"], rows, notes)]


def _results_table(records: Sequence[RunRecord], summaries: Sequence[RunSummary | None]) -> Table:
    """One row per label, means over its seeds."""
    temperatures = {
        name: summary.after.temperature
        for summary in summaries
        if summary and summary.after
        for name in summary.after.metrics
    }
    rows: list[list[Cell]] = []
    for label in dict.fromkeys(record.label for record in records):
        finished = [s for record, s in zip(records, summaries, strict=True) if record.label == label and s]
        metrics = [summary.after.metrics for summary in finished if summary.after]
        columns = [[of_run[name].mean for of_run in metrics if name in of_run] for name in temperatures]
        columns.append([summary.seconds for summary in finished])
        rows.append([label, len(finished), *(mean_interval(values) if values else None for values in columns)])
    return Table(
        [
            Column("method"),
            Column("seeds"),
            *(Column(metric_label(name, temperature)) for name, temperature in temperatures.items()),
            Column("seconds", form=".0f"),
        ],
        rows,
        notes="After training. Mean over seeds with 95% intervals over seeds (Student's t); one seed has none.",
    )


def _how_to_repeat(paths: Sequence[Path], prefix: str) -> Section:
    blocks: list[Block] = []
    for path in paths:
        run = RunDirectory.open(path)
        command = json.loads(run.environment.read_text(encoding="utf-8"))["command"]
        blocks += [
            Code(shlex.join(["bandpo", *command[1:]])),
            Text(describe(read_environment(run))),
            Code(run.config.read_text(encoding="utf-8"), f"The whole configuration of {run.path.resolve().name}"),
        ]
    return Section(f"{prefix}repeat", "How to repeat it", blocks)
