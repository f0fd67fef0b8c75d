"""Questions with answers: a data set by name, a file, or anything on the Hugging Face hub."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, ValidationError, field_validator

from bandpo.tasks.base import Problem, Task, without
from bandpo.tasks.datasets import DATASETS, Columns, is_file_name, keep_levels, known_dataset, read_file, read_hub
from bandpo.words import nearest

Purpose = Literal["train", "test"]


class Questions(Task):
    """Questions with answers from a data set.

    Attributes:
        data: Name of a known data set (`bandpo tasks` lists them), path of a JSONL, JSON or parquet file, or a
            data set's name on the hub.
        columns: Name of a known data set whose columns the file or hub data set has.
        question_key, answer_key, solution_key: Names of the columns otherwise.
        split: Split of a hub data set; None is its own for training or for testing.
        subset: Configuration of a hub data set, if it has several.
        levels: Keep only rows of these levels.
        limit: Use only so many problems for training, drawn at random.
        heldout_data: Where held-out problems come from (as `data`, test split); None splits them off `data`.
    """

    name: Literal["questions"] = "questions"
    data: str
    columns: str | None = None
    question_key: str = "question"
    answer_key: str = "answer"
    solution_key: str = "solution"
    split: str | None = None
    subset: str | None = None
    levels: tuple[int, ...] | None = None
    limit: int | None = Field(default=None, ge=1)
    heldout_data: str | None = None

    @field_validator("columns")
    @classmethod
    def _known_columns(cls, value: str | None) -> str | None:
        if value is not None:
            known_dataset(value)
        return value

    @property
    def label(self) -> str:
        return self.data if self.data in DATASETS else Path(self.data).stem

    def problems(self) -> tuple[list[Problem], list[Problem]]:
        train = without(self.read(self.data), set())
        random.Random(self.seed).shuffle(train)
        if self.heldout_data is None:
            if self.heldout >= len(train):
                raise ValueError(f"heldout is {self.heldout}, but {self.data!r} has only {len(train)} problems")
            heldout, train = train[: self.heldout], train[self.heldout :]
        else:
            heldout = self.read(self.heldout_data, "test")
            random.Random(self.seed).shuffle(heldout)
            heldout = heldout[: self.heldout]
            train = without(train, {p.question for p in heldout})
            if not train:
                raise ValueError(f"every problem of {self.data!r} is also held out")
        return train[: self.limit], heldout

    def read(self, source: str, purpose: Purpose = "train") -> list[Problem]:
        """All problems of a data set, in its order.

        Raises:
            ValueError: If it does not exist, is empty, has no such split, or a row lacks a question or an answer.
        """
        rows = self._rows(source, purpose)
        if self.levels is not None:
            rows = keep_levels(rows, self.levels, source)
        if not rows:
            raise ValueError(f"data {source!r} holds no problem")
        columns = self._columns(source)
        return [columns.problem(row, f"{source}, row {i}") for i, row in enumerate(rows, 1)]

    def _rows(self, source: str, purpose: Purpose) -> list[dict[str, Any]]:
        if source in DATASETS:
            known = DATASETS[source]
            split = self.split or getattr(known, purpose)
            if split is None:
                kind = {"train": "training", "test": "test"}[purpose]
                raise ValueError(f"data set {source!r} has no {kind} split; give task.split to use another")
            return read_hub(known.repository, [self.subset] if self.subset else known.subsets, split)
        if is_file_name(source):
            return read_file(source)
        return read_hub(source, [self.subset], self.split or purpose)

    def _columns(self, source: str) -> Columns:
        if source in DATASETS:
            return DATASETS[source].columns
        if self.columns is not None:
            return DATASETS[self.columns].columns
        return Columns(self.question_key, self.answer_key, self.solution_key)


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
        first = error.errors()[0]
        key = ".".join(map(str, first["loc"]))
        if first["type"] == "extra_forbidden":
            known = [k for k in Questions.model_fields if k not in ("name", "data")]
            raise ValueError(f"unknown setting {key!r}{nearest(key, known)}; known: {', '.join(known)}") from error
        if first["type"] == "value_error":
            raise ValueError(first["msg"].removeprefix("Value error, ")) from error
        raise ValueError(f"{key} is {first['input']!r}: {first['msg']}") from error
    return task, task.read(source, "test")
