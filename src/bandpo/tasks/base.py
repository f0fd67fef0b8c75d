"""What a task is: problems to train on, problems held out, a prompt and a verifiable reward."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, field_validator

from bandpo.tasks.grading import DEFAULT_TIME_LIMIT, Score
from bandpo.tasks.rewards import resolve_reward, scores
from bandpo.tasks.templates import template_text

Prompt = str | list[dict[str, str]]


@dataclass(frozen=True)
class Problem:
    """A question with its answer.

    Attributes:
        solution: A worked-out text for supervised warm-up, if there is one.
        origin: Which part of a mixture it comes from.
        details: What its grader needs beyond the answer.
    """

    question: str
    answer: str
    solution: str | None = None
    origin: str = ""
    details: Any = field(default=None, compare=False, repr=False)


class Task(BaseModel, ABC):
    """Settings that every task has. A new task subclasses this, sets `name` and implements `problems`.

    Attributes:
        template: The user's message (or, for a model without a chat template, the whole prompt): a text with
            {question}, or the name of a template.
        system: System message; None leaves the choice to the model's chat template.
        chat: Use the model's chat template; None uses it where the tokenizer has one.
        reward: Name of the reward that grades a completion, or the user's own as 'module:function'.
        time_limit: Seconds to grade one completion; what needs longer is wrong.
        heldout: Number of problems held out for evaluation.
        seed: Seed of the split and of procedural problems.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: str
    template: str = "plain"
    system: str | None = None
    chat: bool | None = None
    reward: str = "math"
    time_limit: float = Field(default=DEFAULT_TIME_LIMIT, gt=0)
    heldout: int = Field(default=100, ge=1)
    seed: int = 0

    @field_validator("template")
    @classmethod
    def _known_template(cls, value: str) -> str:
        template_text(value)
        return value

    @field_validator("reward")
    @classmethod
    def _known_reward(cls, value: str) -> str:
        resolve_reward(value)
        return value

    @property
    def label(self) -> str:
        """A short name for where the problems come from."""
        return self.name

    @abstractmethod
    def problems(self) -> tuple[list[Problem], list[Problem]]:
        """Training problems and held-out problems, disjoint."""

    def score(self, problems: Sequence[Problem], completions: Sequence[str]) -> list[Score]:
        """Grade one completion a problem."""
        return scores(self.reward, completions, [p.answer for p in problems], self.time_limit)

    def prompt(self, problem: Problem, tokenizer: Any) -> Prompt:
        """What the model completes: chat messages, or plain text where there is no chat template."""
        text = template_text(self.template).replace("{question}", problem.question)
        if self.chat is False or (self.chat is None and not tokenizer.chat_template):
            return text
        messages = [] if self.system is None else [{"role": "system", "content": self.system}]
        return [*messages, {"role": "user", "content": text}]


def without(problems: Iterable[Problem], seen: Collection[str]) -> list[Problem]:
    """The problems whose question is not in `seen`, each question once."""
    kept: dict[str, Problem] = {}
    for problem in problems:
        if problem.question not in seen:
            kept.setdefault(problem.question, problem)
    return list(kept.values())
