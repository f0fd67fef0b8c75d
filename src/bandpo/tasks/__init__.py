"""Tasks: prompts with verifiable rewards (needs the `train` extra)."""

from bandpo.tasks.arithmetic import Arithmetic
from bandpo.tasks.base import Problem, Score, Task
from bandpo.tasks.questions import Questions
from bandpo.tasks.rewards import REWARDS, last_integer_reward, math_reward

TASKS: dict[str, type[Task]] = {"arithmetic": Arithmetic, "questions": Questions}

__all__ = [
    "REWARDS",
    "TASKS",
    "Arithmetic",
    "Problem",
    "Questions",
    "Score",
    "Task",
    "last_integer_reward",
    "math_reward",
]
