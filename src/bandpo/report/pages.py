"""The report of runs and studies, from their files on disk (needs the `report` extra).

A run directory, a study's directory, or just a study's metrics.json become one self-contained HTML page, with PNG
pictures and report.md (tables for a paper) next to it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import yaml

from bandpo.core.rules import ClipRule
from bandpo.files import write_atomic
from bandpo.lab.metrics import METRICS, StudyResult
from bandpo.report.drawing import save
from bandpo.report.html import Page, Section
from bandpo.report.pictures import bounds_picture
from bandpo.report.run_page import run_sections
from bandpo.report.study_page import study_sections
from bandpo.runs.run_dir import RunDirectory

HTML, MARKDOWN = "report.html", "report.md"


def write_report(paths: Sequence[Path], output: Path | None = None) -> Path:
    """Write report.html, report.md and the pictures.

    Args:
        paths: Run directories, study directories and metrics.json files.
        output: Directory for the report; None writes it into the run or study given.

    Returns:
        The path of report.html.

    Raises:
        ValueError: If a path is none of these, if there is no path, or if there are several and `output` is None.
    """
    if not paths:
        raise ValueError("paths is empty; allowed: at least one run directory, study directory or metrics.json")
    if output is None:
        if len(paths) > 1:
            raise ValueError(f"{len(paths)} paths are given; a report on several needs --output DIR")
        output = paths[0].parent if paths[0].is_file() else paths[0]
    studies = {path: StudyResult.load(file) for path in paths if (file := _metrics_file(path)) is not None}
    runs = [path for path in paths if path not in studies]
    sections: list[Section] = []
    for i, (path, study) in enumerate(studies.items()):
        of_study = study_sections(study, path if path.is_dir() else None, f"study{i + 1}-" if i else "")
        several = f"{_study_name(study)}: " if len(paths) > 1 else ""
        sections += [replace(section, title=f"{several}{section.title}") for section in of_study]
    if runs:
        sections += run_sections(runs, "runs-" if studies else "")
    names = [_study_name(studies[path]) if path in studies else path.resolve().name for path in paths]
    page = Page(
        title=names[0] if len(paths) == 1 else f"{len(paths)} runs and studies: {', '.join(names)}",
        description=_description(paths[0], studies.get(paths[0])) if len(paths) == 1 else "",
        sections=sections,
    )
    output.mkdir(parents=True, exist_ok=True)
    for picture in page.pictures:
        save(picture, output / f"{picture.name}.png", columns=2 if len(picture.panels) < 5 else 3)
    write_atomic(output / MARKDOWN, page.markdown() + "\n")
    write_atomic(output / HTML, page.html())
    return output / HTML


def plot_bounds(rules: Mapping[str, ClipRule], path: Path) -> None:
    """Plot each rule's ratio bounds, and the probability they allow, over the old probability, as PNG or SVG."""
    picture = bounds_picture(rules)
    save(replace(picture, panels=picture.panels[:2]), path)


def _metrics_file(path: Path) -> Path | None:
    """metrics.json of a study's directory, or the file itself; None for a run."""
    file = path if path.is_file() else path / METRICS
    return file if file.is_file() else None


def _study_name(study: StudyResult) -> str:
    return f"Study {study.name}"


def _description(path: Path, study: StudyResult | None) -> str:
    if study is not None:
        return study.study.description
    return str(yaml.safe_load(RunDirectory.open(path).config.read_text(encoding="utf-8")).get("description") or "")
