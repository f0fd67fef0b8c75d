"""Estimates over prompts."""

from __future__ import annotations

from dataclasses import dataclass
from math import comb

import numpy as np


@dataclass(frozen=True)
class Estimate:
    """A mean over prompts with its 95% bootstrap interval."""

    mean: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.mean:.3f} [{self.low:.3f}, {self.high:.3f}]"


def pass_at_k(samples: int, correct: int, k: int) -> float:
    """Unbiased probability that at least one of k samples is correct: 1 - C(n - c, k) / C(n, k).

    Source: arXiv 2107.03374, eq. 1.

    Raises:
        ValueError: If k is not within 1 .. samples, or correct not within 0 .. samples.
    """
    if not 1 <= k <= samples:
        raise ValueError(f"k is {k}; allowed: 1 to {samples}, the number of samples")
    if not 0 <= correct <= samples:
        raise ValueError(f"correct is {correct}; allowed: 0 to {samples}, the number of samples")
    return 1 - comb(samples - correct, k) / comb(samples, k)


def bootstrap_mean(values: list[float], resamples: int = 2000, seed: int = 0) -> Estimate:
    """Mean of per-prompt values with a 95% percentile-bootstrap interval over prompts.

    Raises:
        ValueError: If values is empty.
    """
    from scipy.stats import bootstrap

    if not values:
        raise ValueError("values is empty; allowed: at least one prompt")
    data = np.asarray(values, dtype=float)
    mean = float(data.mean())
    if np.ptp(data) == 0:  # scipy would warn of a degenerate distribution
        return Estimate(mean, mean, mean)
    interval = bootstrap(
        (data,), np.mean, n_resamples=resamples, method="percentile", rng=np.random.default_rng(seed)
    ).confidence_interval
    return Estimate(mean, float(interval.low), float(interval.high))
