"""Statistics of a study, from metrics.json alone: estimates over seeds, paired differences, compute to target.

A seed is the unit: runs of one seed share initial weights and data, so methods are compared seed by seed. Problems
and samples within a run are not independent repetitions of training and enter no interval here.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from bandpo.evaluation.statistics import pass_at_k

CONFIDENCE = 0.95
BOOTSTRAP_FROM = 30  # values
END = 0.1  # share of a run that counts as its end, and over which rewards are smoothed

Array = NDArray[np.float64]


@dataclass(frozen=True)
class Interval:
    """A mean over seeds with its 95% interval; `low` and `high` are None where one value is all there is."""

    mean: float
    low: float | None
    high: float | None


def mean_interval(values: Sequence[float]) -> Interval:
    """Mean with a 95% interval: Student's t below 30 values, from there on the BCa bootstrap.

    Resampling a few values undercovers badly (a percentile bootstrap of 5 covers in about 83% of studies), since
    it knows no spread beyond them; t covers with 2 already. Paired differences are such values too.

    Raises:
        ValueError: If there is no value.
    """
    data = np.asarray(values, dtype=float)
    if not data.size:
        raise ValueError("values is empty; allowed is at least one value")
    mean = float(data.mean())
    if data.size == 1:
        return Interval(mean, None, None)
    if np.ptp(data) == 0:
        return Interval(mean, mean, mean)
    if data.size < BOOTSTRAP_FROM:
        low, high = stats.t.interval(CONFIDENCE, data.size - 1, loc=mean, scale=stats.sem(data))
    else:
        found = stats.bootstrap(
            (data,), np.mean, confidence_level=CONFIDENCE, method="BCa", rng=np.random.default_rng(0)
        ).confidence_interval
        low, high = found.low, found.high
    return Interval(mean, float(low), float(high))


def difference_p(values: Sequence[float], reference: Sequence[float]) -> float | None:
    """Two-sided p of 'no difference' between values paired by seed (paired t); None below 2 pairs."""
    differences = np.asarray(values, dtype=float) - np.asarray(reference, dtype=float)
    if differences.size < 2:
        return None
    if np.ptp(differences) == 0:
        return 1.0 if differences[0] == 0 else 0.0
    return float(stats.ttest_1samp(differences, 0.0).pvalue)


def holm(p: Sequence[float]) -> list[float]:
    """p-values corrected for their number: below a when every false one among them is below a with probability a.

    Source: Holm, Scandinavian Journal of Statistics 6 (1979) 65.
    """
    order = np.argsort(p)
    raised = np.asarray(p, dtype=float)[order] * np.arange(len(p), 0, -1)
    result = np.empty(len(p))
    result[order] = np.minimum(np.maximum.accumulate(raised), 1.0)
    return [float(x) for x in result]


def probability_of_improvement(values: Sequence[float], reference: Sequence[float]) -> float:
    """P(X > Y) + P(X = Y)/2 for a run X of the one and Y of the other method, over all pairs.

    The Mann-Whitney statistic divided by the number of pairs. Source: arXiv 2108.13264 (rliable).
    """
    found = stats.mannwhitneyu(values, reference, method="asymptotic") if _spread(values, reference) else None
    return 0.5 if found is None else float(found.statistic) / (len(values) * len(reference))


def _spread(*samples: Sequence[float]) -> bool:
    return bool(np.ptp(np.concatenate([np.asarray(s, dtype=float) for s in samples])) > 0)


# One run


def success(evaluation: dict[str, Any]) -> float:
    """mean@n: share of successes among all samples."""
    return float(np.mean(evaluation["correct"]) / evaluation["samples"])


def pass_at(evaluation: dict[str, Any], k: int) -> float:
    problems = np.bincount(evaluation["correct"])
    chances = [pass_at_k(evaluation["samples"], correct, k) for correct in range(problems.size)]
    return float(np.average(chances, weights=problems))


def final_score(run: dict[str, Any], metric: str) -> float:
    """The figure that decides: mean, greedy or pass@K after training, or the reward at its end."""
    if metric == "reward":
        return float(smoothed_reward(run)[1][-1])
    after = run["evaluation"]["after"]
    if metric == "mean":
        return success(after)
    return float(np.mean(after["greedy"])) if metric == "greedy" else pass_at(after, int(metric.partition("@")[2]))


def smoothed_reward(run: dict[str, Any]) -> tuple[Array, Array]:
    """Updates, and the mean reward of the rollouts up to there within a tenth of the run."""
    reward = np.asarray(run["rollouts"]["reward"], dtype=float)
    window = max(1, round(END * reward.size))
    steps = np.asarray(run["rollouts"]["step"], dtype=float)
    return steps[window - 1 :], np.convolve(reward, np.full(window, 1 / window), mode="valid")


def learning_area(run: dict[str, Any]) -> float:
    """Area under the rollouts' rewards divided by its width: the mean reward while training."""
    steps = np.asarray(run["rollouts"]["step"], dtype=float)
    reward = np.asarray(run["rollouts"]["reward"], dtype=float)
    if steps.size == 1:
        return float(reward[0])
    return float(np.trapezoid(reward, steps) / (steps[-1] - steps[0]))


def end_entropy(run: dict[str, Any]) -> float:
    """Mean entropy over the last tenth of the updates, in nats a token."""
    entropy = run["updates"]["entropy"]
    return float(np.mean(entropy[-max(1, round(END * len(entropy))) :]))


def clipped_share(run: dict[str, Any]) -> float | None:
    """Mean share of tokens clipped on either side while training; None where no update reports it."""
    sides = [[v for v in run["updates"][side] if v is not None] for side in ("clip_low", "clip_high")]
    return float(sum(np.mean(side) for side in sides if side)) if any(sides) else None


def reached_at(run: dict[str, Any], level: float) -> int | None:
    """Index of the first rollout whose smoothed reward is at least `level`; None if there is none."""
    steps, reward = smoothed_reward(run)
    above = np.flatnonzero(reward >= level)
    return None if not above.size else int(above[0]) + len(run["rollouts"]["step"]) - len(steps)


def compute_at(run: dict[str, Any], rollout: int) -> dict[str, float]:
    """Updates, tokens and seconds that the run took until that rollout's reward was known."""
    step = run["rollouts"]["step"][rollout]
    updates = run["updates"]
    return {
        "updates": float(step),
        "tokens": float(run["rollouts"]["tokens"][rollout]),
        "seconds": float(np.interp(step, [0, *updates["step"]], [0, *updates["seconds"]])),
    }


def entropy_at(run: dict[str, Any], rollout: int) -> float:
    """Entropy at the updates around a rollout, in nats a token."""
    return float(np.interp(run["rollouts"]["step"][rollout], run["updates"]["step"], run["updates"]["entropy"]))


# A study


@dataclass(frozen=True)
class Target:
    """Compute until the smoothed reward reached what the reference's run of the same seed ended at.

    Attributes:
        reached: In how many of the `runs` it did.
        medians: updates, tokens, seconds -> median over runs, those that never got there counted as longer than any;
            None where that is half of them or more.
    """

    reached: int
    runs: int
    medians: dict[str, float | None]


@dataclass(frozen=True)
class MethodResult:
    """What came out for a method at a place of the sweep.

    Attributes:
        seeds: Those whose runs finished.
        final: The study's metric.
        pass_at: k -> pass@k after training; empty without an evaluation.
        area: Mean reward while training.
        clipped: Share of tokens clipped while training; of CISPO, whose tokens keep a gradient, the share of capped
            weights.
        end_entropy, matched_entropy: Nats a token; at the end, and where the smoothed reward first was half-way
            between the reference's start and end (of the same seed), over the runs that got there.
        target: See `Target`; None without a run of the reference to compare with.
        difference, area_difference: final and area minus the reference's, paired by seed; None for the reference
            itself.
        p, p_corrected: That there is no difference; corrected by Holm over the methods of this place.
        area_p, area_p_corrected: The same for the area, a family of its own.
        improvement: Probability that a run of this method ends above one of the reference.
        failed: Runs that failed.
    """

    method: str
    seeds: list[int]
    failed: int
    final: Interval | None = None
    pass_at: dict[int, Interval] | None = None
    area: Interval | None = None
    clipped: Interval | None = None
    end_entropy: Interval | None = None
    matched_entropy: Interval | None = None
    target: Target | None = None
    difference: Interval | None = None
    area_difference: Interval | None = None
    p: float | None = None
    p_corrected: float | None = None
    area_p: float | None = None
    area_p_corrected: float | None = None
    improvement: float | None = None


@dataclass(frozen=True)
class Comparison:
    """All methods at one place of the sweep."""

    point: dict[str, str]
    metric: str
    reference: str
    results: list[MethodResult]


def compare(metrics: dict[str, Any]) -> list[Comparison]:
    """Everything that the final tables show, from the content of metrics.json."""
    study = metrics["study"]
    points: list[dict[str, str]] = []
    for run in metrics["runs"]:
        if run["point"] not in points:
            points.append(run["point"])
    return [
        _compare_point(point, [run for run in metrics["runs"] if run["point"] == point], study) for point in points
    ]


def _compare_point(point: dict[str, str], runs: list[dict[str, Any]], study: dict[str, Any]) -> Comparison:
    methods, reference, metric = study["methods"], study["reference"], study["metric"]
    finished: dict[str, dict[int, dict[str, Any]]] = {label: {} for label in methods}
    failed = dict.fromkeys(methods, 0)
    for run in runs:
        if run["status"] == "finished":
            finished[run["method"]][run["seed"]] = run
        failed[run["method"]] += run["status"] == "failed"
    results = []
    for label in methods:
        own, other = finished[label], finished[reference]
        result = MethodResult(label, sorted(own), failed[label])
        if own:
            result = replace(result, **_own_figures(list(own.values()), metric))
        paired = [(own[seed], other[seed]) for seed in sorted(own.keys() & other.keys())]
        if paired:
            result = replace(result, **_levels(paired))
        if paired and label != reference:
            result = replace(result, **_differences(paired, list(own.values()), list(other.values()), metric))
        results.append(result)
    tested = [i for i, result in enumerate(results) if result.p is not None]
    corrected = holm([results[i].p or 0.0 for i in tested])
    areas = holm([results[i].area_p or 0.0 for i in tested])
    for i, p, area_p in zip(tested, corrected, areas, strict=True):
        results[i] = replace(results[i], p_corrected=p, area_p_corrected=area_p)
    return Comparison(point, metric, reference, results)


def _own_figures(runs: list[dict[str, Any]], metric: str) -> dict[str, Any]:
    after = [run["evaluation"]["after"] for run in runs if run["evaluation"]]
    clipped = [share for run in runs if (share := clipped_share(run)) is not None]
    ks = [2**i for i in range(1, after[0]["samples"].bit_length())] if after else []
    return {
        "final": mean_interval([final_score(run, metric) for run in runs]),
        "pass_at": {k: mean_interval([pass_at(evaluation, k) for evaluation in after]) for k in ks},
        "area": mean_interval([learning_area(run) for run in runs]),
        "clipped": mean_interval(clipped) if clipped else None,
        "end_entropy": mean_interval([end_entropy(run) for run in runs]),
    }


def _levels(paired: list[tuple[dict[str, Any], dict[str, Any]]]) -> dict[str, Any]:
    """Where runs reached levels of reward that the reference's runs set."""
    costs: list[dict[str, float] | None] = []
    entropies = []
    for run, other in paired:
        reward = smoothed_reward(other)[1]
        target = reached_at(run, float(reward[-1]))
        costs.append(None if target is None else compute_at(run, target))
        halfway = reached_at(run, float(reward[0] + reward[-1]) / 2)
        entropies += [] if halfway is None else [entropy_at(run, halfway)]
    medians = {
        kind: _censored_median([None if c is None else c[kind] for c in costs])
        for kind in ("updates", "tokens", "seconds")
    }
    return {
        "target": Target(sum(c is not None for c in costs), len(costs), medians),
        "matched_entropy": mean_interval(entropies) if entropies else None,
    }


def _censored_median(values: Sequence[float | None]) -> float | None:
    median = float(np.median([np.inf if value is None else value for value in values]))
    return median if np.isfinite(median) else None


def _differences(
    paired: list[tuple[dict[str, Any], dict[str, Any]]],
    runs: list[dict[str, Any]],
    others: list[dict[str, Any]],
    metric: str,
) -> dict[str, Any]:
    values, base = ([final_score(pair[side], metric) for pair in paired] for side in (0, 1))
    areas, area_base = ([learning_area(pair[side]) for pair in paired] for side in (0, 1))
    return {
        "difference": mean_interval([a - b for a, b in zip(values, base, strict=True)]),
        "p": difference_p(values, base),
        "area_difference": mean_interval([a - b for a, b in zip(areas, area_base, strict=True)]),
        "area_p": difference_p(areas, area_base),
        "improvement": probability_of_improvement(
            [final_score(run, metric) for run in runs], [final_score(run, metric) for run in others]
        ),
    }
