"""Rewards: completion and reference answer in, a number from 0 to 1 out."""

from __future__ import annotations

import numbers
import re
from collections.abc import Callable, Sequence
from typing import Any

from bandpo.plugins import is_own, load_function
from bandpo.tasks.answers import holds_words, plain, stated_answer
from bandpo.tasks.grading import DEFAULT_TIME_LIMIT, Score, shared_grader
from bandpo.words import nearest

Reward = Callable[[str, str], float]


def math_reward(completion: str, answer: str) -> float:
    """1.0 if the completion's final answer is mathematically equal to `answer`, else 0.0.

    The answer counts as equal if it is the same text; otherwise Math-Verify extracts it (from \\boxed{}, LaTeX or
    plain text) and compares. A completion that cannot be parsed, or not within DEFAULT_TIME_LIMIT, is wrong.

    Raises:
        ValueError: If the reference answer itself is empty.
    """
    return math_scores([completion], [answer])[0].value


def math_scores(
    completions: Sequence[str], answers: Sequence[str], time_limit: float = DEFAULT_TIME_LIMIT
) -> list[Score]:
    """`math_reward` of many completions, side by side in worker processes.

    Args:
        time_limit: Seconds for one completion; what needs longer scores 0 and counts as timed out.
    """
    requests: dict[int, dict[str, Any]] = {}
    for i, (completion, answer) in enumerate(zip(completions, answers, strict=True)):
        if not answer.strip():
            raise ValueError(f"the reference answer is {answer!r}; allowed is a mathematical expression")
        stated = stated_answer(completion)
        if stated is not None and plain(stated) == plain(answer):
            continue
        requests[i] = {"texts": _readings(completion, stated), "answer": answer}
    graded = dict(zip(requests, shared_grader("math").grade(list(requests.values()), time_limit), strict=True))
    return [graded.get(i, Score(1.0)) for i in range(len(completions))]


def _readings(completion: str, stated: str | None) -> list[str]:
    """What Math-Verify is to read, the likeliest first. It reads LaTeX only where that is marked as such."""
    marked = any(mark in completion for mark in ("\\boxed", "$", "\\(", "\\["))
    if stated is None or marked or holds_words(stated):
        return [completion]
    return [f"${stated.rstrip('.')}$", completion]


_INTEGER = re.compile(r"-?[0-9][0-9,]*")


def last_integer_reward(completion: str, answer: str) -> float:
    """1.0 if the last integer in the completion equals `answer`, else 0.0.

    Raises:
        ValueError: If the reference answer is not an integer.
    """
    if not _INTEGER.fullmatch(answer.strip()):
        raise ValueError(f"the reference answer is {answer!r}; reward 'last_integer' needs an integer")
    found = _INTEGER.findall(completion)
    return float(bool(found) and _digits(found[-1]) == _digits(answer.strip()))


def _digits(integer: str) -> str:
    # As text: Python refuses to turn thousands of digits into an integer.
    sign, digits = ("-" if integer[0] == "-" else ""), integer.lstrip("-").replace(",", "").lstrip("0")
    return sign + digits if digits else "0"


def exact_reward(completion: str, answer: str) -> float:
    r"""1.0 if the final answer (in \boxed{}, in <answer> tags, after 'answer is', or the whole line) is `answer`."""
    return float((stated_answer(completion) or "").rstrip(".").split() == answer.rstrip(".").split())


REWARDS: dict[str, Reward] = {"math": math_reward, "last_integer": last_integer_reward, "exact": exact_reward}


def resolve_reward(name: str) -> Reward:
    """A reward by name, or the user's own function as 'module:function'.

    Raises:
        ValueError: If there is none; the message says what is wrong.
    """
    if is_own(name):
        return load_function(name, "reward")
    if name not in REWARDS:
        raise ValueError(
            f"unknown reward {name!r}{nearest(name, REWARDS)}; known: {', '.join(REWARDS)}, or module:function"
        )
    return REWARDS[name]


def scores(
    name: str, completions: Sequence[str], answers: Sequence[str], time_limit: float = DEFAULT_TIME_LIMIT
) -> list[Score]:
    """The scores of completions under the reward called `name`.

    Raises:
        ValueError: If the reward returns something that is not a number.
    """
    reward = resolve_reward(name)
    if reward is math_reward:
        return math_scores(completions, answers, time_limit)
    result: list[Score] = []
    for completion, answer in zip(completions, answers, strict=True):
        value = reward(completion, answer)
        if not isinstance(value, numbers.Real):
            raise ValueError(f"reward {name!r} returned {value!r}, a {type(value).__name__}; allowed is a number")
        result.append(Score(float(value)))
    return result
