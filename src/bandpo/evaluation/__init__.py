"""Evaluation: sample completions, grade them, summarise with intervals (needs the `train` extra)."""

from bandpo.evaluation.evaluate import EvaluationResult, Grade, evaluate
from bandpo.evaluation.sampling import Completion, sample
from bandpo.evaluation.statistics import Estimate, bootstrap_mean, pass_at_k

__all__ = [
    "Completion",
    "Estimate",
    "EvaluationResult",
    "Grade",
    "bootstrap_mean",
    "evaluate",
    "pass_at_k",
    "sample",
]
