"""Rewards: completion and reference answer in, a number from 0 to 1 out."""

from __future__ import annotations

import hashlib
import math
import numbers
import re
from collections.abc import Callable, Sequence
from typing import Any

from bandpo.plugins import is_own, load_function
from bandpo.tasks.answers import last_integer, plain, stated_answer
from bandpo.tasks.grading import DEFAULT_TIME_LIMIT, Score, shared_grader
from bandpo.words import nearest

Reward = Callable[[str, str], float]


def math_reward(completion: str, answer: str) -> float:
    """1.0 if the completion's final answer is mathematically equal to `answer`, else 0.0.

    The final answer is the last \\boxed{}, else the last <answer> tag, else what follows "the answer is", else the
    last expression (`bandpo.tasks.answers`). It is equal if it is the same text or if, in canonical notation
    (`bandpo.tasks.notation`), Math-Verify finds it equal. What cannot be read within DEFAULT_TIME_LIMIT is wrong.

    Raises:
        ValueError: If the reference answer itself is empty.
    """
    return math_scores([completion], [answer])[0].value


def math_scores(
    completions: Sequence[str], answers: Sequence[str], time_limit: float = DEFAULT_TIME_LIMIT
) -> list[Score]:
    """`math_reward` of many completions, in parallel in worker processes.

    Args:
        time_limit: Seconds per completion; one that needs longer scores 0 and counts as timed out.
    """
    requests: dict[int, dict[str, Any]] = {}
    for i, (completion, answer) in enumerate(zip(completions, answers, strict=True)):
        if not answer.strip():
            raise ValueError(f"the reference answer is {answer!r}; allowed: a mathematical expression")
        stated = stated_answer(completion)
        if stated is not None and plain(stated) == plain(answer):
            continue
        requests[i] = {"texts": [completion], "answer": answer}
    graded = dict(zip(requests, shared_grader("math").grade(list(requests.values()), time_limit), strict=True))
    return [graded.get(i, Score(1.0)) for i in range(len(completions))]


def last_integer_reward(completion: str, answer: str) -> float:
    """1.0 if the last number in the completion is the integer `answer`, else 0.0.

    18.00 is an integer, 18.5 is not; commas only group thousands, so that 1,2,3 ends in 3; U+2212 is a minus sign.

    Raises:
        ValueError: If the reference answer is not an integer.
    """
    expected = last_integer(answer, whole=True)
    if expected is None:
        raise ValueError(f"the reference answer is {answer!r}; reward 'last_integer' needs an integer")
    return float(last_integer(completion) == expected)


def exact_reward(completion: str, answer: str) -> float:
    r"""1.0 if the final answer (in \boxed{}, in <answer> tags, after 'answer is', or the whole line) is `answer`."""
    return float((stated_answer(completion) or "").rstrip(".").split() == answer.rstrip(".").split())


# A letter in front of a word may be an article.
_CHOICE = re.compile(r"[\W_]*(?:(?:choice|option)\s+)?[\W_]*([a-z])\s*(?:$|[^\w\s'])", re.IGNORECASE)


def choice_reward(completion: str, answer: str) -> float:
    """1.0 if the final answer is or begins with the letter `answer`: B, (b), B. river, option B; "A river" has none.

    Raises:
        ValueError: If the reference answer is not one letter.
    """
    if not re.fullmatch(r"[A-Za-z]", answer.strip()):
        raise ValueError(f"the reference answer is {answer!r}; reward 'choice' needs a letter")
    return float(chosen_letter(completion) == answer.strip().upper())


def chosen_letter(text: str) -> str | None:
    """The letter with which the final answer begins, capitalized; None if it begins with anything else."""
    stated = stated_answer(text) or ""
    match = _CHOICE.match(stated) or _CHOICE.match(plain(stated))
    return match[1].upper() if match else None


def summands_reward(completion: str, answer: str) -> float:
    """1.0 if the completion is a+b of two positive integers, and their sum is `answer`, or `answer` is this pair."""
    pair = summands(completion)
    return float(pair is not None and answer.strip() in (pair, str(sum(map(int, pair.split("+"))))))


def summands(text: str) -> str | None:
    """The whole text as a+b without leading zeros; None if it is anything else."""
    match = re.fullmatch(r"\s*0*([1-9][0-9]{0,8})\s*\+\s*0*([1-9][0-9]{0,8})\s*", text)
    return f"{match[1]}+{match[2]}" if match else None


def coin_reward(completion: str, answer: str) -> float:
    """1.0 or 0.0, by a hash of the completion and `answer`: a fair coin that gives the same result for the same text.

    There is nothing to learn from it, so any change of a training run under it is drift.
    """
    return float(hashlib.sha256(f"{completion}\0{answer}".encode()).digest()[0] & 1)


REWARDS: dict[str, Reward] = {
    "math": math_reward,
    "last_integer": last_integer_reward,
    "exact": exact_reward,
    "choice": choice_reward,
    "summands": summands_reward,
    "coin": coin_reward,
}


def resolve_reward(name: str) -> Reward:
    """A reward by name, or the user's own function as 'module:function'.

    Raises:
        ValueError: If there is none; names the cause.
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
        ValueError: If the reward returns something that is not a finite number.
    """
    reward = resolve_reward(name)
    if reward is math_reward:
        return math_scores(completions, answers, time_limit)
    result: list[Score] = []
    for completion, answer in zip(completions, answers, strict=True):
        value = reward(completion, answer)
        if not isinstance(value, numbers.Real):
            raise ValueError(f"reward {name!r} returned {value!r}, a {type(value).__name__}; allowed: a number")
        if not math.isfinite(value):
            raise ValueError(f"reward {name!r} returned {value!r}; allowed: a finite number")
        result.append(Score(float(value)))
    return result
