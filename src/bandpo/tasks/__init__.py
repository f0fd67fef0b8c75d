"""Tasks: prompts with verifiable rewards (needs the `train` extra)."""

from bandpo.tasks.arithmetic import Arithmetic
from bandpo.tasks.base import Problem, Score, Task
from bandpo.tasks.datasets import DATASETS
from bandpo.tasks.questions import Questions, benchmark
from bandpo.tasks.rewards import REWARDS, last_integer_reward, math_reward
from bandpo.tasks.templates import TEMPLATES

TASKS: dict[str, type[Task]] = {"arithmetic": Arithmetic, "questions": Questions}

__all__ = [
    "DATASETS",
    "REWARDS",
    "TASKS",
    "TEMPLATES",
    "Arithmetic",
    "Problem",
    "Questions",
    "Score",
    "Task",
    "benchmark",
    "last_integer_reward",
    "math_reward",
]
