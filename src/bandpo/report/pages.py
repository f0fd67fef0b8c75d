"""The report of runs and studies, from what they left on disk (needs the `report` extra).

A run directory, a study's directory, or a study's metrics.json alone become one HTML page that needs nothing else,
with PNG pictures and report.md (tables for a paper) beside it.
"""

from __future__ import annotations

import json
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import yaml

from bandpo.core.rules import ClipRule
from bandpo.evaluation.result import metric_label
from bandpo.files import read_lines, write_atomic
from bandpo.lab.metrics import METRICS, logged, read_metrics
from bandpo.lab.statistics import mean_interval
from bandpo.report import figures, why
from bandpo.report.html import Block, Code, Drawing, Page, Section, Table, Text
from bandpo.report.sections import CURVES, RunRecord, curves_pictures, describe, finite, shared_sections, show
from bandpo.report.study_page import metrics_file, study_sections
from bandpo.runs.config import clip_rule_of
from bandpo.runs.run_dir import RunDirectory
from bandpo.runs.summary import metric_rows

HTML, MARKDOWN = "report.html", "report.md"


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
    studies = {path: _name(path) for path in paths if _is_study(path)}
    runs = [path for path in paths if path not in studies]
    sections: list[Section] = []
    for i, (path, name) in enumerate(studies.items()):
        own = study_sections(path, f"study{i + 1}-" if i else "")
        sections += [replace(one, title=f"{name}: {one.title}") for one in own] if len(paths) > 1 else own
    if runs:
        sections += run_sections(runs, "runs-" if studies else "")
    names = [studies.get(path) or _name(path) for path in paths]
    page = Page(
        title=names[0] if len(paths) == 1 else f"{len(paths)} runs and studies: {', '.join(names)}",
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


def _name(path: Path) -> str:
    if _is_study(path):
        return f"Study {read_metrics(metrics_file(path))['name']}"
    return path.resolve().name


def _description(path: Path) -> str:
    if _is_study(path):
        return str(read_metrics(metrics_file(path))["study"]["description"])
    return str(yaml.safe_load(RunDirectory.open(path).config.read_text(encoding="utf-8")).get("description") or "")


def read_run(path: Path) -> tuple[RunRecord, dict[str, Any]]:
    """A run directory's figures and its configuration.

    Raises:
        ValueError: If there is no run directory at `path`.
    """
    run = RunDirectory.open(path)
    config = yaml.safe_load(run.config.read_text(encoding="utf-8"))
    rows = list(read_lines(run.metrics))
    series = {
        name: [(row["step"], value) for row in rows if finite(value := logged(row, name))] for _, name, _, _ in CURVES
    }
    return RunRecord(_method_of(config), int(config.get("seed", 0)), series, run.path), config


def _method_of(config: dict[str, Any]) -> str:
    rule = clip_rule_of(config["rule"])
    if rule is not None:
        return why.name_rule(rule)
    train = config["train"]
    sequence = train.get("importance_sampling_level") == "sequence"
    return f"TRL {train.get('loss_type', 'default')}{', whole sequences' if sequence else ''}"


def run_sections(paths: Sequence[Path], prefix: str = "") -> list[Section]:
    """The sections on one run, or on several runs beside each other."""
    found = [read_run(path) for path in paths]
    configs = [config for _, config in found]
    records = _distinct_labels([record for record, _ in found], configs)
    found_rules = [rule for config in configs if (rule := clip_rule_of(config["rule"])) is not None]
    rules = {why.name_rule(rule): rule for rule in found_rules}
    labels = list(dict.fromkeys(record.label for record in records))
    sections = [Section(f"{prefix}results", "Results", _run_results(records))]
    pictures = curves_pictures([("", records)], prefix)
    if pictures:
        sections.append(Section(f"{prefix}curves", "Learning curves", [Drawing(p) for p in pictures]))
    return [*sections, *shared_sections(records, rules, labels, prefix), _how_to_repeat(paths, prefix)]


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
            [label, str(len(own)), *cells, show(mean_interval([s["seconds"] for s in own]), ".0f") if own else "-"]
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
