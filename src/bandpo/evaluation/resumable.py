"""Evaluate a model on one task into a directory, so that an interrupted evaluation goes on where it was."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

from bandpo.evaluation.evaluate import EvaluationResult, Grade, grade, summarise
from bandpo.evaluation.sampling import Completion
from bandpo.files import append_line, read_lines, write_atomic
from bandpo.tasks.base import Problem, Task


def evaluate_into(
    directory: Path,
    model: Any,
    tokenizer: Any,
    task: Task,
    problems: list[Problem],
    *,
    samples: int,
    max_new_tokens: int,
    temperature: float,
    batch_size: int,
    seed: int,
    identity: dict[str, Any],
    progress: Callable[[int], None] | None = None,
) -> EvaluationResult:
    """Grade `problems` in chunks, each appended to samples.jsonl when it is done, then write result.json.

    A chunk's seed depends on its place alone, so an evaluation that was interrupted gives the same completions
    as one that was not.

    Args:
        directory: Where to write; made if missing. If it holds an evaluation with the same settings, that one
            is continued.
        identity: What besides the settings here tells evaluations apart, e.g. the model's path.

    Raises:
        ValueError: If `directory` holds an evaluation with other settings, or there is no problem.
    """
    if not problems:
        raise ValueError("problems is empty; allowed is at least one problem")
    settings = {
        **identity,
        "task": task.model_dump(mode="json"),
        "problems": len(problems),
        "samples": samples,
        "max_new_tokens": max_new_tokens,
        "temperature": temperature,
        "batch_size": batch_size,
        "seed": seed,
    }
    _claim(directory, settings)
    log = directory / "samples.jsonl"
    grades = _restore(log, problems)
    if progress is not None and grades:
        progress(len(grades) * samples)
    chunk = max(1, batch_size // samples)
    for start in range(0, len(problems), chunk):
        if start < len(grades):
            continue
        done = grade(
            model,
            tokenizer,
            task,
            problems[start : start + chunk],
            samples=samples,
            max_new_tokens=max_new_tokens,
            temperature=temperature,
            batch_size=batch_size,
            seed=seed + start,
            progress=progress,
        )
        append_line(log, {"start": start, "grades": [asdict(g) for g in done]})
        grades += done
    result = EvaluationResult(summarise(grades), len(problems), samples, temperature, grades)
    write_atomic(directory / "result.json", json.dumps({**settings, **result.as_dict()}, indent=2) + "\n")
    return result


def _claim(directory: Path, settings: dict[str, Any]) -> None:
    path = directory / "settings.json"
    if path.exists():
        found = json.loads(path.read_text(encoding="utf-8"))
        different = [key for key in settings if found.get(key) != settings[key]]
        if different:
            raise ValueError(
                f"{str(directory)!r} holds an evaluation with another {', '.join(different)}; choose another --output"
            )
        return
    if directory.exists() and any(directory.iterdir()):
        raise ValueError(f"{str(directory)!r} already exists and is not an evaluation; choose another --output")
    directory.mkdir(parents=True, exist_ok=True)
    write_atomic(path, json.dumps(settings, indent=2) + "\n")


def _restore(log: Path, problems: list[Problem]) -> list[Grade]:
    """Grades of the chunks that are complete; a line cut off by a crash is removed, so that appending is safe."""
    if not log.exists():
        return []
    text = log.read_text(encoding="utf-8")
    whole = text[: text.rfind("\n") + 1]
    if whole != text:
        write_atomic(log, whole)
    grades: list[Grade] = []
    for row in read_lines(log):
        for item in row["grades"]:
            completions = [Completion(**c) for c in item["completions"]]
            grades.append(Grade(Problem(**item["problem"]), completions, item["rewards"]))
    if [g.problem for g in grades] != problems[: len(grades)]:
        raise ValueError(f"{str(log)!r} does not hold the first of these problems; choose another --output")
    return grades
