"""What a task is: problems to train on, problems held out, a prompt and a verifiable reward."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, NamedTuple

from pydantic import BaseModel, ConfigDict, Field, field_validator

from bandpo.tasks.grading import DEFAULT_TIME_LIMIT, Score
from bandpo.tasks.rewards import resolve_reward, scores
from bandpo.tasks.templates import template_text

Prompt = str | list[dict[str, str]]


class Message(NamedTuple):
    """One message of a chat."""

    role: str
    content: str


def transcript(messages: Sequence[Message]) -> str:
    """The messages of a chat with their roles; a single message without its role."""
    if len(messages) == 1:
        return messages[0].content
    return "\n\n".join(f"[{role}]\n{content}" for role, content in messages)


@dataclass(frozen=True)
class Problem:
    """A question with its answer.

    Attributes:
        solution: A worked-out text for supervised warm-up, if there is one.
        origin: The part of a mixture that it comes from.
        details: What its grader needs beyond the answer.
        context: Chat messages before the question: a system message, earlier turns.
    """

    question: str
    answer: str
    solution: str | None = None
    origin: str = ""
    details: Any = field(default=None, compare=False, repr=False)
    context: tuple[Message, ...] = ()

    @property
    def key(self) -> str:
        """What identifies the problem: the question after the turns before it, without system messages."""
        return "\n".join((*(text for role, text in self.context if role != "system"), self.question))


class Task(BaseModel, ABC):
    """Settings that every task has. A new task subclasses this, sets `name` and implements `problems`.

    Attributes:
        template: The user's message (or, for a model without a chat template, the whole prompt): a string with
            {question}, or the name of a template.
        system: System message, overriding one in the data; None uses the data's, else that of the model's chat
            template.
        chat: Use the model's chat template; None uses it if the tokenizer has one.
        reward: Name of the reward that grades a completion, or the user's own as 'module:function'.
        time_limit: Seconds to grade one completion; if it takes longer, it counts as wrong.
        heldout: Number of problems held out for evaluation.
        seed: Seed of the split and of procedural problems.
        many_answers: Whether a problem has several right answers, so that evaluations count distinct ones.
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
    many_answers: ClassVar[bool] = False

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
        """Grade one completion per problem."""
        return scores(self.reward, completions, [p.answer for p in problems], self.time_limit)

    def prompt(self, problem: Problem, tokenizer: Any) -> Prompt:
        """The prompt for the model: chat messages, or plain text without a chat template.

        The template applies to the user's last message, the question; the messages before it stay as they are.

        Raises:
            ValueError: If the problem has messages before the question, and there is no chat template.
        """
        text = self.user_message(problem)
        if self.chat is False or (self.chat is None and not tokenizer.chat_template):
            if problem.context:
                roles = ", ".join(message.role for message in problem.context)
                why = "task.chat is false" if self.chat is False else "the model has none"
                raise ValueError(
                    f"before the question {problem.question[:40]!r} there are messages ({roles}), which need a chat "
                    f"template, but {why}"
                )
            return text
        return self.messages(problem)

    def user_message(self, problem: Problem) -> str:
        """The question in the task's template."""
        return template_text(self.template).replace("{question}", problem.question)

    def messages(self, problem: Problem) -> list[dict[str, str]]:
        """The problem as a chat: the system message, earlier turns, and the question in the task's template."""
        context = list(problem.context)
        if self.system is not None:
            context = [Message("system", self.system), *(m for m in context if m.role != "system")]
        return [m._asdict() for m in (*context, Message("user", self.user_message(problem)))]


def without(problems: Iterable[Problem], others: Iterable[Problem] = ()) -> list[Problem]:
    """The problems that are not among `others`, each question once."""
    seen = {problem.key for problem in others}
    kept: dict[str, Problem] = {}
    for problem in problems:
        if problem.key not in seen:
            kept.setdefault(problem.key, problem)
    return list(kept.values())
