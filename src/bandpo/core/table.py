"""The band by table lookup: one index and one cubic per side, no transcendental except the final log.

The cells of a side are those of the floating-point numbers themselves: the exponent and the first bits of the
mantissa of a distance v index the cell, the other bits are the offset within it. v is -log p, or the distance of
log p from the point where the side saturates, whichever is less: at both ends a bound has a singularity (like
sqrt v or v log v), and cells that shrink with v resolve it. The lower side stores r in [0, 1], the upper side
log r. Divergences with a closed form are computed instead, with max_error 0 (arXiv 2603.04918 for the operator).
"""

from __future__ import annotations

import functools
import math
from typing import Any

import torch
from torch import Tensor

from .band import RatioBounds, band, band_side
from .checks import DEFAULT_RADIUS, check_logps, check_radius
from .coins import coins
from .divergences import FDivergence, get_divergence
from .solvers import solve_kl

DEFAULT_TOLERANCE = 5e-5
"""Largest error of a table that its constructor accepts; the only place this default is written."""

_OCTAVES = (-40, 7)  # v in [2^-40, 2^7)
_BITS = 7  # 2^7 cells per octave
_MARGIN = 2.0  # max_error is this times the largest error seen
# Where a cubic interpolates, and where its error peaks between (Chebyshev, on [0, 1]).
_NODES = torch.tensor([0.5 - 0.5 * math.cos(math.pi * (j + 0.5) / 4) for j in range(4)], dtype=torch.float64)
_PEAKS = torch.tensor([0.5 - 0.5 * math.cos(math.pi * j / 4) for j in range(5)], dtype=torch.float64)


class _SideTable:
    """One side: four columns of coefficients, a cubic per cell.

    A side that saturates does so at log p = kink, None if it never does. The lower side of one that does has two
    halves of cells, distances from log p = 0 and from the kink.
    """

    def __init__(self, radius: float, divergence: FDivergence, upper: bool, dtype: torch.dtype, device: Any) -> None:
        double = dtype == torch.float64
        self.upper, self.dtype, self.kink = upper, dtype, _kink(radius, divergence, upper, dtype)
        self.steep = divergence.shape.at_infinity == math.inf
        self.integers, mantissa, bias = (torch.int64, 52, 1023) if double else (torch.int32, 23, 127)
        self.shift, self.first = mantissa - _BITS, (_OCTAVES[0] + bias) << _BITS
        self.cells = (_OCTAVES[1] - _OCTAVES[0]) << _BITS
        self.range = (2.0 ** _OCTAVES[0], 2.0 ** _OCTAVES[1] * (1.0 - torch.finfo(dtype).eps))
        bound = band_side(self.places(_NODES), radius, divergence, upper)
        values = (bound if upper else torch.exp(bound)).reshape(-1, 4)
        powers = _NODES[:, None] ** torch.arange(4, dtype=torch.float64)
        self.columns = (values @ torch.linalg.inv(powers).T).to(device, dtype).T.contiguous().unbind(0)

    def places(self, at: Tensor) -> Tensor:
        """log p at the offsets `at` of every cell, (halves * cells * len(at),), float64."""
        edges = torch.exp2(torch.arange(*_OCTAVES, dtype=torch.float64))[:, None, None]
        cell = torch.arange(2**_BITS, dtype=torch.float64)[:, None]
        v = (edges * (1.0 + (cell + at) / 2**_BITS)).flatten()
        if self.kink is None:
            return -v
        return self.kink - v if self.upper else torch.cat([-v, self.kink + v]).clamp(max=0.0)

    def __call__(self, a: Tensor) -> Tensor:
        """Log bound for log p."""
        edge = 0.0 - a
        v, half, room = edge, None, None
        if self.kink is not None:
            room = self.kink - a if self.upper else a - self.kink
            v, half = (room, None) if self.upper else (torch.minimum(edge, room), room < edge)
        beyond = (v - self.range[1]).clamp(min=0.0)
        v = v.clamp(*self.range)
        code = v.view(self.integers)
        cell = (code >> self.shift) - self.first
        if half is not None:
            cell = cell + half.to(cell.dtype) * self.cells
        # NaN has no cell; it propagates through t.
        at = cell.clamp(0, self.columns[0].numel() - 1).reshape(-1)
        t = (code & ((1 << self.shift) - 1)).to(a.dtype) * 2.0**-self.shift + 0.0 * v
        # The fastest gather on the CPU: one flat column at a time.
        c = [column.index_select(0, at).view(a.shape) for column in self.columns]
        value = c[0] + t * (c[1] + t * (c[2] + t * c[3]))
        if self.upper:
            # Beyond the last cell log r continues as -log p does.
            bound = torch.minimum((value + beyond).clamp(min=0.0), edge)
            return bound if room is None else torch.where(room <= 0.0, edge, bound)
        # r = 0 at p = 0, and r = 1 at p = 1 under a steep f, without a branch.
        bound = torch.minimum(torch.log(value.clamp(0.0, 1.0)), a + 1e30)
        if self.steep:
            bound = torch.maximum(bound, a * 1e30)
        return bound if room is None else torch.where(room <= 0.0, -torch.inf, bound)


def _kink(radius: float, divergence: FDivergence, upper: bool, dtype: torch.dtype) -> float | None:
    """log p where the side saturates, a number of `dtype`, by bisection of the log-odds; None if it never does."""

    def log_p(z: Tensor) -> Tensor:
        return -torch.nn.functional.softplus(-z)

    def saturated(z: Tensor) -> bool:
        edge = torch.zeros_like(z) if upper else torch.full_like(z, -torch.inf)
        return bool(divergence.exact(coins(edge, log_p(z))) <= radius)

    low, high = torch.tensor([-745.0, 745.0], dtype=torch.float64)
    if not saturated(torch.full_like(low, 30.0 if upper else -30.0)):
        return None
    for _ in range(100):
        middle = 0.5 * (low + high)
        low, high = (low, middle) if saturated(middle) == upper else (middle, high)
    return float(log_p(0.5 * (low + high)).to(dtype))


class BandTable:
    """The band of one radius by cubics in a table; a call is an index, a gather and a few tensor operations.

    Args:
        radius: a number, or a pair (lower side, upper side); > 0 and finite.
        divergence: a name or an FDivergence.
        device: device of the table.
        dtype: torch.float32 or torch.float64, of table and result.
        tolerance: the largest max_error accepted.

    Attributes:
        max_error: of |lower - exact lower| and |log_upper - exact log_upper|, for log-probs >= -100: twice the
            largest error seen at the five peaks of every cell's cubic, plus a rounding; not a proven bound. Beyond
            -100 results stay within [0, 1] and [1, 1/p]. 0 where the closed form is used instead of a table.

    Raises:
        ValueError: bad radius, divergence or dtype, or max_error above the tolerance.

    Examples:
        >>> table = band_table(radius=0.05, divergence="js")
        >>> table(torch.tensor([-3.0])).upper
        tensor([5.4882])
    """

    def __init__(
        self,
        radius: float | tuple[float, float] = DEFAULT_RADIUS,
        divergence: str | FDivergence = "kl",
        device: torch.device | str = "cpu",
        dtype: torch.dtype = torch.float32,
        tolerance: float = DEFAULT_TOLERANCE,
    ) -> None:
        low, high = check_radius(radius)
        if isinstance(low, Tensor) or isinstance(high, Tensor):
            raise ValueError("a BandTable has one radius per side, as numbers; for a radius per token use band")
        if dtype not in (torch.float32, torch.float64):
            raise ValueError(f"a table is torch.float32 or torch.float64, got {dtype}")
        self.radius, self.dtype = (float(low), float(high)), dtype
        self.divergence = get_divergence(divergence)
        self.max_error = 0.0
        self._sides: list[_SideTable] = []
        if self.divergence.solve not in (None, solve_kl):
            return
        self._sides = [_SideTable(self.radius[up], self.divergence, up, dtype, device) for up in (False, True)]
        probes = torch.cat([side.places(_PEAKS) for side in self._sides]).clamp(min=-100.0, max=0.0).to(dtype)
        got, want = self(probes.to(device)), band(probes.double(), self.radius, self.divergence)
        errors = torch.stack([got.lower.cpu() - want.lower, got.log_upper.cpu() - want.log_upper]).abs()
        # The rounding is half a unit in the last place of a log bound near 100, which a probe may miss.
        self.max_error = _MARGIN * float(errors.max()) + 32.0 * torch.finfo(dtype).eps
        if not self.max_error <= tolerance:
            raise ValueError(
                f"the table of {self.divergence.name!r} at radius {self.radius} has error {self.max_error:.3g}, "
                f"above the tolerance {tolerance:g}"
            )

    def __call__(self, old_logps: Tensor) -> RatioBounds:
        """RatioBounds for log-probs of any shape, e.g. (B, T); limits, edges and errors as in ``band``."""
        a = check_logps(old_logps, "old_logps").to(self.dtype)
        if not self._sides:
            return band(a, self.radius, self.divergence)
        return RatioBounds(self._sides[0](a), self._sides[1](a))


@functools.lru_cache(maxsize=64)
def band_table(
    radius: float | tuple[float, float] = DEFAULT_RADIUS,
    divergence: str | FDivergence = "kl",
    device: torch.device | str = "cpu",
    dtype: torch.dtype = torch.float32,
) -> BandTable:
    """The `BandTable` of these arguments, built once and kept in memory; errors as there.

    Examples:
        >>> band_table(radius=0.05)(torch.tensor([-3.0])).upper
        tensor([2.9874])"""
    return BandTable(radius, divergence, device, dtype)
