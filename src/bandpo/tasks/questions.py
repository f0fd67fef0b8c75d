"""Questions with answers: a data set by name, a file, or anything on the Hugging Face hub."""

from __future__ import annotations

import random
import warnings
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, ValidationError, field_validator

from bandpo.settings import explain
from bandpo.tasks.base import Problem, Task, without
from bandpo.tasks.columns import Columns, excerpt
from bandpo.tasks.datasets import DATASETS, known_dataset
from bandpo.tasks.reading import Row, absolute, is_path, read_hub, read_path, without_suffix

Purpose = Literal["train", "test"]


class DataWarning(UserWarning):
    """The data look wrong; training continues."""


class Questions(Task):
    """Questions with answers from a data set.

    Attributes:
        data: Name of a known data set (`bandpo tasks` lists them), path of a JSONL, JSON, CSV, TSV or parquet file
            or of a folder, or a data set's name on the hub. A path that exists becomes absolute.
        columns: Name of a known data set whose columns the file or hub data set has.
        question_key, answer_key, solution_key: Names of the columns otherwise; dots lead into nested ones.
        choices_key: Name of the column of a multiple-choice question's choices, if it has any.
        split: Split of a hub data set or a folder; None is its default for training or testing.
        subset: Configuration of a hub data set or a folder, if it has several.
        levels: Keep only rows of these levels.
        limit: Maximum number of training problems, drawn at random.
        heldout_data: Source of held-out problems (as `data`, test split); None splits them off `data`.
    """

    name: Literal["questions"] = "questions"
    data: str
    columns: str | None = None
    question_key: str = "question"
    answer_key: str = "answer"
    solution_key: str = "solution"
    choices_key: str | None = None
    split: str | None = None
    subset: str | None = None
    levels: tuple[int, ...] | None = None
    limit: int | None = Field(default=None, ge=1)
    heldout_data: str | None = None

    @field_validator("data", "heldout_data")
    @classmethod
    def _absolute_path(cls, value: str | None) -> str | None:
        # So that a run resumes from any directory.
        return value if value is None or value in DATASETS else absolute(value)

    @field_validator("columns")
    @classmethod
    def _known_columns(cls, value: str | None) -> str | None:
        if value is not None:
            known_dataset(value)
        return value

    @property
    def label(self) -> str:
        return self.data if self.data in DATASETS else without_suffix(Path(self.data)).name

    def problems(self) -> tuple[list[Problem], list[Problem]]:
        train = without(self.read(self.data))
        random.Random(self.seed).shuffle(train)
        if self.heldout_data is None:
            if self.heldout >= len(train):
                raise ValueError(f"heldout is {self.heldout}, but {self.data!r} has only {len(train)} problems")
            heldout, train = train[: self.heldout], train[self.heldout :]
        else:
            heldout = self.read(self.heldout_data, "test")
            random.Random(self.seed).shuffle(heldout)
            heldout = heldout[: self.heldout]
            train = without(train, heldout)
            if not train:
                raise ValueError(f"every problem of {self.data!r} is also held out")
        return train[: self.limit], heldout

    def read(self, source: str, purpose: Purpose = "train") -> list[Problem]:
        """All problems of a data set, in order.

        Warns about questions that occur more than once with different answers.

        Raises:
            ValueError: If it does not exist, is empty, has no such split, or a row lacks a question or an answer; the
                message counts such rows.
        """
        rows = list(enumerate(self._rows(source, purpose), 1))
        if self.levels is not None:
            rows = [(i, row) for i, row in rows if _level(row, f"{source}, row {i}", self.levels) in self.levels]
        if not rows:
            of_levels = "" if self.levels is None else f" of levels {list(self.levels)}"
            raise ValueError(f"data {source!r} has no problems{of_levels}")
        columns, problems, faults = self._columns(source), [], []
        for i, row in rows:
            try:
                problems.append(columns.problem(row))
            except ValueError as error:
                faults.append((i, error))
        if faults:
            i, first = faults[0]
            count = f" ({len(faults)} of {len(rows)} rows cannot be used)" if faults[1:] else ""
            raise ValueError(f"{source}, row {i}: {first}{count}") from first
        _warn_of_conflicts(problems, source)
        return problems

    def _rows(self, source: str, purpose: Purpose) -> list[Row]:
        if source in DATASETS:
            known = DATASETS[source]
            split = self.split or getattr(known, purpose)
            if split is None:
                kind = {"train": "training", "test": "test"}[purpose]
                raise ValueError(f"data set {source!r} has no {kind} split; give task.split to use another")
            subsets: Sequence[str | None] = [self.subset] if self.subset else known.subsets
            return read_hub(known.repository, subsets, split, list(DATASETS))
        if is_path(source):
            return read_path(source, self.subset, self.split, purpose)
        return read_hub(source, [self.subset], self.split or purpose, list(DATASETS))

    def _columns(self, source: str) -> Columns:
        if source in DATASETS:
            return DATASETS[source].columns
        if self.columns is not None:
            return DATASETS[self.columns].columns
        return Columns(self.question_key, self.answer_key, self.solution_key, choices=self.choices_key)


def _level(row: Row, where: str, levels: Sequence[int]) -> int | None:
    """The number in a row's 'level' (3, or 'Level 3'), None if it is not a number.

    Raises:
        ValueError: If the row has no level.
    """
    if "level" not in row:
        raise ValueError(f"levels is {list(levels)}, but {where} has no 'level'")
    number = str(row["level"]).removeprefix("Level").strip()
    return int(number) if number.isdecimal() else None


def _warn_of_conflicts(problems: Iterable[Problem], source: str) -> None:
    """Warn about such questions; training takes the first answer, as the right one is unknown."""
    first: dict[str, Problem] = {}
    conflicts: dict[str, tuple[str, str]] = {}
    for problem in problems:
        before = first.setdefault(problem.key, problem).answer
        if before.split() != problem.answer.split():
            conflicts.setdefault(problem.key, (before, problem.answer))
    if conflicts:
        question, (one, other) = next(iter(conflicts.items()))
        count = "1 question occurs" if len(conflicts) == 1 else f"{len(conflicts)} questions occur"
        warnings.warn(
            f"data {source!r}: {count} more than once with different answers; training uses the first. "
            f"For example {excerpt(question)} has {one!r} and {other!r}",
            DataWarning,
            stacklevel=3,
        )


def benchmark(source: str, **settings: Any) -> tuple[Questions, list[Problem]]:
    """A data set to evaluate on: the task that prompts and grades, and the problems of the test split.

    Args:
        source: As `Questions.data`.
        settings: Any other setting of `Questions`.

    Raises:
        ValueError: For an unknown or impossible setting, or data that cannot be read; one sentence.
    """
    try:
        task = Questions(data=source, **settings)
    except ValidationError as error:
        raise ValueError(explain(error, Questions)) from error
    return task, task.read(source, "test")
