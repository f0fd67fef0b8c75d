"""Data sets as the parquet files that verl reads."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from bandpo.tasks import DATASETS, Problem, Questions
from bandpo.tasks.datasets import known_dataset
from bandpo.tasks.templates import template_text

# What the recipes train and validate on.
PAPER = ("dapo-math-17k", "math", "aime24", "aime25", "amc23")
# The paper trains on the harder half of MATH.
PAPER_LEVELS = {"math": (3, 4, 5)}


def read_problems(name: str, path: str | None = None, hub_columns: bool = False) -> list[Problem]:
    """The problems of a known data set: its training split if it has one, else its test split.

    Args:
        name: A name of `bandpo.tasks.DATASETS`.
        path: Read this file instead of the hub.
        hub_columns: The file has the columns of the hub's data set, not question and answer.

    Raises:
        ValueError: For an unknown name, or a data set that cannot be read.
    """
    known = known_dataset(name)
    levels = PAPER_LEVELS.get(name) if path is None or hub_columns else None
    source = name if path is None else path
    task = Questions(data=source, columns=name if hub_columns else None, levels=levels)
    return task.read(source, "test" if known.train is None else "train")


def verl_rows(problems: Sequence[Problem], name: str, template: str) -> list[dict[str, Any]]:
    """Problems in verl's schema: data_source, prompt, ability, reward_model, extra_info.

    Args:
        problems: What `read_problems` gives.
        name: Becomes `data_source`, under which verl reports validation scores.
        template: The user's message, by name or as a string with {question}.

    Raises:
        ValueError: For a template that is neither.
    """
    task = Questions(data=name, template=template_text(template))
    split = "test" if DATASETS[name].train is None else "train"
    return [
        {
            "data_source": name,
            "prompt": task.messages(problem),
            "ability": "math",
            "reward_model": {"style": "rule", "ground_truth": problem.answer},
            "extra_info": {"index": index, "split": split},
        }
        for index, problem in enumerate(problems)
    ]


def write_parquet(rows: list[dict[str, Any]], path: Path) -> None:
    """Write rows under a temporary name and move the file into place."""
    import pyarrow
    import pyarrow.parquet

    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.partial")
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), partial)
    partial.replace(path)
