"""Evaluation: sample completions, grade them, summarise with intervals (needs the `train` extra)."""

from bandpo.evaluation.evaluate import EvaluationResult, evaluate_into
from bandpo.evaluation.sampling import Completion, sample
from bandpo.evaluation.statistics import Estimate, bootstrap_mean, pass_at_k
from bandpo.evaluation.store import Grade

__all__ = [
    "Completion",
    "Estimate",
    "EvaluationResult",
    "Grade",
    "bootstrap_mean",
    "evaluate_into",
    "pass_at_k",
    "sample",
]
