"""Clip rules: for each sampled token, how far may its probability ratio move?

A new rule is one class with one method: `limits` for any interval, or `radii` in a subclass of `Band` for a radius
that adapts. It names what else it must know in `needs`. Callers use only these methods and know no subclass.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass, fields, replace
from typing import Any

import torch
from torch import Tensor

from bandpo.core.band import RatioBounds, band, band_side, binary_divergence, measure
from bandpo.core.checks import (
    DEFAULT_RADIUS,
    Radius,
    as_tensor,
    as_work_dtype,
    check_cap_and_floor,
    check_logps_pair,
    check_radius,
)
from bandpo.core.coins import settle
from bandpo.core.divergences import FDivergence, get_divergence
from bandpo.core.table import band_table
from bandpo.core.tokens import Tokens

Radii = tuple[float | Tensor, float | Tensor]


class ClipRule(ABC):
    """How far each token's ratio r = pi_new / pi_old may move: r in [lower, upper], with lower <= 1 <= upper.

    Attributes:
        needs: Fields of `Tokens` beyond `old_logps` that the rule reads.
        two_sided: Whether a token outside loses its gradient whatever the sign of A, not only if pushed further out.
        divergence: The divergence in which the realized one is measured.
        cap: Largest ratio allowed, or None.
        floor: Smallest ratio allowed, or None.

    Examples:
        >>> class Doubling(ClipRule):
        ...     def limits(self, tokens):
        ...         return RatioBounds.from_ratios(0.5 + 0 * tokens.old_logps, 2 + 0 * tokens.old_logps)
        >>> Doubling().inside(torch.tensor([-1.0, -2.5]), torch.tensor([-2.0, -2.0]))
        tensor([False,  True])
    """

    needs: frozenset[str] = frozenset()
    two_sided: bool = False
    divergence: str | FDivergence = "kl"
    cap: float | None = None
    floor: float | None = None

    @abstractmethod
    def limits(self, tokens: Tokens) -> RatioBounds:
        """Bounds of the ratio before `cap` and `floor`, of the shape of `tokens.old_logps`, float32 or float64."""

    def radii(self, tokens: Tokens) -> Radii | None:
        """(lower side, upper side) radii of a rule that is a ball of its divergence, else None."""
        return None

    def bounds(self, old_logps: Tensor | Tokens) -> RatioBounds:
        """Bounds of the ratio for old log-probs of any shape, e.g. (B, T), or for `Tokens`, if the rule needs more.

        Raises:
            ValueError: If the rule needs more than it is given, or a log-prob is positive.
        """
        return self._narrowed(self.limits(self._context(old_logps)))

    def inside(self, logps: Tensor, old_logps: Tensor | Tokens) -> Tensor:
        """Whether exp(logps - old_logps) lies within the bounds, edges included: a bool tensor."""
        return self.judge(logps, old_logps)[1]

    def judge(
        self, logps: Tensor, old_logps: Tensor | Tokens, dtypes: tuple[torch.dtype, torch.dtype] | None = None
    ) -> tuple[Tensor, Tensor]:
        """`measure` of log-probs computed in `dtypes` (else their own), where a 0 is a p rounded to 1 (`settle`)."""
        tokens = self._context(old_logps)
        new, old = check_logps_pair(logps, tokens.old_logps)
        new, old = settle(new, old, dtypes or (logps.dtype, tokens.old_logps.dtype))
        return self.measure(new, replace(tokens, old_logps=old))

    def measure(self, logps: Tensor, old_logps: Tensor | Tokens) -> tuple[Tensor, Tensor]:
        """(realized binary divergence, membership) of each token, log-probs taken as exact, from one evaluation."""
        tokens = self._context(old_logps)
        bounds = self.bounds(tokens)
        ratio = (as_work_dtype(logps) - as_work_dtype(tokens.old_logps)).exp()
        member = (ratio >= bounds.lower) & (ratio <= bounds.upper)
        return binary_divergence(logps, tokens.old_logps, self.divergence), member

    def clipped(self, inside: Tensor, log_ratio: Tensor, advantages: Tensor) -> Tensor:
        """Tokens that lose their gradient: outside, and pushed further out unless the rule is two-sided."""
        pushed = advantages != 0
        if not self.two_sided:
            pushed = pushed & torch.where(advantages > 0, log_ratio > 0, log_ratio < 0)
        return pushed & ~inside

    def held(self, tokens: Tokens, rising: Tensor, where: tuple[Tensor, ...] | None = None) -> Tensor:
        """The ratio that represents a clipped token in the loss: the bound it has crossed, the upper one if `rising`.

        `where` are the indices of the requested tokens, None for all.
        """
        bounds = self.bounds(tokens)
        lower, upper = bounds.lower, bounds.upper
        return torch.where(rising, upper, lower) if where is None else torch.where(rising, upper[where], lower[where])

    def traced(self, like: Tensor) -> ClipRule:
        """The rule as a compiler should see it: what may change from call to call is a tensor."""
        return self

    @property
    def log_limits(self) -> tuple[float, float]:
        """(log floor, log cap), infinite if there is none."""
        floor, cap = 0.0 if self.floor is None else self.floor, math.inf if self.cap is None else self.cap
        return safe_log(floor), safe_log(cap)

    @property
    def all_needs(self) -> frozenset[str]:
        """`needs`, and what clipping by a framework needs in addition."""
        return self.needs | ({"advantages", "logps"} if self.two_sided else frozenset())

    def _context(self, old_logps: Tensor | Tokens) -> Tokens:
        return Tokens.of(old_logps, self.needs, type(self).__name__)

    def _narrowed(self, bounds: RatioBounds) -> RatioBounds:
        if self.cap is None and self.floor is None:
            return bounds
        if bounds.ratios is not None:
            lower, upper = bounds.ratios
            cap = math.inf if self.cap is None else self.cap
            return RatioBounds.from_ratios(lower.clamp(min=self.floor or 0.0), upper.clamp(max=cap))
        log_floor, log_cap = self.log_limits
        return RatioBounds(bounds.log_lower.clamp(min=log_floor), bounds.log_upper.clamp(max=log_cap))


def safe_log(value: Any) -> Any:
    """log(value) of a number or (`ClipRule.traced`) a tensor, -inf at 0."""
    return value.log() if isinstance(value, Tensor) else math.log(value) if value > 0 else -math.inf


@dataclass(frozen=True, eq=False)
class Band(ClipRule):
    """BandPO (arXiv 2603.04918): the trust region {pi : D_f <= radius} projected onto each sampled token.

    {r : g_f(p, r) <= radius}, g_f as in `band`. A radius that adapts is a subclass with one method, `radii`.

    Args:
        radius: Size of the trust region, in the divergence's own units (nats for KL): a float, a tensor that
            broadcasts to the log-probs (per token), or a pair (lower side, upper side) of these.
        divergence: A name ("kl" is KL(old || new)) or an `FDivergence`.
        cap: Largest ratio allowed at any radius, or None; the paper's 10 binds below p = .007.
        floor: Smallest lower bound, or None.
        table: Whether `bounds` come from a `BandTable` (docs/divergences.md states its error) instead of a solver.

    Raises:
        ValueError: If radius is not positive and finite, the divergence is unknown, cap < 1, floor is not within
            [0, 1], or a table is requested for radii that differ from token to token.

    Examples:
        >>> Band(radius=0.05).bounds(torch.tensor([0.01, 0.9]).log()).upper
        tensor([7.8098, 1.0764])
    """

    radius: Radius = DEFAULT_RADIUS
    divergence: str | FDivergence = "kl"
    cap: float | None = None
    floor: float | None = None
    table: bool = False

    def __post_init__(self) -> None:
        if isinstance(self.radius, list):  # what YAML and JSON make of a pair
            object.__setattr__(self, "radius", tuple(self.radius))
        numbers = check_radius(self.radius)
        get_divergence(self.divergence)
        check_cap_and_floor(type(self).__name__, self.cap, self.floor)
        if self.table and (type(self).radii is not Band.radii or any(isinstance(x, Tensor) for x in numbers)):
            raise ValueError(
                f"{type(self).__name__}: table is True; allowed: False, because a table is built for one "
                "radius, and these differ from token to token"
            )

    def radii(self, tokens: Tokens) -> Radii:
        """(lower side, upper side) radii of these tokens: numbers, or tensors that broadcast to their shape."""
        return check_radius(self.radius)

    def limits(self, tokens: Tokens) -> RatioBounds:
        radii = self.radii(tokens)
        if self.table:
            return band_table(radii, self.divergence, tokens.old_logps.device)(tokens.old_logps)
        return band(tokens.old_logps, radii, self.divergence)

    def measure(self, logps: Tensor, old_logps: Tensor | Tokens) -> tuple[Tensor, Tensor]:
        tokens = self._context(old_logps)
        g, member = measure(logps, tokens.old_logps, *self.radii(tokens), self.divergence)
        if self.cap is not None or self.floor is not None:
            log_floor, log_cap = self.log_limits
            log_ratio = as_work_dtype(logps) - as_work_dtype(tokens.old_logps)
            member = member & (log_ratio >= log_floor) & (log_ratio <= log_cap)
        return g, member

    def held(self, tokens: Tokens, rising: Tensor, where: tuple[Tensor, ...] | None = None) -> Tensor:
        if self.table:
            return super().held(tokens, rising, where)
        old, (low, high) = tokens.old_logps, self.radii(tokens)
        if where is not None:
            low, high = (x.expand(old.shape)[where] if isinstance(x, Tensor) and x.dim() else x for x in (low, high))
            old = old[where]
        bound = band_side(old, (low, high), self.divergence, upper=rising)
        narrowed = self._narrowed(RatioBounds(bound, bound))
        return torch.where(rising, narrowed.log_upper, narrowed.log_lower).exp()

    def traced(self, like: Tensor) -> ClipRule:
        dtype = as_work_dtype(like.detach()).dtype
        given = (*check_radius(self.radius), self.cap, self.floor)
        numbers = [x if x is None else as_tensor(x, dtype, like.device) for x in given]
        return replace(self, radius=numbers[:2], cap=numbers[2], floor=numbers[3])  # type: ignore[arg-type]

    def __eq__(self, other: object) -> bool:
        if type(self) is not type(other):
            return NotImplemented
        return all(_same(getattr(self, f.name), getattr(other, f.name)) for f in fields(self))

    def __hash__(self) -> int:
        values = (getattr(self, f.name) for f in fields(self))
        return hash((type(self), *(x for x in values if not isinstance(x, (Tensor, tuple)))))


def _same(a: Any, b: Any) -> bool:
    if isinstance(a, tuple) and isinstance(b, tuple):
        return len(a) == len(b) and all(map(_same, a, b))
    if isinstance(a, Tensor) or isinstance(b, Tensor):
        return isinstance(a, Tensor) and isinstance(b, Tensor) and torch.equal(a, b)
    return bool(a == b)
