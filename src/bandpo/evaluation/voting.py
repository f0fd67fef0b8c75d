"""Majority vote: final answers, and the reward of the most frequent one."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from fractions import Fraction

from bandpo.tasks.answers import holds_words, last_integer, plain, stated_answer
from bandpo.tasks.base import Task
from bandpo.tasks.rewards import REWARDS, chosen_letter, summands

Extractor = Callable[[str], str | None]

# Not an exponent or index: those come behind ^ or _.
_NUMBER = re.compile(r"(?<![0-9.^_])(?<![\^_]\{)-?(?:[0-9]+(?:,[0-9]{3})*(?:\.[0-9]+)?|\.[0-9]+)")
_UNIT = re.compile(r"\\(?:text|mbox|mathrm)\s*\{[^{}]*\}(?:\^\{?[0-9]\}?)?")
_DECIMAL = re.compile(r"-?(?:[0-9]{1,40}(?:\.[0-9]{1,40})?|\.[0-9]{1,40})")
_RATIO = re.compile(r"(-?)\\frac\{([0-9]{1,40})\}\{([0-9]{1,40})\}|(-?)([0-9]{1,40})/([0-9]{1,40})")


def canonical(answer: str) -> str:
    r"""One canonical form for equal numbers (1,000 and 1000.0; 0.5, 1/2 and \frac{1}{2}); anything else
    without layout and without the `x =` before it."""
    answer = re.sub(r"^[A-Za-z]=", "", plain(answer))
    number = re.sub(r"(?<=[0-9]),(?=[0-9]{3}(?![0-9]))", "", answer)
    if _DECIMAL.fullmatch(number):
        return str(Fraction(number))
    ratio = _RATIO.fullmatch(number)
    if ratio is not None:
        sign, top, bottom = (group for group in ratio.groups() if group is not None)
        if int(bottom):
            return str(Fraction(int(sign + top), int(bottom)))
    return answer


def final_answer(text: str) -> str | None:
    """The final answer of a completion in canonical form, None if there is none.

    It is what the text marks as its answer (`stated_answer`), without units; if nothing is marked, or the mark
    contains prose, it is the last number.
    """
    stated = stated_answer(text)
    if stated is not None and stated == text.strip() and " " in stated and holds_words(stated):
        stated = None  # a one-line sentence marks nothing
    if stated is None or (holds_words(stated) and "\\" not in stated):
        numbers = _NUMBER.findall(text if stated is None else stated)
        if numbers:
            return canonical(numbers[-1])
    if stated is None:
        return None
    return canonical(_UNIT.sub("", stated)) or plain(stated) or None


def _exact(text: str) -> str | None:
    """The form that `exact_reward` compares."""
    return " ".join((stated_answer(text) or "").rstrip(".").split()) or None


# One for each of REWARDS; None if a reward reads no final answer.
EXTRACTORS: dict[str, Extractor | None] = {
    "math": final_answer,
    "exact": _exact,
    "last_integer": last_integer,
    "choice": chosen_letter,
    "summands": summands,
    "coin": None,
}


def extractor(task: Task) -> Extractor | None:
    """How a task's completions state their final answer.

    None if the task grades whole texts in its own way, or uses a custom reward.
    """
    if type(task).score is not Task.score or task.reward not in REWARDS:
        return None
    return EXTRACTORS[task.reward]


def majority(finals: Sequence[str | None], rewards: Sequence[float]) -> float:
    """Expected reward of answering with the most frequent final answer, ties broken at random.

    Completions without a final answer do not vote; without any vote it is 0. Equal answers with
    different rewards count with their mean.
    """
    groups: dict[str, list[float]] = {}
    for final, value in zip(finals, rewards, strict=True):
        if final is not None:
            groups.setdefault(final, []).append(value)
    if not groups:
        return 0.0
    most = max(map(len, groups.values()))
    winners = [sum(group) / most for group in groups.values() if len(group) == most]
    return sum(winners) / len(winners)
