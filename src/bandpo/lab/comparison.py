"""The comparison of a study: every number in its final tables, computed only from metrics.json."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import astuple, dataclass, field, replace

import numpy as np

from bandpo.lab.metrics import FinishedRun, RunResult, StudyResult
from bandpo.lab.scores import (
    clip_fraction,
    compute_at,
    end_entropy,
    entropy_at,
    final_score,
    mean_training_reward,
    pass_at,
    reached_at,
    smoothed_reward,
)
from bandpo.lab.statistics import Interval, difference_p, holm, mean_interval, probability_of_improvement

COMPUTE = ("updates", "tokens", "seconds")
Pairs = Sequence[tuple[FinishedRun, FinishedRun]]  # (run of a method, run of the reference with the same seed)


@dataclass(frozen=True)
class Target:
    """Compute until the smoothed reward reached the final reward of the reference's run of the same seed.

    Attributes:
        reached: How many of the `runs` did.
        medians: updates, tokens, seconds -> median over runs, where runs that never got there count as longer than
            any; None if they are half or more.
        ratios: updates, tokens, seconds -> compute over that of the reference's run of the same seed, as geometric
            mean over seeds; None unless every run got there, because a mean over those that did would be biased.
    """

    reached: int
    runs: int
    medians: dict[str, float | None]
    ratios: dict[str, Interval | None] = field(default_factory=dict)


@dataclass(frozen=True)
class MethodResult:
    """The results of a method at one point of the sweep.

    Attributes:
        seeds: Those whose runs finished.
        failed: Runs that failed.
        final: The study's metric.
        pass_at: k -> pass@k after training; empty without an evaluation.
        training_reward: Mean reward while training.
        clip_fraction: Share of tokens clipped while training; for CISPO, whose tokens keep a gradient, the share of
            capped weights.
        end_entropy, halfway_entropy: Nats per token; at the end, and where the smoothed reward was first half-way
            between the reference's start and end (of the same seed), over the runs that got there.
        distinct, spread: Different right answers among a problem's samples, and their entropy in nats.
        parts: Token positions of the held-out completions -> entropy there, in nats per token.
        target: See `Target`; None without a run of the reference to compare with.
        difference, training_reward_difference: final and training_reward minus the reference's, paired by seed; None
            for the reference itself.
        p, p_corrected: p-value of 'no difference'; corrected by Holm over the methods of this point.
        training_reward_p, training_reward_p_corrected: The same for the mean training reward, a separate family.
        improvement: Probability that a run of this method ends above one of the reference.
    """

    method: str
    seeds: list[int]
    failed: int
    final: Interval | None = None
    pass_at: dict[int, Interval] | None = None
    training_reward: Interval | None = None
    clip_fraction: Interval | None = None
    end_entropy: Interval | None = None
    halfway_entropy: Interval | None = None
    distinct: Interval | None = None
    spread: Interval | None = None
    parts: dict[str, Interval] | None = None
    target: Target | None = None
    difference: Interval | None = None
    training_reward_difference: Interval | None = None
    p: float | None = None
    p_corrected: float | None = None
    training_reward_p: float | None = None
    training_reward_p_corrected: float | None = None
    improvement: float | None = None


@dataclass(frozen=True)
class Comparison:
    """All methods at one point of the sweep.

    Attributes:
        point: Axis -> label; empty without a sweep.
        metric: The study's metric in common notation.
        reference: Label of the method that the others are compared with.
        results: One per method, in the study's order.
    """

    point: dict[str, str]
    metric: str
    reference: str
    results: list[MethodResult]


def compare(result: StudyResult) -> list[Comparison]:
    """The comparison at every point of the sweep."""
    points: list[dict[str, str]] = []
    for run in result.runs:
        if run.point not in points:
            points.append(run.point)
    return [_compare_point(result, point, [run for run in result.runs if run.point == point]) for point in points]


def _compare_point(whole: StudyResult, point: dict[str, str], runs: list[RunResult]) -> Comparison:
    study = whole.study
    finished: dict[str, dict[int, FinishedRun]] = {label: {} for label in study.methods}
    failed = dict.fromkeys(study.methods, 0)
    for run in runs:
        if isinstance(run, FinishedRun):
            finished[run.method][run.seed] = run
        failed[run.method] += run.status == "failed"
    others = finished[study.reference]
    results = []
    for label, of_seed in finished.items():
        result = MethodResult(label, sorted(of_seed), failed[label])
        pairs = [(of_seed[seed], others[seed]) for seed in sorted(of_seed.keys() & others.keys())]
        if of_seed:
            result = _with_scores(result, list(of_seed.values()), study.metric)
        if pairs:
            result = _with_levels(result, pairs)
        if pairs and label != study.reference:
            result = _with_differences(result, pairs, study.metric)
            result = replace(
                result,
                improvement=probability_of_improvement(
                    *([final_score(run, study.metric) for run in group.values()] for group in (of_seed, others))
                ),
            )
        results.append(result)
    return Comparison(point, whole.metric, study.reference, _corrected(results))


def _corrected(results: list[MethodResult]) -> list[MethodResult]:
    """With p-values corrected over the methods that have one."""
    tested = [i for i, result in enumerate(results) if result.p is not None]
    final = holm([results[i].p or 0.0 for i in tested])
    training = holm([results[i].training_reward_p or 0.0 for i in tested])
    corrected = list(results)
    for i, p, training_p in zip(tested, final, training, strict=True):
        corrected[i] = replace(results[i], p_corrected=p, training_reward_p_corrected=training_p)
    return corrected


def _with_scores(result: MethodResult, runs: list[FinishedRun], metric: str) -> MethodResult:
    after = [run.evaluation.after for run in runs if run.evaluation]
    clipped = [share for run in runs if (share := clip_fraction(run)) is not None]
    ks = [2**i for i in range(1, after[0].samples.bit_length())] if after else []
    return replace(
        result,
        final=mean_interval([final_score(run, metric) for run in runs]),
        pass_at={k: mean_interval([pass_at(evaluation, k) for evaluation in after]) for k in ks},
        training_reward=mean_interval([mean_training_reward(run) for run in runs]),
        clip_fraction=mean_interval(clipped) if clipped else None,
        end_entropy=mean_interval([end_entropy(run) for run in runs]),
        distinct=_interval_of([one.distinct for one in after]),
        spread=_interval_of([one.spread for one in after]),
        parts={
            part: mean_interval([one.parts[part] for one in after if part in one.parts])
            for part in dict.fromkeys(part for one in after for part in one.parts)
        },
    )


def _interval_of(values: Sequence[float | None]) -> Interval | None:
    known = [value for value in values if value is not None]
    return mean_interval(known) if known else None


def _with_levels(result: MethodResult, pairs: Pairs) -> MethodResult:
    """Where runs reached the reward levels of the reference's runs."""
    costs: list[dict[str, float] | None] = []
    of_reference: list[dict[str, float]] = []
    entropies = []
    for run, other in pairs:
        reward = smoothed_reward(other)[1]
        target, own = (reached_at(one, float(reward[-1])) for one in (run, other))
        costs.append(None if target is None else compute_at(run, target))
        assert own is not None  # at its end at the latest
        of_reference.append(compute_at(other, own))
        halfway = reached_at(run, float(reward[0] + reward[-1]) / 2)
        entropies += [] if halfway is None else [entropy_at(run, halfway)]
    medians = {kind: _censored_median([None if cost is None else cost[kind] for cost in costs]) for kind in COMPUTE}
    ratios = {kind: _ratio(costs, of_reference, kind) for kind in COMPUTE}
    return replace(
        result,
        target=Target(sum(cost is not None for cost in costs), len(costs), medians, ratios),
        halfway_entropy=mean_interval(entropies) if entropies else None,
    )


def _ratio(
    costs: Sequence[dict[str, float] | None], of_reference: Sequence[dict[str, float]], kind: str
) -> Interval | None:
    """See `Target.ratios`; the interval is that of the mean logarithm."""
    pairs = [(None if a is None else a[kind], b[kind]) for a, b in zip(costs, of_reference, strict=True)]
    logs = [float(np.log(a / b)) for a, b in pairs if a and b]
    if len(logs) < len(pairs):
        return None
    mean, low, high = (None if x is None else float(np.exp(x)) for x in astuple(mean_interval(logs)))
    assert mean is not None
    return Interval(mean, low, high)


def _censored_median(values: Sequence[float | None]) -> float | None:
    median = float(np.median([np.inf if value is None else value for value in values]))
    return median if np.isfinite(median) else None


def _with_differences(result: MethodResult, pairs: Pairs, metric: str) -> MethodResult:
    final, final_base = ([final_score(pair[side], metric) for pair in pairs] for side in (0, 1))
    training, training_base = ([mean_training_reward(pair[side]) for pair in pairs] for side in (0, 1))
    return replace(
        result,
        difference=mean_interval([a - b for a, b in zip(final, final_base, strict=True)]),
        p=difference_p(final, final_base),
        training_reward_difference=mean_interval([a - b for a, b in zip(training, training_base, strict=True)]),
        training_reward_p=difference_p(training, training_base),
    )
