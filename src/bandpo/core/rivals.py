"""The rules that Band is compared with: fixed intervals, and rules of other papers."""

from __future__ import annotations

import math
import sys
from dataclasses import dataclass

import torch
from torch import Tensor

from bandpo.core.band import RatioBounds, band
from bandpo.core.checks import DEFAULT_RADIUS, Radius, as_work_dtype, check_cap_and_floor, check_number
from bandpo.core.divergences import FDivergence, get_divergence
from bandpo.core.rules import Band, ClipRule, safe_log
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


def _check_positive(rule: ClipRule, name: str) -> None:
    value = getattr(rule, name)
    check_number(type(rule).__name__, name, value, sys.float_info.min, sys.float_info.max, "a finite number > 0")


@dataclass(frozen=True)
class NoClip(ClipRule):
    """No trust region: every ratio in [0, inf] is inside. The control that shows what a rule contributes.

    Examples:
        >>> NoClip().inside(torch.tensor([-1.0]), torch.tensor([-9.0]))
        tensor([True])
    """

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

    Examples:
        >>> Clip(0.2, 0.28).bounds(torch.tensor([0.01, 0.9]).log()).upper
        tensor([1.2800, 1.2800])
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
    The lower bound never falls below 1/2, and the simplex edge r <= 1/p is not enforced.

    Args:
        low, high: Budgets of the two sides, in units of p |r (r - 1)|; low from 0 to 1, high >= 0.
        cap: Largest ratio allowed, or None.

    Raises:
        ValueError: If a number is out of range.

    Examples:
        >>> DCPO().bounds(torch.tensor([0.01, 0.9]).log()).upper
        tensor([5.0000, 1.1872])
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

    Band's chi-squared ball without its factor 1 - p: the two differ only for likely tokens.

    Args:
        radius: Size of the trust region, in units of p (r - 1)^2.

    Raises:
        ValueError: If radius is not above 0 and finite.

    Examples:
        >>> RIPO(radius=0.05).bounds(torch.tensor([0.01, 0.9]).log()).upper
        tensor([3.2361, 1.2357])
    """

    radius: float = DEFAULT_RADIUS
    divergence = "chi2"

    def __post_init__(self) -> None:
        _check_positive(self, "radius")

    def limits(self, tokens: Tokens) -> RatioBounds:
        reach = math.sqrt(self.radius) * (-0.5 * as_work_dtype(tokens.old_logps)).exp()
        return RatioBounds.from_ratios((1 - reach).clamp(min=0), 1 + reach)


@dataclass(frozen=True, eq=False)
class IPO(Band):
    """The mask of prime-rl's IPO: a token whose probability has moved by more than `radius` loses its gradient.

    |p_new - p_old| <= radius whatever the sign of the advantage (prime-rl #1930, #3418), that is, Band with "tv" as a
    two-sided mask. prime-rl takes p_old from the sampler's log-probs (`anchor="sampler"` in TRL), and adds
    0.001 (log r)^2 over all tokens, which is not part of a clip rule.

    Args:
        radius, divergence, cap, floor, table: As Band's.

    Raises:
        ValueError: As Band.

    Examples:
        >>> IPO().inside(torch.tensor([0.15, 0.85]).log(), torch.tensor([0.01, 0.80]).log())
        tensor([False,  True])
    """

    two_sided = True
    radius: Radius = 0.1
    divergence: str | FDivergence = "tv"


@dataclass(frozen=True)
class ESTR(ClipRule):
    """Entropy-scaled mask: (log r)^2 <= threshold (H + epsilon) (arXiv 2607.22186), H the old policy's entropy.

    Bounds exp(-+sqrt(threshold (H + epsilon))), as a two-sided mask. The paper uses the sampler's entropy and clips
    the tokens it keeps as PPO does; this is the mask alone. Its settings are not public: with the defaults, which are
    ours, a token of H = 1 nat has about the bounds of Clip(0.2, 0.2).

    Args:
        threshold: Largest (log r)^2 per nat of entropy.
        epsilon: Entropy in nats added to every token's.

    Raises:
        ValueError: If a number is not above 0 and finite, or the tokens come without `old_entropy`.

    Examples:
        >>> from bandpo import Tokens
        >>> ESTR().bounds(Tokens(torch.tensor([-1.0, -1.0]), old_entropy=torch.tensor([0.1, 2.0]))).upper
        tensor([1.0686, 1.3278])
    """

    threshold: float = 0.04
    epsilon: float = 0.01
    needs = frozenset({"old_entropy"})
    two_sided = True

    def __post_init__(self) -> None:
        _check_positive(self, "threshold")
        _check_positive(self, "epsilon")

    def limits(self, tokens: Tokens) -> RatioBounds:
        assert tokens.old_entropy is not None
        old, entropy = as_work_dtype(tokens.old_logps), tokens.old_entropy.clamp(min=0)
        reach = (self.threshold * (entropy.to(old.dtype) + self.epsilon)).sqrt().expand_as(old)
        return RatioBounds(-reach, reach)


@dataclass(frozen=True)
class RelaxedBand(ClipRule):
    """Band widened to contain [1 - low, 1 + high]: the relaxed variant of arXiv 2603.04918, reported to hurt.

    Args:
        radius, divergence: As Band's; one number.
        low, high: As Clip's.

    Raises:
        ValueError: If the divergence is unknown, or a number is out of range.

    Examples:
        >>> RelaxedBand().bounds(torch.tensor([0.01, 0.9]).log()).upper
        tensor([7.8098, 1.2800])
    """

    radius: float = DEFAULT_RADIUS
    divergence: str | FDivergence = "kl"
    low: float = 0.2
    high: float = 0.28

    def __post_init__(self) -> None:
        _check_positive(self, "radius")
        get_divergence(self.divergence)
        Clip(self.low, self.high)

    def limits(self, tokens: Tokens) -> RatioBounds:
        inner = band(tokens.old_logps, self.radius, self.divergence)
        log_lower = inner.log_lower.clamp(max=safe_log(1 - self.low))
        return RatioBounds(log_lower, inner.log_upper.clamp(min=math.log1p(self.high)))
