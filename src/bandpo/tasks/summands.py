"""A task with many right answers."""

from __future__ import annotations

import random
from typing import Literal

from pydantic import Field, model_validator

from bandpo.tasks.base import Problem, Task


class Summands(Task):
    """Name two positive numbers with a given sum, as a+b: every pair is right, or only the rarest one.

    A warm-up on the solutions teaches the model to name a with a probability in proportion to 1/a, and, in the share
    `slips` of them, a random b. So there are N - 1 right answers for the sum N, of which the last, N-1+1, is the
    rarest.

    Attributes:
        low, high: Range of the sums.
        size: Number of problems; the same sum occurs in several of them, each with its own solution.
        slips: Share of solutions with a random b.
        only_rarest: Whether only N-1+1 is right.
    """

    name: Literal["summands"] = "summands"
    template: str = "{question}="
    reward: str = "summands"
    low: int = Field(default=20, ge=3)
    high: int = 99
    size: int = Field(default=4000, ge=1)
    slips: float = Field(default=0.3, ge=0, lt=1)
    only_rarest: bool = False
    many_answers = True

    @model_validator(mode="after")
    def _check(self) -> Summands:
        if self.low > self.high:
            raise ValueError(f"low is {self.low}, above high, which is {self.high}")
        if self.heldout > self.high - self.low:
            raise ValueError(f"heldout is {self.heldout}, but there are only {self.high - self.low + 1} sums")
        return self

    def problems(self) -> tuple[list[Problem], list[Problem]]:
        dice = random.Random(self.seed)
        sums = list(range(self.low, self.high + 1))
        dice.shuffle(sums)
        heldout = [self._problem(total, dice) for total in sums[: self.heldout]]
        return [self._problem(dice.choice(sums[self.heldout :]), dice) for _ in range(self.size)], heldout

    def _problem(self, total: int, dice: random.Random) -> Problem:
        firsts = range(1, total)
        (first,) = dice.choices(firsts, [1 / a for a in firsts])
        second = dice.randint(1, total - 1) if dice.random() < self.slips else total - first
        answer = f"{total - 1}+1" if self.only_rarest else str(total)
        return Problem(str(total), answer, f"{first}+{second}")
