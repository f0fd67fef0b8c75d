"""Procedural problems of reasoning-gym (needs the `gym` extra)."""

from __future__ import annotations

import base64
import json
import pickle
from collections.abc import Sequence
from dataclasses import fields
from typing import Any, Literal

from pydantic import Field, field_validator, model_validator

from bandpo.tasks.answers import last_tagged, stated_answer
from bandpo.tasks.base import Problem, Task, without
from bandpo.tasks.grading import Score, shared_grader
from bandpo.words import nearest

# A generator seeds its i-th problem with seed + i: held-out problems must start beyond any training problem.
_MOST = 1 << 24


class ReasoningGym(Task):
    """Problems from one of reasoning-gym's generators, scored by that generator.

    Training and held-out problems come from different seeds; a question that both would contain is held out.
    The answer is read from <answer> tags, else from other marks in the text.

    Attributes:
        dataset: Name of the generator (chain_sum, countdown, knights_knaves, ...).
        options: The generator's own settings.
        size: Number of training problems to draw; duplicate questions count once.
    """

    name: Literal["reasoning-gym"] = "reasoning-gym"
    template: str = "tags"
    reward: Literal["reasoning-gym"] = "reasoning-gym"
    dataset: str
    options: dict[str, Any] = Field(default_factory=dict)
    size: int = Field(default=1000, ge=1, le=_MOST)

    @field_validator("reward")
    @classmethod
    def _known_reward(cls, value: str) -> str:
        return value

    @model_validator(mode="after")
    def _known_dataset(self) -> ReasoningGym:
        known = _datasets()
        if self.dataset not in known:
            raise ValueError(
                f"unknown reasoning-gym dataset {self.dataset!r}{nearest(self.dataset, known)}; "
                f"known: {', '.join(sorted(known))}"
            )
        settings = [f.name for f in fields(known[self.dataset][1]) if f.name not in ("seed", "size")]
        for option in self.options:
            if option not in settings:
                raise ValueError(
                    f"reasoning-gym dataset {self.dataset!r} has no option {option!r}{nearest(option, settings)}; "
                    f"it takes: {', '.join(settings)}"
                )
        self._generate(self.seed, 1)
        return self

    @property
    def label(self) -> str:
        return self.dataset

    def problems(self) -> tuple[list[Problem], list[Problem]]:
        heldout = without(self._generate(self.seed + _MOST, self.heldout))
        train = without(self._generate(self.seed, self.size), heldout)
        if not train:
            raise ValueError(
                f"every problem of reasoning-gym dataset {self.dataset!r} is held out; lower task.heldout"
            )
        return train, heldout

    def score(self, problems: Sequence[Problem], completions: Sequence[str]) -> list[Score]:
        options = json.dumps({**self.options, "seed": self.seed, "size": 1}, sort_keys=True)
        requests = [
            {
                "dataset": self.dataset,
                "options": options,
                "entry": base64.b64encode(pickle.dumps(problem.details)).decode(),
                "answer": last_tagged(completion) or stated_answer(completion) or "",
            }
            for problem, completion in zip(problems, completions, strict=True)
        ]
        return shared_grader("reasoning-gym").grade(requests, self.time_limit)

    def _generate(self, seed: int, size: int) -> list[Problem]:
        import reasoning_gym

        try:
            entries = list(reasoning_gym.create_dataset(self.dataset, seed=seed, size=size, **self.options))
        except Exception as error:  # each generator checks its settings differently, many by assert
            reason = str(error) or type(error).__name__
            raise ValueError(f"reasoning-gym dataset {self.dataset!r} with {self.options}: {reason}") from error
        # If many answers are right, a generator names none.
        return [Problem(e["question"], str(e["answer"] or ""), details=e) for e in entries]


def _datasets() -> dict[str, Any]:
    try:
        from reasoning_gym.factory import DATASETS
    except ImportError as error:
        raise ValueError(f"task reasoning-gym needs an extra: pip install 'bandpo[gym]' ({error})") from error
    return DATASETS
