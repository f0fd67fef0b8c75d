"""Tasks: prompts with verifiable rewards (needs the `train` extra)."""

from typing import Annotated

from pydantic import Field

from bandpo.tasks.arithmetic import Arithmetic
from bandpo.tasks.base import Problem, Task
from bandpo.tasks.datasets import DATASETS
from bandpo.tasks.grading import Grader, Score
from bandpo.tasks.gym import ReasoningGym
from bandpo.tasks.mixture import Mixture
from bandpo.tasks.questions import Questions, benchmark
from bandpo.tasks.rewards import REWARDS, exact_reward, last_integer_reward, math_reward
from bandpo.tasks.shaping import SHAPING, Shaping, make_shaping
from bandpo.tasks.tail import Tail
from bandpo.tasks.templates import TEMPLATES

TASKS: dict[str, type[Task]] = {
    "arithmetic": Arithmetic,
    "questions": Questions,
    "reasoning-gym": ReasoningGym,
    "tail": Tail,
    "mixture": Mixture,
}
AnyTask = Annotated[Arithmetic | Questions | ReasoningGym | Tail | Mixture, Field(discriminator="name")]

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
    "Tail",
    "Task",
    "benchmark",
    "exact_reward",
    "last_integer_reward",
    "make_shaping",
    "math_reward",
]
