"""Procedural arithmetic: problems without a data set."""

from __future__ import annotations

import random
import string
from typing import Literal

from pydantic import Field, model_validator

from bandpo.tasks.base import Problem, Task

Operation = Literal["+", "-", "*"]
LETTERS = string.ascii_lowercase[:16]
WEIGHTS = [1 / rank for rank in range(1, 17)]


class Arithmetic(Task):
    """Sums, differences or products of two integers drawn from [low, high].

    Every pair that the settings allow is either a training or a held-out problem, never both. With
    `steps`, a problem's solution writes out the digit-wise sum from the last digit to the first; only
    addition of non-negative integers has one. `slips` is the share of these digit sums that are replaced by a
    random number from 0 to 19: a model warmed up on such solutions knows the method but is unsure of each sum.
    A solution begins with this many `letters`, each drawn from the first 16 with probability proportional to 1/rank,
    and a space: tokens that the reward does not read.
    """

    name: Literal["arithmetic"] = "arithmetic"
    reward: str = "last_integer"
    low: int = 1
    high: int = 20
    operations: tuple[Operation, ...] = ("+",)
    steps: bool = False
    slips: float = Field(default=0.0, ge=0, lt=1)
    letters: int = Field(default=0, ge=0)
    train_size: int | None = Field(default=None, ge=1)

    @model_validator(mode="after")
    def _check(self) -> Arithmetic:
        if self.low > self.high:
            raise ValueError(f"low is {self.low}, above high, which is {self.high}")
        if not self.operations:
            raise ValueError("operations is empty; allowed: '+', '-' and '*'")
        if self.steps and (self.operations != ("+",) or self.low < 0):
            raise ValueError("steps needs operations ['+'] and low >= 0")
        if self.slips and not self.steps:
            raise ValueError(f"slips is {self.slips:g}, but only solutions with steps=true can have slips")
        if self.letters and not self.steps:
            raise ValueError(f"letters is {self.letters}, but only solutions with steps=true have letters")
        total = (self.high - self.low + 1) ** 2 * len(self.operations)
        if self.heldout >= total:
            raise ValueError(f"heldout is {self.heldout}, but there are only {total} problems")
        return self

    def problems(self) -> tuple[list[Problem], list[Problem]]:
        numbers = range(self.low, self.high + 1)
        every = [(a, op, b) for op in self.operations for a in numbers for b in numbers]
        dice = random.Random(self.seed)
        dice.shuffle(every)
        problems = [self._problem(*one, dice) for one in every]
        train = problems[self.heldout :]
        return train[: self.train_size], problems[: self.heldout]

    def _problem(self, a: int, op: str, b: int, dice: random.Random) -> Problem:
        value = {"+": a + b, "-": a - b, "*": a * b}[op]
        solution = written_sum(a, b, self.slips, dice) if self.steps else None
        if self.letters:
            solution = f"{''.join(dice.choices(LETTERS, WEIGHTS, k=self.letters))} {solution}"
        return Problem(f"{a} {op} {b}", str(value), solution)


def written_sum(a: int, b: int, slips: float, dice: random.Random) -> str:
    """Digit-wise addition, last digit first: 47+85 -> '7+5=12;4+8+1=13;132'; what follows a slip follows from it."""
    steps, carry, answer = [], 0, ""
    first, second = str(a)[::-1], str(b)[::-1]
    for i in range(max(len(first), len(second))):
        x, y = (int(digits[i]) if i < len(digits) else 0 for digits in (first, second))
        total = x + y + carry
        if dice.random() < slips:
            total = dice.randrange(20)
        steps.append(f"{x}+{y}+{carry}={total}" if carry else f"{x}+{y}={total}")
        carry, digit = divmod(total, 10)
        answer = f"{digit}{answer}"
    return ";".join([*steps, f"{carry or ''}{answer}"])
