"""Clip rules: for each sampled token, how far may its probability ratio move?

A rule is anything with `bounds(old_logps)` and `inside(logps, old_logps)`; the loss and the trainer ask
nothing else of it. A new rule is one frozen dataclass here, and one line in `RULES` if it is to be
called by name.
"""

from __future__ import annotations

import math
import sys
from abc import ABC, abstractmethod
from dataclasses import dataclass, fields
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor

from bandpo.core.band import RatioBounds, band, inside
from bandpo.core.checks import DEFAULT_RADIUS, Radius, as_work_dtype, check_radius
from bandpo.core.divergences import FDivergence, get_divergence
from bandpo.words import nearest


@runtime_checkable
class ClipRule(Protocol):
    """What the loss needs of a rule. Shapes are those of `old_logps`, usually (B, T)."""

    def bounds(self, old_logps: Tensor) -> RatioBounds:
        """Bounds of the ratio r = pi_new/pi_old for tokens of old log-probability `old_logps`."""
        ...

    def inside(self, logps: Tensor, old_logps: Tensor) -> Tensor:
        """Boolean tensor: the ratio exp(logps - old_logps) lies within the bounds (edges included)."""
        ...


class _BoundsRule(ABC):
    """Rules whose bounds cost next to nothing decide membership by comparing with them."""

    @abstractmethod
    def bounds(self, old_logps: Tensor) -> RatioBounds: ...

    def inside(self, logps: Tensor, old_logps: Tensor) -> Tensor:
        bounds = self.bounds(old_logps)
        ratio = (as_work_dtype(logps) - as_work_dtype(old_logps)).exp()
        return (ratio >= bounds.lower) & (ratio <= bounds.upper)


def _check_number(owner: str, name: str, value: float, low: float, high: float, allowed: str) -> None:
    if not isinstance(value, (int, float)) or isinstance(value, bool) or not low <= value <= high:
        raise ValueError(f"{owner}: {name} is {value!r}, allowed is {allowed}")


@dataclass(frozen=True)
class NoClip(_BoundsRule):
    """No trust region: every ratio is inside. The control that shows what a rule contributes."""

    def bounds(self, old_logps: Tensor) -> RatioBounds:
        shape = as_work_dtype(old_logps)
        return RatioBounds(torch.full_like(shape, -math.inf), torch.full_like(shape, math.inf))


@dataclass(frozen=True)
class Clip(_BoundsRule):
    """Fixed interval [1 - low, 1 + high], whatever the probability.

    PPO and GRPO use low = high = 0.2 (arXiv 1707.06347); DAPO's Clip-Higher is Clip(0.2, 0.28)
    (arXiv 2503.14476).
    """

    low: float = 0.2
    high: float = 0.2

    def __post_init__(self) -> None:
        _check_number("Clip", "low", self.low, 0.0, 1.0, "a number from 0 to 1")
        _check_number("Clip", "high", self.high, 0.0, math.inf, "a number >= 0")

    def bounds(self, old_logps: Tensor) -> RatioBounds:
        shape = as_work_dtype(old_logps)
        return RatioBounds.from_ratios(torch.full_like(shape, 1 - self.low), torch.full_like(shape, 1 + self.high))


@dataclass(frozen=True)
class DCPO(_BoundsRule):
    """Dynamic adaptive clipping (arXiv 2509.02333): bounds that widen as the old probability p falls.

    lower = 1/2 + 1/2 sqrt(max(1 - 4 low/p, 0)),  upper = min(1/2 + 1/2 sqrt(1 + 4 high/p), cap).
    The lower bound never falls below 1/2, and the simplex edge r <= 1/p plays no part.
    """

    low: float = 0.16
    high: float = 0.20
    cap: float | None = 10.0

    def __post_init__(self) -> None:
        _check_number("DCPO", "low", self.low, 0.0, 1.0, "a number from 0 to 1")
        _check_number("DCPO", "high", self.high, 0.0, math.inf, "a number >= 0")
        _check_cap_and_floor("DCPO", self.cap, None)

    def bounds(self, old_logps: Tensor) -> RatioBounds:
        inverse_p = (-as_work_dtype(old_logps)).exp()
        lower = 0.5 + 0.5 * (1 - 4 * self.low * inverse_p).clamp(min=0).sqrt()
        upper = 0.5 + 0.5 * (1 + 4 * self.high * inverse_p).sqrt()
        return RatioBounds.from_ratios(lower, upper if self.cap is None else upper.clamp(max=self.cap))


@dataclass(frozen=True)
class Band(ClipRule):
    """BandPO (arXiv 2603.04918): the trust region {pi : D_f <= radius} projected onto each sampled token.

    `inside` evaluates the binary divergence once and solves nothing; `bounds` solves for both ends.

    Args:
        radius: Size of the trust region, in the divergence's own units (nats for KL): a float, a tensor that
            broadcasts to the log-probs (per token), or a pair (lower side, upper side) of these.
        divergence: A name ("kl" is KL(old || new)) or an `FDivergence`.
        cap: Largest ratio allowed whatever the radius says, or None. The paper's runs used 10, which
            overrides the trust region for tokens of probability below .007.
        floor: Smallest lower bound, or None.

    Raises:
        ValueError: If radius is not positive and finite, the divergence is unknown, cap < 1, or floor is
            not within [0, 1].
    """

    radius: Radius = DEFAULT_RADIUS
    divergence: str | FDivergence = "kl"
    cap: float | None = None
    floor: float | None = None

    def __post_init__(self) -> None:
        if isinstance(self.radius, list):  # what YAML and JSON make of a pair
            object.__setattr__(self, "radius", tuple(self.radius))
        check_radius(self.radius)
        get_divergence(self.divergence)
        _check_cap_and_floor("Band", self.cap, self.floor)

    def bounds(self, old_logps: Tensor) -> RatioBounds:
        bounds = band(old_logps, radius=self.radius, divergence=self.divergence)
        log_lower, log_upper = bounds.log_lower, bounds.log_upper
        if self.floor is not None:
            log_lower = log_lower.clamp(min=_log(self.floor))
        if self.cap is not None:
            log_upper = log_upper.clamp(max=_log(self.cap))
        return RatioBounds(log_lower, log_upper)

    def inside(self, logps: Tensor, old_logps: Tensor) -> Tensor:
        result = inside(logps, old_logps, radius=self.radius, divergence=self.divergence)
        if self.cap is None and self.floor is None:
            return result
        log_ratio = as_work_dtype(logps) - as_work_dtype(old_logps)
        if self.cap is not None:
            result = result & (log_ratio <= _log(self.cap))
        if self.floor is not None:
            result = result & (log_ratio >= _log(self.floor))
        return result


@dataclass(frozen=True)
class AdaptiveBand(ClipRule):
    """Band with a radius of its own for each token, in proportion to how surprising the token was.

    radius_t = radius * clamp(-ln(p_t) / reference, smallest, largest), with p_t the token's old probability. Tokens
    that the old policy was all but sure of get a tight trust region, rare ones a wide one; a token of surprisal
    `reference` gets what Band gives it. An old probability of 0 has the largest radius.

    The paper leaves a radius that adapts per token to future work (arXiv 2603.04918); this form is ours. It needs
    the old log-probs alone, so every framework that has a Band has it, and it has no state.

    Args:
        radius, divergence, cap, floor: As Band's; `radius` a number, or a pair (lower side, upper side).
        reference: Surprisal in nats at which the radius is `radius`.
        smallest, largest: Limits of the factor.

    Raises:
        ValueError: As Band, or if the limits are not 0 < smallest <= largest, or reference is not above 0.
    """

    radius: float | tuple[float, float] = DEFAULT_RADIUS
    divergence: str | FDivergence = "kl"
    cap: float | None = None
    floor: float | None = None
    reference: float = 1.0
    smallest: float = 0.1
    largest: float = 3.0

    def __post_init__(self) -> None:
        if isinstance(self.radius, list):
            object.__setattr__(self, "radius", tuple(self.radius))
        Band(self.radius, self.divergence, self.cap, self.floor)
        tiny = sys.float_info.min
        _check_number("AdaptiveBand", "reference", self.reference, tiny, sys.float_info.max, "a finite number > 0")
        _check_number("AdaptiveBand", "largest", self.largest, tiny, sys.float_info.max, "a finite number > 0")
        _check_number("AdaptiveBand", "smallest", self.smallest, tiny, self.largest, f"> 0 and <= {self.largest}")

    def at(self, old_logps: Tensor) -> Band:
        """The Band of these tokens: its radii have the shape of `old_logps`."""
        surprisal = -as_work_dtype(old_logps.detach())
        factor = (surprisal / self.reference).clamp(self.smallest, self.largest)
        radius = self.radius
        radii = (factor * radius[0], factor * radius[1]) if isinstance(radius, tuple) else factor * radius
        return Band(radii, self.divergence, self.cap, self.floor)

    def bounds(self, old_logps: Tensor) -> RatioBounds:
        return self.at(old_logps).bounds(old_logps)

    def inside(self, logps: Tensor, old_logps: Tensor) -> Tensor:
        return self.at(old_logps).inside(logps, old_logps)


def _log(value: float) -> float:
    return math.log(value) if value > 0 else -math.inf


def _check_cap_and_floor(owner: str, cap: float | None, floor: float | None) -> None:
    if cap is not None:
        _check_number(owner, "cap", cap, 1.0, math.inf, "None or a number >= 1")
    if floor is not None:
        _check_number(owner, "floor", floor, 0.0, 1.0, "None or a number from 0 to 1")


RULES: dict[str, type[ClipRule]] = {
    "band": Band,
    "adaptive-band": AdaptiveBand,
    "clip": Clip,
    "dcpo": DCPO,
    "none": NoClip,
}


def make_rule(name: str, **options: Any) -> ClipRule:
    """Build a rule from its name and options, as a recipe or a command line states them.

    Raises:
        ValueError: For an unknown name or option (the nearest valid one is named), or a bad value.
    """
    if name not in RULES:
        raise ValueError(f"unknown clip rule {name!r}{nearest(name, RULES)}; known rules: {', '.join(RULES)}")
    known = [field.name for field in fields(RULES[name])]  # type: ignore[arg-type]
    for option in options:
        if option not in known:
            raise ValueError(
                f"clip rule {name!r} has no option {option!r}{nearest(option, known)}; "
                f"it takes: {', '.join(known) or 'none'}"
            )
    return RULES[name](**options)
