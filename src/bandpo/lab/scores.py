"""Numbers of one run, from its record in metrics.json."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from bandpo.evaluation.result import PART
from bandpo.evaluation.statistics import pass_at_k
from bandpo.lab.metrics import FinishedRun, HeldOut

END = 0.1  # share of a run that counts as its end; also the smoothing window of rewards

Array = NDArray[np.float64]


def as_array(series: Sequence[float | None]) -> Array:
    """A series as numbers, NaN for null."""
    return np.asarray(series, dtype=np.float64)


def success(evaluation: HeldOut) -> float:
    """mean@n: share of successes among all samples."""
    return float(np.mean(evaluation.correct) / evaluation.samples)


def pass_at(evaluation: HeldOut, k: int) -> float:
    """pass@k over the held-out problems."""
    problems = np.bincount(evaluation.correct)
    chances = [pass_at_k(evaluation.samples, correct, k) for correct in range(problems.size)]
    return float(np.average(chances, weights=problems))


def final_score(run: FinishedRun, metric: str) -> float:
    """The number that decides: mean, greedy, entropy (or that of a part, as entropy[0:6]) or pass@K
    after training, or the reward at its end.

    Raises:
        ValueError: If the run has no such metric.
    """
    if metric == "reward":
        return float(smoothed_reward(run)[1][-1])
    if run.evaluation is None:
        raise ValueError(f"metric {metric!r} needs an evaluation, and a run of method {run.method!r} has none")
    after = run.evaluation.after
    if metric.startswith("entropy"):
        part = PART.fullmatch(metric)
        value = after.parts.get(part[1]) if part else after.entropy
        if value is None:
            raise ValueError(f"metric {metric!r} is not recorded in a run of method {run.method!r}; see eval.cuts")
        return value
    if metric == "mean":
        return success(after)
    return float(np.mean(after.greedy)) if metric == "greedy" else pass_at(after, int(metric.partition("@")[2]))


def smoothed_reward(run: FinishedRun) -> tuple[Array, Array]:
    """Updates, and the mean reward of the rollouts in the tenth of the run that ends there."""
    reward = as_array(run.rollouts.reward)
    window = max(1, round(END * reward.size))
    steps = as_array(run.rollouts.step)
    return steps[window - 1 :], np.convolve(reward, np.full(window, 1 / window), mode="valid")


def mean_training_reward(run: FinishedRun) -> float:
    """Area under the learning curve (reward of the rollouts over updates) divided by its width."""
    steps, reward = as_array(run.rollouts.step), as_array(run.rollouts.reward)
    if steps.size == 1:
        return float(reward[0])
    return float(np.trapezoid(reward, steps) / (steps[-1] - steps[0]))


def end_entropy(run: FinishedRun) -> float:
    """Mean entropy over the last tenth of the updates, in nats per token."""
    entropy = as_array(run.updates.entropy)
    return float(np.mean(entropy[-max(1, round(END * len(entropy))) :]))


def clip_fraction(run: FinishedRun) -> float | None:
    """Mean share of tokens clipped on either side during training; None if no update reports it."""
    sides = [
        [value for value in side if value is not None]
        for side in (run.updates.clip_fraction_low, run.updates.clip_fraction_high)
    ]
    return float(sum(np.mean(side) for side in sides if side)) if any(sides) else None


def reached_at(run: FinishedRun, level: float) -> int | None:
    """Index of the first rollout whose smoothed reward is at least `level`; None if there is none."""
    steps, reward = smoothed_reward(run)
    above = np.flatnonzero(reward >= level)
    return None if not above.size else int(above[0]) + len(run.rollouts.step) - len(steps)


def compute_at(run: FinishedRun, rollout: int) -> dict[str, float]:
    """Updates, tokens and seconds that the run took until that rollout's reward was known."""
    step = run.rollouts.step[rollout]
    return {
        "updates": float(step),
        "tokens": float(as_array(run.rollouts.tokens)[rollout]),
        "seconds": float(np.interp(step, [0, *run.updates.step], [0, *as_array(run.updates.seconds)])),
    }


def entropy_at(run: FinishedRun, rollout: int) -> float:
    """Entropy at the updates around a rollout, in nats per token."""
    return float(np.interp(run.rollouts.step[rollout], run.updates.step, as_array(run.updates.entropy)))
