"""Rewards: completion and reference answer in, a number from 0 to 1 out."""

from __future__ import annotations

import re
from collections.abc import Callable

Reward = Callable[[str, str], float]


def math_reward(completion: str, answer: str) -> float:
    """1.0 if the completion's final answer is mathematically equal to `answer`, else 0.0.

    Math-Verify extracts the answer (from \\boxed{}, LaTeX or plain text) and compares. A completion that it
    cannot parse is wrong, not an error.

    Raises:
        ValueError: If the reference answer itself is empty.
    """
    from math_verify import parse, verify

    if not answer.strip():
        raise ValueError(f"the reference answer is {answer!r}; allowed is a mathematical expression")
    gold = parse(f"${answer}$", raise_on_error=False) or parse(answer, raise_on_error=False)
    found = parse(completion, raise_on_error=False)
    return float(verify(gold, found, raise_on_error=False))


_INTEGER = re.compile(r"-?\d[\d,]*")


def last_integer_reward(completion: str, answer: str) -> float:
    """1.0 if the last integer in the completion equals `answer`, else 0.0."""
    found = _INTEGER.findall(completion)
    return float(bool(found) and int(found[-1].replace(",", "")) == int(answer))


REWARDS: dict[str, Reward] = {"math": math_reward, "last_integer": last_integer_reward}
