"""A task whose better strategy starts out as a rare action."""

from __future__ import annotations

import random
from typing import Literal

from pydantic import Field, model_validator

from bandpo.tasks.base import Problem, Task


class Tail(Task):
    """Name a digit of a number: the model has learned to say the first one, but the last one is right.

    The answer to every problem is the last digit. A warm-up on the solutions teaches the model to say the first
    digit, and the last one only with probability `rare`: a single token decides between the two strategies. In the
    share `easy` of the problems both digits are the same, so that the first one is right too; those teach nothing.
    The success rate is thus easy + (1 - easy) p, with p the probability of the better strategy.

    Attributes:
        digits: Digits of each number.
        rare: Probability of the better strategy in the solutions.
        easy: Share of problems on which both strategies are right.
    """

    name: Literal["tail"] = "tail"
    template: str = "{question}="
    reward: str = "last_integer"
    digits: int = Field(default=4, ge=3, le=6)
    rare: float = Field(default=0.02, gt=0, lt=1)
    easy: float = Field(default=0.3, ge=0.1, lt=1)

    @model_validator(mode="after")
    def _check(self) -> Tail:
        if self.heldout >= self._size():
            raise ValueError(f"heldout is {self.heldout}, but there are only {self._size()} problems")
        return self

    def _size(self) -> int:
        return round(10 ** (self.digits - 1) / self.easy)

    def problems(self) -> tuple[list[Problem], list[Problem]]:
        dice = random.Random(self.seed)
        numbers = [f"{number:0{self.digits}d}" for number in range(10**self.digits)]
        easy = [number for number in numbers if number[0] == number[-1]]
        hard = [number for number in numbers if number[0] != number[-1]]
        chosen = [*easy, *dice.sample(hard, self._size() - len(easy))]
        dice.shuffle(chosen)
        problems = [
            Problem(number, number[-1], number[-1] if dice.random() < self.rare else number[0]) for number in chosen
        ]
        return problems[self.heldout :], problems[: self.heldout]
