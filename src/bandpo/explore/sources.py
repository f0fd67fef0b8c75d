"""What the explorer opens: runs, studies and token logs below the given files and directories.

A path that points outside of these, by a symlink or otherwise, is not read.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from bandpo.lab.metrics import METRICS, StudyResult
from bandpo.lab.study import Run
from bandpo.report.dumps import find_logs
from bandpo.runs.run_dir import RunDirectory
from bandpo.words import first_line

MOST_FOLDERS = 20_000  # that are searched; more means a home directory given by mistake

Kind = Literal["run", "study", "tokens"]


@dataclass(frozen=True)
class Source:
    """Something that the page can show.

    Attributes:
        id: Kind and path, unique within a page.
        kind: "run" (a run directory), "study" (metrics.json) or "tokens" (token logs).
        name: Display name.
        paths: The run directory, metrics.json, or the token logs.
        root: The given path, resolved; nothing outside of it is read.
    """

    id: str
    kind: Kind
    name: str
    paths: tuple[Path, ...]
    root: Path


def within(path: Path, root: Path) -> Path:
    """`path`, resolved.

    Raises:
        ValueError: If it points outside of `root`.
    """
    found = path.resolve()
    if not found.is_relative_to(root):
        raise ValueError(f"{str(path)!r} points outside of {str(root)!r}, which was opened; it is not read")
    return found


def check_run(run: RunDirectory, root: Path) -> None:
    """Raise ValueError if the directory, or a file that the page reads in it but batches, points outside `root`."""
    for file in (run.path, run.config, run.metrics, run.alarms, run.status):
        within(file, root)


def kept_within(paths: Iterable[Path], root: Path, problems: list[str]) -> Iterator[Path]:
    """The paths within `root`; the others become problems."""
    for path in paths:
        try:
            within(path, root)
        except ValueError as error:
            problems.append(str(error))
        else:
            yield path


def find_sources(paths: Sequence[Path], runs_of_studies: bool = True) -> tuple[list[Source], list[str]]:
    """The sources below the paths, and sentences on what is not read.

    Args:
        paths: Run directories, study directories, a study's metrics.json, token logs, directories of these.
        runs_of_studies: Whether the runs in a study's directory are separate sources, besides the study.

    Raises:
        ValueError: If a path does not exist, or contains none of these.
    """
    found: dict[str, Source] = {}
    problems: list[str] = []
    for path in paths:
        if not path.exists():
            raise ValueError(
                f"{str(path)!r} does not exist; allowed: runs, studies, token logs and directories of them"
            )
        root = path.resolve()
        mine = list(_below(root, runs_of_studies, problems))
        if not mine:
            raise ValueError(
                f"{str(path)!r} contains no run (a directory with config.yaml), no study ({METRICS}) and no token log"
            )
        for source in mine:
            number, key = 1, source.id
            while key in found and found[key].paths != source.paths:
                number += 1
                key = f"{source.id}~{number}"
            found[key] = Source(key, source.kind, source.name, source.paths, source.root)
    return list(found.values()), problems


def _below(root: Path, runs_of_studies: bool, problems: list[str]) -> Iterator[Source]:
    if root.is_file():
        kind: Kind = "study" if root.suffix == ".json" else "tokens"
        name = root.parent.name if root.name == METRICS else root.name
        yield Source(f"{kind}:{name}", kind, name, (root,), root)
        return
    several = False
    for folder in _folders(root, problems):
        place = folder.relative_to(root.parent).as_posix()
        if (folder / "config.yaml").is_file():
            several = True
            yield from _run(folder, place, root, problems)
        elif (folder / METRICS).is_file():
            several = True
            if not list(kept_within([folder / METRICS], root, problems)):
                continue
            yield Source(f"study:{place}", "study", place, (folder / METRICS,), root)
            if runs_of_studies:
                for run in _runs_of(folder / METRICS, problems):
                    yield from _run(run, run.relative_to(root.parent).as_posix(), root, problems)
    if not several:
        yield from _tokens(root, root.name, root, problems)


def _folders(root: Path, problems: list[str]) -> Iterator[Path]:
    """`root` and the directories below it, in order, none within a run or a study; symlinks are not followed."""
    for count, (place, names, _) in enumerate(os.walk(root)):
        folder = Path(place)
        if count == MOST_FOLDERS:
            problems.append(f"{str(root)!r} has more than {MOST_FOLDERS:,} directories; the rest is not searched")
            return
        whole = any((folder / name).is_file() for name in ("config.yaml", METRICS))
        names[:] = [] if whole else sorted(name for name in names if not name.startswith("."))
        yield folder


def _runs_of(metrics: Path, problems: list[str]) -> Iterator[Path]:
    """The run directories of a study that still exist."""
    try:
        study = StudyResult.load(metrics)
    except ValueError as error:
        problems.append(first_line(error))
        return
    for run in study.runs:
        folder = metrics.parent / Run(run.method, run.point, run.seed).folder
        if (folder / "config.yaml").is_file():
            yield folder


def _run(folder: Path, place: str, root: Path, problems: list[str]) -> Iterator[Source]:
    run = RunDirectory(folder)
    try:
        check_run(run, root)
    except ValueError as error:
        problems.append(str(error))
        return
    yield Source(f"run:{place}", "run", place, (folder,), root)
    if run.batches.is_dir():
        yield from _tokens(run.batches, place, root, problems)


def _tokens(folder: Path, place: str, root: Path, problems: list[str]) -> Iterator[Source]:
    try:
        logs = find_logs(folder)
    except ValueError:  # none there
        return
    kept = tuple(kept_within(logs, root, problems))
    if kept:
        yield Source(f"tokens:{place}", "tokens", place, kept, root)
