"""Data sets by name, and where the question and the answer stand in their rows."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bandpo.tasks.answers import after_hashes, last_boxed
from bandpo.tasks.base import Problem
from bandpo.words import nearest

Row = dict[str, Any]


def _text(value: Any) -> str:
    """A cell as text; a whole number stored as a float loses its '.0'."""
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    return str(value).strip()


@dataclass(frozen=True)
class Columns:
    """Which columns hold a problem, and how to read them.

    Attributes:
        question, answer, solution: Names of the columns; two may be the same.
        read_question, read_answer, read_solution: From a cell to the text, None where the cell has none.
    """

    question: str = "question"
    answer: str = "answer"
    solution: str | None = "solution"
    read_question: Callable[[Any], str | None] = _text
    read_answer: Callable[[Any], str | None] = _text
    read_solution: Callable[[Any], str | None] = _text

    def problem(self, row: Row, where: str) -> Problem:
        """The problem in a row.

        Raises:
            ValueError: If the row lacks a question or an answer; the message says where it stands.
        """
        values: list[str] = []
        for column, read in ((self.question, self.read_question), (self.answer, self.read_answer)):
            cell = row.get(column)
            if cell is None or not str(cell).strip():
                raise ValueError(f"{where} has no {column!r}; its keys are {', '.join(map(repr, row)) or 'none'}")
            value = read(cell)
            if not value:
                raise ValueError(f"{where}: no {'answer' if values else 'question'} in {column!r}: {_excerpt(cell)}")
            values.append(value)
        solution = None if self.solution is None else row.get(self.solution)
        return Problem(values[0], values[1], None if solution is None else self.read_solution(solution))


def _excerpt(cell: Any) -> str:
    text = repr(cell)
    return text if len(text) <= 80 else f"{text[:38]} ... {text[-38:]}"


_ANNOTATION = re.compile(r"<<[^<>]*>>")


def _gsm8k_solution(cell: str) -> str:
    """Without the calculator annotations and the final line."""
    return _ANNOTATION.sub("", cell.rpartition("####")[0]).strip()


# DAPO-Math-17k wraps every question in these; the template of a task does that here.
_DAPO_BEFORE = (
    "Solve the following math problem step by step. The last line of your response should be of the form "
    "Answer: $Answer (without quotes) where $Answer is the answer to the problem.\n\n"
)
_DAPO_AFTER = '\n\nRemember to put your answer on its own line after "Answer:".'


def _dapo_question(cell: Any) -> str:
    text = cell if isinstance(cell, str) else cell[-1]["content"]
    return str(text).removeprefix(_DAPO_BEFORE).removesuffix(_DAPO_AFTER).strip()


def _ground_truth(cell: Any) -> str | None:
    return _text(cell["ground_truth"]) if isinstance(cell, dict) and cell.get("ground_truth") is not None else None


@dataclass(frozen=True)
class HubDataset:
    """A data set on the Hugging Face hub.

    Attributes:
        about: One line for `bandpo tasks`.
        repository: Its name on the hub.
        train, test: Names of the splits to train and to evaluate on; None where there is none.
        columns: Where the question and the answer stand.
        subsets: Configurations, read one after the other.
    """

    about: str
    repository: str
    train: str | None
    test: str | None
    columns: Columns
    subsets: tuple[str | None, ...] = (None,)


DATASETS: dict[str, HubDataset] = {
    "gsm8k": HubDataset(
        "grade-school word problems, 7,473 and 1,319",
        "openai/gsm8k",
        "train",
        "test",
        Columns("question", "answer", "answer", read_answer=after_hashes, read_solution=_gsm8k_solution),
        ("main",),
    ),
    "math": HubDataset(
        "MATH, competition problems of levels 1 to 5, 7,500 and 5,000",
        "EleutherAI/hendrycks_math",
        "train",
        "test",
        Columns("problem", "solution", "solution", read_answer=last_boxed),
        (
            "algebra",
            "counting_and_probability",
            "geometry",
            "intermediate_algebra",
            "number_theory",
            "prealgebra",
            "precalculus",
        ),
    ),
    "math500": HubDataset(
        "500 of MATH's test problems", "HuggingFaceH4/MATH-500", None, "test", Columns("problem", "answer")
    ),
    "dapo-math-17k": HubDataset(
        "DAPO's competition problems with integer answers, without duplicates, 17,398",
        "open-r1/DAPO-Math-17k-Processed",
        "train",
        None,
        Columns("prompt", "reward_model", None, read_question=_dapo_question, read_answer=_ground_truth),
        ("all",),
    ),
    "amc23": HubDataset("AMC 12 of 2023, 40", "math-ai/amc23", None, "test", Columns()),
    "aime24": HubDataset("AIME 2024, 30", "HuggingFaceH4/aime_2024", None, "train", Columns("problem", "answer")),
    "aime25": HubDataset("AIME 2025, 30", "math-ai/aime25", None, "test", Columns("problem", "answer")),
}


def known_dataset(name: str) -> HubDataset:
    """A data set of the registry.

    Raises:
        ValueError: For an unknown name; the nearest known one is named.
    """
    if name not in DATASETS:
        raise ValueError(f"unknown data set {name!r}{nearest(name, DATASETS)}; known: {', '.join(DATASETS)}")
    return DATASETS[name]


FILE_SUFFIXES = (".jsonl", ".json", ".parquet")


def is_file_name(source: str) -> bool:
    """Whether a source means a file, there or not, rather than a name on the hub."""
    path = Path(source).expanduser()
    return path.is_file() or path.suffix in FILE_SUFFIXES or source.startswith((".", "/", "~"))


def read_file(source: str) -> list[Row]:
    """The rows of a JSONL, JSON (a list of objects) or parquet file.

    Raises:
        ValueError: If the file does not exist or does not hold rows.
    """
    path = Path(source).expanduser()
    if not path.is_file():
        raise ValueError(f"data path {source!r} does not exist")
    if path.suffix == ".parquet":
        import pyarrow
        import pyarrow.parquet

        try:
            return pyarrow.parquet.read_table(path).to_pylist()
        except (pyarrow.ArrowException, OSError) as error:
            raise ValueError(f"{path} is not a parquet file: {' '.join(str(error).split())}") from error
    try:
        text = path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is not UTF-8 text: {error}") from error
    if path.suffix == ".json" and text.lstrip().startswith("["):
        places = [("", text)]
    else:  # JSON allows line separators inside strings that splitlines() would split at
        places = [(f", line {n}", line) for n, line in enumerate(text.split("\n"), 1) if line.strip()]
    rows: list[Row] = []
    for place, part in places:
        try:
            value = json.loads(part)
        except json.JSONDecodeError as error:
            raise ValueError(f"{path}{place} is not JSON: {error}") from error
        for row in value if not place else [value]:
            if not isinstance(row, dict):
                raise ValueError(f"{path}{place} is a {type(row).__name__}, allowed is an object")
            rows.append(row)
    return rows


def read_hub(source: str, subsets: Sequence[str | None], split: str) -> list[Row]:
    """The rows of a data set on the hub.

    Raises:
        ValueError: If it cannot be loaded; the reason and the nearest known name are given.
    """
    from datasets import load_dataset

    try:
        return [row for subset in subsets for row in load_dataset(source, subset, split=split)]
    except Exception as error:  # the hub client raises many kinds
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise ValueError(
            f"cannot load data {source!r}{nearest(source, DATASETS)}, neither a file nor on the hub: {reason}"
        ) from error


def keep_levels(rows: Sequence[Row], levels: Sequence[int], source: str) -> list[Row]:
    """Rows whose 'level' (3, or 'Level 3') is among `levels`.

    Raises:
        ValueError: If a row has no level.
    """
    kept = []
    for i, row in enumerate(rows, 1):
        if "level" not in row:
            raise ValueError(f"levels is {list(levels)}, but {source}, row {i} has no 'level'")
        number = str(row["level"]).removeprefix("Level").strip()
        if number.isdigit() and int(number) in levels:
            kept.append(row)
    return kept
