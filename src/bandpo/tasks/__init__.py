"""Tasks: prompts with verifiable rewards (needs the `train` extra)."""

from bandpo.tasks.arithmetic import Arithmetic
from bandpo.tasks.base import Problem, Task
from bandpo.tasks.datasets import DATASETS
from bandpo.tasks.grading import Grader, Score
from bandpo.tasks.questions import Questions, benchmark
from bandpo.tasks.rewards import REWARDS, exact_reward, last_integer_reward, math_reward
from bandpo.tasks.templates import TEMPLATES

TASKS: dict[str, type[Task]] = {"arithmetic": Arithmetic, "questions": Questions}

__all__ = [
    "DATASETS",
    "REWARDS",
    "TASKS",
    "TEMPLATES",
    "Arithmetic",
    "Grader",
    "Problem",
    "Questions",
    "Score",
    "Task",
    "benchmark",
    "exact_reward",
    "last_integer_reward",
    "math_reward",
]
