"""Evidence that bounds are roots: residuals, and brackets on which g_f - radius changes sign."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from .band import RatioBounds, band
from .checks import DEFAULT_RADIUS, Radius, check_logps, place_radius
from .coins import coins
from .divergences import FDivergence, get_divergence


@dataclass(frozen=True)
class Certificate:
    """Evidence that bounds are roots, evaluated in float64 at the exact inputs; shape of the old log-probs.

    Attributes:
        bounds: the bounds certified.
        residual_lower, residual_upper: g_f - radius at the bound; <= 0 at a saturated side.
        bracket_lower, bracket_upper: (inner, outer) log-ratios with g_f <= radius at inner and >= radius at outer;
            both the edge at a saturated side; NaN if no sign change was found within 2^-10 relative.
        holds: bool tensor, a bracket was found on both sides.

    Examples:
        >>> bool((certify(torch.tensor([-3.0])).residual_upper.abs() < 1e-6).all())
        True
    """

    bounds: RatioBounds
    residual_lower: Tensor
    residual_upper: Tensor
    bracket_lower: tuple[Tensor, Tensor]
    bracket_upper: tuple[Tensor, Tensor]
    holds: Tensor


@torch.no_grad()
def certify(old_logps: Tensor, radius: Radius = DEFAULT_RADIUS, divergence: str | FDivergence = "kl") -> Certificate:
    """Solve and prove it: residuals of g_f(p, r) = radius, and log-ratio brackets on which g_f - radius changes sign.

        g_f(p, r) = p f(r) + (1 - p) f((1 - r p) / (1 - p))            (arXiv 2603.04918)

    The bracket widens from 4 ulp, doubling, until the sign changes. Shapes, units and errors as in `bandpo.band`.

    Examples:
        >>> certify(torch.tensor([-3.0, -0.5], dtype=torch.float64), radius=0.05).holds
        tensor([True, True])
    """
    f = get_divergence(divergence)
    old = check_logps(old_logps, "old_logps")
    low, high = place_radius(radius, old)
    bounds = band(old, (low, high), f)
    residual_lower, bracket_lower = _certify_side(bounds.log_lower, old, low, f, False)
    residual_upper, bracket_upper = _certify_side(bounds.log_upper, old, high, f, True)
    holds = ~(torch.isnan(bracket_lower[0]) | torch.isnan(bracket_upper[0]))
    return Certificate(bounds, residual_lower, residual_upper, bracket_lower, bracket_upper, holds)


def _certify_side(
    bound: Tensor, old: Tensor, radius: Tensor, f: FDivergence, upper: bool
) -> tuple[Tensor, tuple[Tensor, Tensor]]:
    a, b, limit = old.double(), bound.double(), radius.double()

    def residual(log_ratio: Tensor) -> Tensor:
        return f.exact(coins((a + log_ratio).clamp(max=0.0), a)) - limit

    edge = -a if upper else torch.full_like(a, -torch.inf)
    at_bound = residual(b)
    inner, outer = torch.full_like(b, torch.nan), torch.full_like(b, torch.nan)
    width = 2.0**-10
    while width >= 4.0 * torch.finfo(bound.dtype).eps:  # a fixed count for a dtype; the narrowest bracket wins
        near, far = b * (1.0 - width), b * (1.0 + width)
        found = (residual(near) <= 0.0) & (residual(far) >= 0.0)
        inner, outer = torch.where(found, near, inner), torch.where(found, far, outer)
        width *= 0.5
    saturated = (b == edge) & (at_bound <= 0.0)
    return at_bound, (torch.where(saturated, edge, inner), torch.where(saturated, edge, outer))
