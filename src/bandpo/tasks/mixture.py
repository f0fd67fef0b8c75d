"""Joint training on several tasks."""

from __future__ import annotations

import math
import random
from collections.abc import Sequence
from dataclasses import replace
from functools import cached_property
from typing import Annotated, Any, Literal

from pydantic import Field, field_validator, model_validator

from bandpo.tasks.arithmetic import Arithmetic
from bandpo.tasks.base import Problem, Prompt, Task, without
from bandpo.tasks.grading import Score
from bandpo.tasks.gym import ReasoningGym
from bandpo.tasks.questions import Questions

Part = Annotated[Arithmetic | Questions | ReasoningGym, Field(discriminator="name")]
Parts = Annotated[tuple[Part, ...], Field(min_length=1)]

# Settings that belong to each part.
_OF_PARTS = ("template", "system", "chat", "reward", "time_limit", "heldout")


class Mixture(Task):
    """A mixture of tasks, each with its own template, system message and reward.

    Attributes:
        parts: The tasks to train on.
        weights: Their relative shares of the training problems: as many problems as these shares allow are drawn
            without replacement. None takes all problems of every part.
        heldout_parts: The tasks whose held-out problems are used; None uses those of `parts`.
        seed: Seed of the draw and of the order.
    """

    name: Literal["mixture"] = "mixture"
    reward: Literal["mixture"] = "mixture"
    parts: Parts
    weights: tuple[float, ...] | None = None
    heldout_parts: Parts | None = None

    @field_validator("reward")
    @classmethod
    def _known_reward(cls, value: str) -> str:
        return value

    @model_validator(mode="after")
    def _check(self) -> Mixture:
        for key in _OF_PARTS:
            if getattr(self, key) != type(self).model_fields[key].default:
                raise ValueError(f"{key} of a mixture must be set in its parts")
        every = [*self.parts, *(self.heldout_parts or ())]
        if len({part.chat for part in every}) > 1:
            raise ValueError(f"the parts of a mixture must agree on chat, which is {[part.chat for part in every]}")
        if self.weights is not None:
            if len(self.weights) != len(self.parts):
                raise ValueError(f"weights has {len(self.weights)} numbers for {len(self.parts)} parts")
            if not all(math.isfinite(w) and w > 0 for w in self.weights):
                raise ValueError(f"weights is {list(self.weights)}; allowed: finite numbers > 0")
        return self

    @cached_property
    def _tasks(self) -> dict[str, Task]:
        """Origin of a problem -> the task that prompts and scores it."""
        tasks: dict[str, Task] = {}
        for before, parts in (("", self.parts), ("heldout/", self.heldout_parts or ())):
            for part in parts:
                label, number = before + part.label, 2
                while label in tasks:
                    label, number = f"{before}{part.label}-{number}", number + 1
                tasks[label] = part
        return tasks

    def problems(self) -> tuple[list[Problem], list[Problem]]:
        drawn = {
            origin: tuple([replace(p, origin=origin) for p in some] for some in task.problems())
            for origin, task in self._tasks.items()
        }
        origins = list(drawn)
        trained, held = origins[: len(self.parts)], origins[len(self.parts) :] or origins
        heldout = [p for origin in held for p in drawn[origin][1]]
        # What one part trains on may be what another holds out.
        train = self._weighted([without(drawn[origin][0], heldout) for origin in trained])
        random.Random(self.seed).shuffle(train)
        return train, heldout

    def _weighted(self, parts: list[list[Problem]]) -> list[Problem]:
        for task, problems in zip(self.parts, parts, strict=True):
            if not problems:
                raise ValueError(f"part {task.label!r} of the mixture has no problem left to train on")
        if self.weights is not None:
            total = min(len(problems) / weight for problems, weight in zip(parts, self.weights, strict=True))
            # The small excess keeps integers exact: 10 / 0.7 * 0.7 is 9.999...
            sizes = [max(1, math.floor(total * weight + 1e-9)) for weight in self.weights]
            draw = random.Random(self.seed)
            parts = [draw.sample(problems, size) for problems, size in zip(parts, sizes, strict=True)]
        return [p for problems in parts for p in problems]

    def prompt(self, problem: Problem, tokenizer: Any) -> Prompt:
        return self._tasks[problem.origin].prompt(problem, tokenizer)

    def score(self, problems: Sequence[Problem], completions: Sequence[str]) -> list[Score]:
        places: dict[str, list[int]] = {}
        for i, problem in enumerate(problems):
            places.setdefault(problem.origin, []).append(i)
        scores: dict[int, Score] = {}
        for origin, where in places.items():
            some = self._tasks[origin].score([problems[i] for i in where], [completions[i] for i in where])
            scores.update(zip(where, some, strict=True))
        if len(completions) != len(problems):
            raise ValueError(f"{len(completions)} completions for {len(problems)} problems")
        return [scores[i] for i in range(len(problems))]
