"""Questions with answers from a local JSONL file or a data set on the Hugging Face hub."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any, Literal

from pydantic import Field

from bandpo.tasks.base import Problem, Task


class Questions(Task):
    """A data set of {question, answer[, solution]}.

    Attributes:
        data: Path of a JSONL file, or a data set's name on the hub.
        split: Split of a hub data set.
        subset: Configuration of a hub data set, if it has several.
        question_key, answer_key, solution_key: Names of the columns.
        limit: Use only so many problems for training, drawn at random.
        heldout_data: Where held-out problems come from; None splits them off `data`.
    """

    name: Literal["questions"] = "questions"
    data: str
    split: str = "train"
    subset: str | None = None
    question_key: str = "question"
    answer_key: str = "answer"
    solution_key: str = "solution"
    limit: int | None = Field(default=None, ge=1)
    heldout_data: str | None = None

    def problems(self) -> tuple[list[Problem], list[Problem]]:
        train = self.read(self.data)
        random.Random(self.seed).shuffle(train)
        if self.heldout_data is None:
            if self.heldout >= len(train):
                raise ValueError(f"heldout is {self.heldout}, but {self.data!r} has only {len(train)} problems")
            heldout, train = train[: self.heldout], train[self.heldout :]
        else:
            heldout = self.read(self.heldout_data)
            random.Random(self.seed).shuffle(heldout)
            heldout = heldout[: self.heldout]
        return train[: self.limit], heldout

    def read(self, source: str) -> list[Problem]:
        """All problems of a file or data set, in its order.

        Raises:
            ValueError: If it does not exist, is empty, or a row lacks a question or an answer.
        """
        path = Path(source).expanduser()
        if path.is_file():
            rows = _read_jsonl(path)
        elif path.suffix in (".jsonl", ".json") or source.startswith((".", "/", "~")):
            raise ValueError(f"data path {source!r} does not exist")
        else:
            rows = self._read_hub(source)
        if not rows:
            raise ValueError(f"data {source!r} holds no problem")
        return [self._problem(row, f"{source}, row {i}") for i, row in enumerate(rows, 1)]

    def _read_hub(self, source: str) -> list[dict[str, Any]]:
        from datasets import load_dataset

        try:
            return list(load_dataset(source, self.subset, split=self.split))
        except Exception as error:  # the hub client raises many kinds
            reason = str(error).strip().splitlines()[0]
            raise ValueError(f"cannot load data {source!r}, neither a file nor on the hub: {reason}") from error

    def _problem(self, row: dict[str, Any], where: str) -> Problem:
        values = []
        for key in (self.question_key, self.answer_key):
            value = row.get(key)
            if value is None or not str(value).strip():
                raise ValueError(f"{where} has no {key!r}; its keys are {', '.join(map(repr, row)) or 'none'}")
            values.append(str(value))
        solution = row.get(self.solution_key)
        return Problem(values[0], values[1], None if solution is None else str(solution))


def _read_jsonl(path: Path) -> list[dict[str, Any]]:
    rows = []
    with path.open(encoding="utf-8") as stream:
        for number, line in enumerate(stream, 1):
            if not line.strip():
                continue
            try:
                row = json.loads(line)
            except json.JSONDecodeError as error:
                raise ValueError(f"{path}, line {number} is not JSON: {error}") from error
            if not isinstance(row, dict):
                raise ValueError(f"{path}, line {number} is a {type(row).__name__}, allowed is an object")
            rows.append(row)
    return rows
