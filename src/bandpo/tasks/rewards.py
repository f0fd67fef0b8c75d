"""Rewards: completion and reference answer in, a number from 0 to 1 out."""

from __future__ import annotations

import importlib
import numbers
import os
import re
import sys
from collections.abc import Callable, Sequence
from typing import Any

from bandpo.tasks.answers import plain, stated_answer
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
        requests[i] = {"texts": [completion], "answer": answer}
    graded = dict(zip(requests, shared_grader("math").grade(list(requests.values()), time_limit), strict=True))
    return [graded.get(i, Score(1.0)) for i in range(len(completions))]


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
    if ":" in name:
        return load_function(name, "reward")
    if name not in REWARDS:
        raise ValueError(
            f"unknown reward {name!r}{nearest(name, REWARDS)}; known: {', '.join(REWARDS)}, or module:function"
        )
    return REWARDS[name]


def load_function(name: str, what: str) -> Callable[..., Any]:
    """The function that 'module:function' names; the current directory is searched too.

    Raises:
        ValueError: If the module cannot be imported or has no such function; the message names it.
    """
    module_name, _, function_name = name.partition(":")
    if os.getcwd() not in sys.path:  # last, so that nothing there hides an installed module
        sys.path.append(os.getcwd())
    try:
        module = importlib.import_module(module_name)
    except Exception as error:  # importing runs whatever the module holds
        raise ValueError(
            f"{what} {name!r}: cannot import {module_name!r}: {type(error).__name__}: {error}"
        ) from error
    if not hasattr(module, function_name):
        known = [key for key, value in vars(module).items() if callable(value)]
        raise ValueError(f"{what} {name!r}: {module_name} has no {function_name!r}{nearest(function_name, known)}")
    function = getattr(module, function_name)
    if not callable(function):
        raise ValueError(f"{what} {name!r} is a {type(function).__name__}, allowed is a function")
    return function


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
