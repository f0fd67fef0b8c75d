"""The rules that Band is compared with: fixed intervals, and those of other papers."""

from __future__ import annotations

import math
import sys
from dataclasses import dataclass

import torch
from torch import Tensor

from bandpo.core.band import RatioBounds
from bandpo.core.checks import DEFAULT_RADIUS, as_work_dtype, check_cap_and_floor, check_number
from bandpo.core.rules import ClipRule, safe_log
from bandpo.core.tokens import Tokens


def _interval(old_logps: Tensor, lower: float, upper: float) -> RatioBounds:
    """The same bounds for every token; one number each, expanded."""
    like = as_work_dtype(old_logps)

    def everywhere(value: float) -> Tensor:
        return torch.full((), value, dtype=like.dtype, device=like.device).expand(like.shape)

    return RatioBounds(
        everywhere(safe_log(lower)),
        everywhere(safe_log(upper)),
        (everywhere(lower), everywhere(upper)),
    )


@dataclass(frozen=True)
class NoClip(ClipRule):
    """No trust region: every ratio is inside. The control that shows what a rule contributes."""

    def limits(self, tokens: Tokens) -> RatioBounds:
        return _interval(tokens.old_logps, 0.0, math.inf)


@dataclass(frozen=True)
class Clip(ClipRule):
    """Fixed interval [1 - low, 1 + high], whatever the probability.

    PPO and GRPO use low = high = 0.2 (arXiv 1707.06347); DAPO's Clip-Higher is Clip(0.2, 0.28)
    (arXiv 2503.14476).

    Args:
        low: Distance of the lower bound from 1, from 0 to 1.
        high: Distance of the upper bound from 1, >= 0.

    Raises:
        ValueError: If low or high is out of range.
    """

    low: float = 0.2
    high: float = 0.2

    def __post_init__(self) -> None:
        check_number("Clip", "low", self.low, 0.0, 1.0, "a number from 0 to 1")
        check_number("Clip", "high", self.high, 0.0, math.inf, "a number >= 0")

    def limits(self, tokens: Tokens) -> RatioBounds:
        return _interval(tokens.old_logps, 1 - self.low, 1 + self.high)


@dataclass(frozen=True)
class DCPO(ClipRule):
    """Dynamic adaptive clipping (arXiv 2509.02333): bounds that widen as the old probability p falls.

    lower = 1/2 + 1/2 sqrt(max(1 - 4 low/p, 0)),  upper = min(1/2 + 1/2 sqrt(1 + 4 high/p), cap).
    The lower bound never falls below 1/2, and the simplex edge r <= 1/p plays no part.

    Args:
        low, high: Budgets of the two sides, in units of p |r (r - 1)|; low from 0 to 1, high >= 0.
        cap: Largest ratio allowed, or None.

    Raises:
        ValueError: If a number is out of range.
    """

    low: float = 0.16
    high: float = 0.20
    cap: float | None = 10.0

    def __post_init__(self) -> None:
        check_number("DCPO", "low", self.low, 0.0, 1.0, "a number from 0 to 1")
        check_number("DCPO", "high", self.high, 0.0, math.inf, "a number >= 0")
        check_cap_and_floor("DCPO", self.cap, None)

    def limits(self, tokens: Tokens) -> RatioBounds:
        inverse_p = (-as_work_dtype(tokens.old_logps)).exp()
        lower = 0.5 + 0.5 * (1 - 4 * self.low * inverse_p).clamp(min=0).sqrt()
        return RatioBounds.from_ratios(lower, 0.5 + 0.5 * (1 + 4 * self.high * inverse_p).sqrt())


@dataclass(frozen=True)
class RIPO(ClipRule):
    """Bounds 1 -+ sqrt(radius / p), the lower one at least 0 (arXiv 2607.10169), p the old probability.

    Band's chi-squared ball without its factor 1 - p: the two part only for likely tokens.

    Args:
        radius: Size of the trust region, in units of p (r - 1)^2.

    Raises:
        ValueError: If radius is not above 0 and finite.
    """

    radius: float = DEFAULT_RADIUS
    divergence = "chi2"

    def __post_init__(self) -> None:
        check_number("RIPO", "radius", self.radius, sys.float_info.min, sys.float_info.max, "a finite number > 0")

    def limits(self, tokens: Tokens) -> RatioBounds:
        reach = math.sqrt(self.radius) * (-0.5 * as_work_dtype(tokens.old_logps)).exp()
        return RatioBounds.from_ratios((1 - reach).clamp(min=0), 1 + reach)
