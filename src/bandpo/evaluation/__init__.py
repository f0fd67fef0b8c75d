"""Evaluation: sample completions, grade them, summarize with intervals (needs the `train` extra)."""

from typing import TYPE_CHECKING

from bandpo.lazy import lazy

if TYPE_CHECKING:
    from bandpo.evaluation.evaluate import Evaluation, evaluate_into
    from bandpo.evaluation.result import EvaluationResult
    from bandpo.evaluation.sampling import Completion, Sampling, sample
    from bandpo.evaluation.statistics import Estimate, bootstrap_mean, pass_at_k
    from bandpo.evaluation.store import Grade

__all__ = [
    "Completion",
    "Estimate",
    "Evaluation",
    "EvaluationResult",
    "Grade",
    "Sampling",
    "bootstrap_mean",
    "evaluate_into",
    "pass_at_k",
    "sample",
]

__getattr__, __dir__ = lazy(
    __name__,
    {
        "bandpo.evaluation.evaluate": ("Evaluation", "evaluate_into"),
        "bandpo.evaluation.result": ("EvaluationResult",),
        "bandpo.evaluation.sampling": ("Completion", "Sampling", "sample"),
        "bandpo.evaluation.statistics": ("Estimate", "bootstrap_mean", "pass_at_k"),
        "bandpo.evaluation.store": ("Grade",),
    },
)
