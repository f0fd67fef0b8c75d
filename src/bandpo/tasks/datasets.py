"""Data sets by name, and their columns of question and answer."""

from __future__ import annotations

import re
from dataclasses import dataclass

from bandpo.tasks.answers import after_hashes, last_boxed
from bandpo.tasks.columns import Columns
from bandpo.words import nearest

_ANNOTATION = re.compile(r"<<[^<>]*>>")


def _gsm8k_solution(cell: str) -> str:
    """A solution without calculator annotations and the final line."""
    return _ANNOTATION.sub("", cell.rpartition("####")[0]).strip()


# DAPO-Math-17k wraps every question in these; here that is the job of a task's template.
_DAPO_BEFORE = (
    "Solve the following math problem step by step. The last line of your response should be of the form "
    "Answer: $Answer (without quotes) where $Answer is the answer to the problem.\n\n"
)
_DAPO_AFTER = '\n\nRemember to put your answer on its own line after "Answer:".'


def _dapo_question(text: str) -> str:
    return text.removeprefix(_DAPO_BEFORE).removesuffix(_DAPO_AFTER).strip()


@dataclass(frozen=True)
class HubDataset:
    """A data set on the Hugging Face hub.

    Attributes:
        about: One line for `bandpo tasks`.
        repository: Its name on the hub.
        train, test: Names of the splits to train and to evaluate on; None if there is none.
        columns: Columns of the question and the answer.
        subsets: Configurations, read one after another.
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
        Columns("prompt", "reward_model.ground_truth", None, read_question=_dapo_question),
        ("all",),
    ),
    "amc23": HubDataset("AMC 12 of 2023, 40", "math-ai/amc23", None, "test", Columns()),
    "aime24": HubDataset("AIME 2024, 30", "HuggingFaceH4/aime_2024", None, "train", Columns("problem", "answer")),
    "aime25": HubDataset("AIME 2025, 30", "math-ai/aime25", None, "test", Columns("problem", "answer")),
    "commonsense-qa": HubDataset(
        "CommonsenseQA, everyday questions with five choices, 9,741 and 1,221",
        "tau/commonsense_qa",
        "train",
        "validation",
        Columns("question", "answerKey", None, choices="choices"),
    ),
}


def known_dataset(name: str) -> HubDataset:
    """A data set of the registry.

    Raises:
        ValueError: For an unknown name; names the nearest known one.
    """
    if name not in DATASETS:
        raise ValueError(f"unknown data set {name!r}{nearest(name, DATASETS)}; known: {', '.join(DATASETS)}")
    return DATASETS[name]
