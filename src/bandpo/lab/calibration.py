"""Matched controls: a setting chosen by pilot runs so that a figure equals that of another method."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from bandpo.lab.study import Match, Pilot

Trials = Sequence[tuple[float, float]]  # (value of the setting, figure of its pilot run)


def next_values(match: Match, pilot: Pilot, target: float, trials: Trials) -> list[float]:
    """Values to try next; none when the search is over.

    Both ends of the range first, then bisection on a logarithmic scale of a figure that falls as the setting rises.
    The answer depends on the arguments alone, so an interrupted search goes on as it would have.
    """
    known = dict(trials)
    low, high = match.range
    ends = [value for value in match.range if value not in known]
    near = any(abs(figure - target) <= pilot.tolerance * target for figure in known.values())
    if ends or near or known[low] < target or known[high] > target:
        return ends
    for _ in range(pilot.trials):
        middle = float(f"{math.sqrt(low * high):.4g}")
        if middle not in known:
            return [middle]
        low, high = (middle, high) if known[middle] > target else (low, middle)
    return []


def closest(target: float, trials: Trials) -> tuple[float, float]:
    """The value whose figure is nearest to the target, with that figure."""
    return min(trials, key=lambda trial: abs(trial[1] - target))


def describe(match: Match, target: float, trials: Trials, over: bool) -> dict[str, Any]:
    """A search as calibration.json keeps it; without `value` while it is not over."""
    found: dict[str, Any] = {
        "keys": match.keys,
        "metric": match.metric,
        "matches": match.method,
        "target": target,
        "pilots": [list(trial) for trial in sorted(trials)],
    }
    if over:
        found["value"], found["reached"] = closest(target, sorted(trials))
    return found
