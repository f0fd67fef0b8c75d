"""Tasks: prompts with verifiable rewards (needs the `train` extra)."""

from collections.abc import Mapping
from typing import Annotated, Any

from pydantic import Field, SerializeAsAny, ValidationError, ValidatorFunctionWrapHandler, WrapValidator

from bandpo.plugins import is_own, load_class
from bandpo.settings import explain
from bandpo.tasks.arithmetic import Arithmetic
from bandpo.tasks.base import Problem, Task
from bandpo.tasks.datasets import DATASETS
from bandpo.tasks.grading import Grader, Score
from bandpo.tasks.gym import ReasoningGym
from bandpo.tasks.mixture import Mixture
from bandpo.tasks.questions import Questions, benchmark
from bandpo.tasks.rewards import REWARDS, exact_reward, last_integer_reward, math_reward
from bandpo.tasks.shaping import SHAPING, Shaping, make_shaping
from bandpo.tasks.summands import Summands
from bandpo.tasks.tail import Tail
from bandpo.tasks.templates import TEMPLATES

TASKS: dict[str, type[Task]] = {
    "arithmetic": Arithmetic,
    "questions": Questions,
    "reasoning-gym": ReasoningGym,
    "tail": Tail,
    "summands": Summands,
    "mixture": Mixture,
}
KnownTask = Annotated[Arithmetic | Questions | ReasoningGym | Tail | Summands | Mixture, Field(discriminator="name")]


def _own_or_known(value: Any, known: ValidatorFunctionWrapHandler) -> Task:
    if isinstance(value, Task) and type(value) not in TASKS.values():
        _refuse_other_name(value, f"{type(value).__module__}:{type(value).__qualname__}")
        return value
    name = value.get("name") if isinstance(value, Mapping) else None
    if not (isinstance(name, str) and is_own(name)):
        return known(value)
    own = load_class(name, "task", Task)  # type: ignore[type-abstract]
    try:
        task = own.model_validate(dict(value))
    except ValidationError as error:
        raise ValueError(f"task {name!r}: {explain(error, own)}") from error
    _refuse_other_name(task, name)
    return task


def _refuse_other_name(task: Task, name: str) -> None:
    if task.name != name:  # config.yaml could not find the class again
        raise ValueError(f"task of class {name} has the name {task.name!r}; allowed: {name!r}")


AnyTask = Annotated[SerializeAsAny[KnownTask], WrapValidator(_own_or_known)]
"""A built-in task by name, or the user's own subclass of `Task` as 'module:Class'."""


def draw_problems(task: Task) -> tuple[list[Problem], list[Problem]]:
    """The task's training problems and held-out problems.

    Raises:
        ValueError: If a custom task returns anything but two lists of problems.
    """
    drawn = task.problems()
    if not (isinstance(drawn, tuple) and len(drawn) == 2 and all(isinstance(part, list) for part in drawn)):
        raise ValueError(f"task {task.name!r}: problems() returned {_kind(drawn)}; allowed: two lists of Problem")
    for problem in (p for part in drawn for p in part):
        if not isinstance(problem, Problem):
            raise ValueError(f"task {task.name!r}: problems() returned a {type(problem).__name__}, not a Problem")
    return drawn


def _kind(value: Any) -> str:
    if isinstance(value, tuple):
        return f"a tuple of {len(value)}: {', '.join(type(part).__name__ for part in value)}"
    return f"a {type(value).__name__}"


__all__ = [
    "DATASETS",
    "REWARDS",
    "SHAPING",
    "TASKS",
    "TEMPLATES",
    "AnyTask",
    "Arithmetic",
    "Grader",
    "Mixture",
    "Problem",
    "Questions",
    "ReasoningGym",
    "Score",
    "Shaping",
    "Summands",
    "Tail",
    "Task",
    "benchmark",
    "draw_problems",
    "exact_reward",
    "last_integer_reward",
    "make_shaping",
    "math_reward",
]
