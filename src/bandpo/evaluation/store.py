"""An evaluation's directory: settings.json, one line per problem in samples.jsonl (and greedy.jsonl), result.json."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from bandpo.evaluation.sampling import Completion
from bandpo.files import append_line, to_json, write_atomic, write_json
from bandpo.tasks.base import Message, Problem, Task
from bandpo.tasks.reading import absolute

SETTINGS = "settings.json"
SAMPLES = "samples.jsonl"
GREEDY = "greedy.jsonl"
RESULT = "result.json"


@dataclass(frozen=True)
class Grade:
    """A problem with its completions, and the reward and more for each of them.

    Stored are the problem's question with the messages before it, its answer and origin, but not a grader's
    details.

    Attributes:
        timed_out: Whether grading it hit a limit, so that it counts as wrong.
        finals: Its final answer in canonical form, None if there is none.
    """

    problem: Problem
    completions: list[Completion]
    rewards: list[float]
    timed_out: list[bool]
    finals: list[str | None]

    def as_row(self) -> dict[str, Any]:
        """JSON-ready: {question, answer, origin, completions: [{text, tokens, ..., reward, timed_out, final}]}."""
        graded = zip(self.completions, self.rewards, self.timed_out, self.finals, strict=True)
        return {
            **identify(self.problem),
            "completions": [
                {**asdict(c), "reward": value, "timed_out": late, "final": final} for c, value, late, final in graded
            ],
        }

    @classmethod
    def from_row(cls, row: dict[str, Any]) -> Grade:
        """The inverse of `as_row`, except for the problem's details and solution."""
        context = tuple(Message(**message) for message in row.get("context", ()))
        problem = Problem(row["question"], row["answer"], origin=row["origin"], context=context)
        items = [dict(item) for item in row["completions"]]
        rewards, timed_out, finals = ([item.pop(key) for item in items] for key in ("reward", "timed_out", "final"))
        return cls(problem, [Completion(**item) for item in items], rewards, timed_out, finals)


def identify(problem: Problem) -> dict[str, Any]:
    """What identifies a problem, JSON-ready; `context` only if there is one."""
    context = {"context": [message._asdict() for message in problem.context]} if problem.context else {}
    return {"question": problem.question, **context, "answer": problem.answer, "origin": problem.origin}


def claim(directory: Path, settings: dict[str, Any], task: Task) -> None:
    """Make `directory` an evaluation with these settings, or check that it already is one.

    Stored task settings and model paths are read with today's code: older ones may have relative paths.

    Args:
        task: The task that `settings["task"]` describes.

    Raises:
        ValueError: If it contains something else, or an evaluation with other settings, or settings.json cannot be
            read; nothing is changed then.
    """
    path = directory / SETTINGS
    settings = json.loads(to_json(settings))
    if path.exists():
        found = _as_today(_parse(path.read_bytes(), str(path)), task)
        different = [key for key in {**settings, **found} if found.get(key) != settings.get(key)]
        if different:
            raise ValueError(
                f"{str(directory)!r} has an evaluation with another {', '.join(different)}; choose another --output"
            )
        return
    if directory.exists() and (
        not directory.is_dir() or any(p.name != f".{SETTINGS}.partial" for p in directory.iterdir())
    ):
        raise ValueError(f"{str(directory)!r} already exists and is not an evaluation; choose another --output")
    directory.mkdir(parents=True, exist_ok=True)
    write_json(path, settings)


def _as_today(found: dict[str, Any], task: Task) -> dict[str, Any]:
    if isinstance(found.get("model"), str):
        found = {**found, "model": absolute(found["model"])}
    with suppress(ValueError):
        found = {**found, "task": type(task).model_validate(found.get("task")).model_dump(mode="json")}
    return found


def append(log: Path, grades: list[Grade]) -> None:
    for grade in grades:
        append_line(log, grade.as_row())


def restore(log: Path, problems: list[Problem], chunk: int) -> list[Grade]:
    """Grades of the complete chunks, with the given problems instead of the stored ones.

    The rows of a chunk that a crash cut off are removed from the file, so that appending is safe.

    Raises:
        ValueError: If a line is damaged, or belongs to another problem; the file is left as it is.
    """
    if not log.exists():
        return []
    data = log.read_bytes()
    whole = data[: data.rfind(b"\n") + 1]
    lines = whole.splitlines(keepends=True)
    grades = []
    for number, line in enumerate(lines, 1):
        grade = _read_row(line, f"{log}, line {number}")
        if number > len(problems) or identify(grade.problem) != identify(problems[number - 1]):
            raise ValueError(f"{log}, line {number} belongs to another problem; choose another --output")
        grades.append(replace(grade, problem=problems[number - 1]))
    if len(grades) < len(problems):
        grades = grades[: len(grades) - len(grades) % chunk]
    kept = b"".join(lines[: len(grades)])
    if kept != data:
        write_atomic(log, kept.decode("utf-8"))
    return grades


def read_grades(log: Path) -> Iterator[Grade]:
    """The grades of samples.jsonl or greedy.jsonl, one problem at a time; an unfinished last line is skipped.

    Raises:
        ValueError: If a line is damaged.
    """
    if not log.exists():
        return
    with log.open("rb") as stream:
        for number, line in enumerate(stream, 1):
            if line.endswith(b"\n"):
                yield _read_row(line, f"{log}, line {number}")


def _read_row(line: bytes, where: str) -> Grade:
    row = _parse(line, where)
    try:
        return Grade.from_row(row)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise ValueError(f"{where} is not a graded problem ({type(error).__name__}: {error})") from error


def _parse(data: bytes, where: str) -> dict[str, Any]:
    try:
        found = json.loads(data.decode("utf-8"))
    except ValueError as error:
        raise ValueError(f"{where} is damaged: {error}") from error
    if not isinstance(found, dict):
        raise ValueError(f"{where} is damaged: it contains a {type(found).__name__}, not an object")
    return found
