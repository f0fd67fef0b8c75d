"""Matched controls: a setting chosen by pilot runs so that a metric matches another method's."""

from __future__ import annotations

import math
from collections.abc import Sequence

from bandpo.lab.metrics import Calibration
from bandpo.lab.study import Match, Pilot

Trials = Sequence[tuple[float, float]]  # (value of the setting, metric of its pilot run)


def next_values(match: Match, pilot: Pilot, target: float, trials: Trials) -> list[float]:
    """Values to try next; none if the search is over.

    Both ends of the range first, then bisection on a logarithmic scale of a metric that falls, or rises, with the
    setting. The result depends only on the arguments, so an interrupted search resumes without a difference.
    """
    known = dict(trials)
    low, high = match.range
    ends = [value for value in match.range if value not in known]
    near = any(abs(metric - target) <= pilot.tolerance * target for metric in known.values())
    if ends or near or not min(known[low], known[high]) <= target <= max(known[low], known[high]):
        return ends
    falls = known[low] > known[high]
    for _ in range(pilot.trials):
        middle = float(f"{math.sqrt(low * high):.4g}")
        if middle not in known:
            return [middle]
        low, high = (middle, high) if (known[middle] > target) == falls else (low, middle)
    return []


def closest(target: float, trials: Trials) -> tuple[float, float]:
    """The value whose metric is nearest to the target, with that metric."""
    return min(trials, key=lambda trial: abs(trial[1] - target))


def conclude(match: Match, target: float, trials: Trials, over: bool) -> Calibration:
    """The state of a search; without `value` until it is over."""
    pilots = sorted(trials)
    value, reached = closest(target, pilots) if over else (None, None)
    return Calibration(
        keys=match.keys,
        metric=match.metric,
        matches=match.method,
        target=target,
        pilots=pilots,
        value=value,
        reached=reached,
    )
