"""The band by table lookup: one index and one cubic a side, no transcendental but the last log.

The cells of a side are those of the floating-point numbers themselves: the exponent and the first bits of the
mantissa of a distance v name the cell, the other bits are the place in it. v is -log p, or the distance of
log p from the point where the side saturates, whichever is less: at both ends a bound has a singularity (like
sqrt v or v log v), and cells that shrink with v resolve it. The lower side stores r in [0, 1], the upper side
log r. Divergences with a closed form are computed instead, with max_error 0 (arXiv 2603.04918 for the operator).
"""

from __future__ import annotations

import functools
import math
from os import PathLike
from typing import Any

import torch
from torch import Tensor

from .band import DEFAULT_RADIUS, RatioBounds, band, band_side, check_logps, check_radius
from .divergences import FDivergence, binary_value, get_divergence

DEFAULT_TOLERANCE = 5e-5
"""The error a table may have before its constructor refuses; the only place this default is written."""

RADIUS_NODES = 65
_OCTAVES = (-40, 7)  # v in [2^-40, 2^7)
_BITS = 7  # 2^7 cells an octave
_BITS_2D = 5
_MARGIN = 2.0  # max_error is this times the largest error seen
# Where a cubic interpolates, and where its error peaks between (Chebyshev, on [0, 1]).
_NODES = tuple(0.5 - 0.5 * math.cos(math.pi * (j + 0.5) / 4) for j in range(4))
_PEAKS = tuple(0.5 - 0.5 * math.cos(math.pi * j / 4) for j in range(5))


def _log_p(z: Tensor) -> Tensor:
    return -torch.nn.functional.softplus(-z)


class _SideTable:
    """One side over rows of radii: cubics (J, halves * cells, 4), kinks (J,); J = 1 for a single radius.

    kind: "upper", "lower", or "steep" for the lower side of an f of infinite slope, which is 1 at p = 1.
    A side that saturates has its kink at log p = kinks[j]; kinks of 1 say that it never does. The lower side
    of one that does has two halves, distances from log p = 0 and from the kink.
    """

    def __init__(self, cubics: Tensor, kinks: Tensor, kind: str, bits: int) -> None:
        self.cubics, self.kinks, self.kind, self.bits = cubics.contiguous(), kinks, kind, bits
        self.columns = self.cubics.view(-1, 4).T.contiguous().unbind(0)
        self.upper, self.saturates = kind == "upper", bool((kinks <= 0.0).all())
        self.cells = (_OCTAVES[1] - _OCTAVES[0]) << bits
        mantissa = 52 if cubics.dtype == torch.float64 else 23
        self.integers = torch.int64 if cubics.dtype == torch.float64 else torch.int32
        self.shift = mantissa - bits
        bias = 1023 if cubics.dtype == torch.float64 else 127
        self.first = (_OCTAVES[0] + bias) << bits
        self.range = (2.0 ** _OCTAVES[0], 2.0 ** _OCTAVES[1] * (1.0 - torch.finfo(cubics.dtype).eps))

    @classmethod
    def build(cls, radii: Tensor, divergence: FDivergence, upper: bool, bits: int, dtype: torch.dtype) -> _SideTable:
        z, saturates = _kinks(radii, divergence, upper)
        kinks = _log_p(z).to(dtype).double() if saturates else torch.ones_like(radii)
        edges = torch.exp2(torch.arange(*_OCTAVES, dtype=torch.float64))[:, None]
        cell = torch.arange(2**bits, dtype=torch.float64)
        nodes = torch.tensor(_NODES, dtype=torch.float64)
        v = (edges[..., None] * (1.0 + (cell[:, None] + nodes) / 2**bits)).reshape(1, -1)
        a = [(kinks[:, None] - v) if upper and saturates else (-v).expand(radii.numel(), -1)]
        if saturates and not upper:
            a.append((kinks[:, None] + v).clamp(max=0.0))
        bound = band_side(torch.cat(a, 1), radii[:, None], divergence, upper)
        values = (bound if upper else torch.exp(bound)).reshape(radii.numel(), -1, 4)
        powers = nodes[:, None] ** torch.arange(4, dtype=torch.float64)
        cubics = values @ torch.linalg.inv(powers).T
        steep = divergence.log_form.at_infinity == math.inf
        kind = "upper" if upper else "steep" if steep else "lower"
        return cls(cubics.to(dtype), kinks.to(dtype), kind, bits)

    def to(self, device: torch.device | str) -> _SideTable:
        return _SideTable(self.cubics.to(device), self.kinks.to(device), self.kind, self.bits)

    def __call__(self, a: Tensor, row: Tensor | None = None) -> Tensor:
        """Log bound for log p; `row` is the real-valued row of each token's radius, None for a single row."""
        rows = _lagrange(row, self.kinks.numel())
        edge = 0.0 - a
        distance, half = edge, None
        room = torch.ones_like(a)
        if self.saturates:
            kink = _sum([weight * self.kinks[j] for j, weight in rows])
            room = kink - a if self.upper else a - kink
            distance = room if self.upper else torch.minimum(edge, room)
            half = None if self.upper else room < edge
        v = distance.clamp(*self.range)
        code = v.view(self.integers)
        cell = (code >> self.shift) - self.first
        if half is not None:
            cell = cell + half.to(cell.dtype) * self.cells
        # NaN has no cell; it comes back by way of t.
        cell = cell.clamp(0, self.cubics.shape[1] - 1)
        t = (code & ((1 << self.shift) - 1)).to(a.dtype) * 2.0**-self.shift + 0.0 * v
        parts = []
        for j, weight in rows:
            at = (cell if len(rows) == 1 else cell + j * self.cubics.shape[1]).reshape(-1)
            # The fastest gather that the CPU has: one flat column at a time.
            c = [column.index_select(0, at).view(a.shape) for column in self.columns]
            parts.append(weight * (c[0] + t * (c[1] + t * (c[2] + t * c[3]))))
        value = _sum(parts)
        if self.upper:
            # Beyond the last cell log r goes on as -log p does.
            bound = (value + (distance - self.range[1]).clamp(min=0.0)).clamp(min=0.0)
            bound = torch.minimum(bound, edge)
            return torch.where(room <= 0.0, edge, bound) if self.saturates else bound
        # r = 0 at p = 0, and r = 1 at p = 1 under a steep f, without a branch.
        bound = torch.minimum(torch.log(value.clamp(0.0, 1.0)), a + 1e30)
        if self.kind == "steep":
            bound = torch.maximum(bound, a * 1e30)
        return torch.where(room <= 0.0, -torch.inf, bound) if self.saturates else bound

    def probes(self, at: Tensor) -> Tensor:
        """log p at the places `at` of every cell, (J, halves * cells * len(at)), in the dtype of the table."""
        edges = torch.exp2(torch.arange(*_OCTAVES, dtype=torch.float64))[:, None]
        cell = torch.arange(2**self.bits, dtype=torch.float64)
        v = (edges[..., None] * (1.0 + (cell[:, None] + at) / 2**self.bits)).reshape(1, -1)
        kinks = self.kinks.double()[:, None]
        a = [kinks - v if self.upper and self.saturates else -v.expand(kinks.numel(), -1)]
        if self.saturates and not self.upper:
            a.append(kinks + v)
        return torch.cat(a, 1).clamp(min=-100.0, max=0.0).to(self.kinks.dtype)


def _sum(parts: list[Tensor]) -> Tensor:
    return functools.reduce(torch.add, parts)


def _lagrange(row: Tensor | None, rows: int) -> list[tuple[Any, Any]]:
    """(row, weight) of the rows whose combination is the value at a real-valued row: four, or the only one."""
    if row is None:
        return [(0, 1.0)]
    first = (row.to(torch.int64) - 1).clamp(0, rows - 4)
    t = row - first
    weights = (
        (t - 1) * (t - 2) * (t - 3) / -6.0,
        t * (t - 2) * (t - 3) / 2.0,
        t * (t - 1) * (t - 3) / -2.0,
        t * (t - 1) * (t - 2) / 6.0,
    )
    return [(first + k, w) for k, w in enumerate(weights)]


def _kinks(radii: Tensor, divergence: FDivergence, upper: bool) -> tuple[Tensor, bool]:
    """Log-odds where the side saturates, by bisection, and whether it ever does."""

    def saturated(z: Tensor) -> Tensor:
        edge = torch.zeros_like(z) if upper else torch.full_like(z, -torch.inf)
        return binary_value(edge, _log_p(z), divergence.log_form) <= radii

    low, high = torch.full_like(radii, -745.0), torch.full_like(radii, 745.0)
    if not bool(saturated(torch.full_like(radii, 30.0 if upper else -30.0)).all()):
        return low, False
    for _ in range(100):
        middle = 0.5 * (low + high)
        left = ~saturated(middle) if upper else saturated(middle)
        low, high = torch.where(left, middle, low), torch.where(left, high, middle)
    return 0.5 * (low + high), True


def _rounding(dtype: torch.dtype) -> float:
    # Half a unit in the last place of a log bound near 100, which no sample of points is sure to meet.
    return 32.0 * torch.finfo(dtype).eps


def _error(got: RatioBounds, want: RatioBounds) -> float:
    """Largest of |lower - lower'| and |log upper - log upper'|."""
    down = (got.lower.double() - want.lower).abs()
    up = (got.log_upper.double() - want.log_upper).abs()
    return max(float(down.max()), float(up.max()))


class BandTable:
    """The band of one radius by cubics in a table; a call is an index, a gather and a few tensor operations.

    Args:
        radius: a number, or a pair (lower side, upper side); > 0 and finite.
        divergence: a name or an FDivergence.
        device: where the table lies.
        dtype: torch.float32 or torch.float64, of table and result.
        tolerance: the largest max_error accepted.

    Attributes:
        max_error: of |lower - exact lower| and |log_upper - exact log_upper|, that is absolute on the lower
            ratio and relative on the upper one, for log-probs >= -100 in the table's dtype: twice the largest
            error at the five points of every cell where the error of a cubic peaks, and a rounding, checked at
            build against the float64 solve. An exhaustive check of the cells, not a proof. Beyond -100 results
            stay within [0, 1] and [1, 1/p]. 0 where the closed form is used instead of a table.

    Raises:
        ValueError: bad radius, divergence or dtype, or max_error above the tolerance.
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
            raise ValueError("a BandTable has one radius a side, as numbers; for a radius a token use BandTable2D")
        _check_dtype(dtype)
        self.radius, self.dtype = (float(low), float(high)), dtype
        self.divergence = get_divergence(divergence)
        self.max_error = 0.0
        self._sides: tuple[_SideTable, _SideTable] | None = None
        if self.divergence.solver == "closed":
            return
        sides = [
            _SideTable.build(torch.tensor([value], dtype=torch.float64), self.divergence, upper, _BITS, dtype)
            for value, upper in zip(self.radius, (False, True), strict=True)
        ]
        self._sides = (sides[0], sides[1])
        probes = torch.cat([side.probes(torch.tensor(_PEAKS, dtype=torch.float64)).flatten() for side in sides])
        exact = band(probes.double(), self.radius, self.divergence)
        self.max_error = _MARGIN * _error(self(probes), exact) + _rounding(dtype)
        if not self.max_error <= tolerance:
            raise ValueError(
                f"the table of {self.divergence.name!r} at radius {self.radius} has error {self.max_error:.3g}, "
                f"above the tolerance {tolerance:g}"
            )
        self._sides = (sides[0].to(device), sides[1].to(device))

    def __call__(self, old_logps: Tensor) -> RatioBounds:
        """RatioBounds for log-probs of any shape, e.g. (B, T); limits, edges and errors as in ``band``."""
        a = check_logps(old_logps, "old_logps").to(self.dtype)
        if self._sides is None:
            return band(a, self.radius, self.divergence)
        return RatioBounds(self._sides[0](a), self._sides[1](a))

    def save(self, path: str | PathLike[str]) -> None:
        """Write the table as safetensors.

        Raises:
            ValueError: the divergence is a user's own, which a file cannot name.
        """
        _save(path, self, {"radius": f"{self.radius[0]!r},{self.radius[1]!r}"})

    @classmethod
    def load(cls, path: str | PathLike[str], device: torch.device | str = "cpu") -> BandTable:
        """Read a table written by :meth:`save`; nothing is solved again.

        Raises:
            ValueError: the file holds something else.
        """
        table = cls.__new__(cls)
        low, high = _load(path, table, device)["radius"].split(",")
        table.radius = (float(low), float(high))
        return table


def _save(path: str | PathLike[str], table: BandTable | BandTable2D, about: dict[str, str]) -> None:
    from safetensors.torch import save_file

    if _named(table.divergence.name) != table.divergence:
        raise ValueError(f"only named divergences can be saved, not the FDivergence {table.divergence.name!r}")
    meta = {
        "table": type(table).__name__,
        "divergence": table.divergence.name,
        "dtype": str(table.dtype).removeprefix("torch."),
        "max_error": repr(table.max_error),
        **about,
    }
    tensors = {"none": torch.zeros(1)}
    for name, side in zip(("lower", "upper"), table._sides or (), strict=False):
        tensors[f"{name}.cubics"], tensors[f"{name}.kinks"] = side.cubics.cpu(), side.kinks.cpu()
        meta[f"{name}.kind"], meta[f"{name}.grid"] = side.kind, f"{_OCTAVES[0]},{_OCTAVES[1]},{side.bits}"
    save_file(tensors, path, metadata=meta)


def _load(path: str | PathLike[str], table: BandTable | BandTable2D, device: torch.device | str) -> dict[str, str]:
    """Fill `table` from a file; returns what else the file says."""
    from safetensors import safe_open

    with safe_open(path, framework="pt") as file:
        meta: dict[str, str] = file.metadata() or {}
        if meta.get("table") != type(table).__name__:
            raise ValueError(f"{path} holds {meta.get('table', 'no table')}, not a {type(table).__name__}")
        table.divergence, table.max_error = get_divergence(meta["divergence"]), float(meta["max_error"])
        table.dtype, table._sides = getattr(torch, meta["dtype"]), None
        sides = []
        for name in ("lower", "upper") if "lower.kind" in meta else ():
            first, last, bits = (int(x) for x in meta[f"{name}.grid"].split(","))
            if (first, last) != _OCTAVES:
                raise ValueError(f"{path} was written for another grid, 2^{first} to 2^{last}; build it anew")
            cubics, kinks = file.get_tensor(f"{name}.cubics"), file.get_tensor(f"{name}.kinks")
            sides.append(_SideTable(cubics, kinks, meta[f"{name}.kind"], bits).to(device))
        if sides:
            table._sides = (sides[0], sides[1])
    return meta


class BandTable2D:
    """The band for a radius per token: cubic in log radius over the cubics of :class:`BandTable`.

    Args:
        radius_min: the smallest radius served.
        radius_max: the largest radius served; radii outside are clamped into the range.
        divergence: a name or an FDivergence.
        device: where the table lies.
        dtype: torch.float32 or torch.float64, of table and result.
        tolerance: the largest max_error accepted.

    Attributes:
        max_error: as in :class:`BandTable`, from two points of every cell halfway between every two radii.

    Raises:
        ValueError: bad radii, divergence or dtype, or max_error above the tolerance.
    """

    def __init__(
        self,
        radius_min: float,
        radius_max: float,
        divergence: str | FDivergence = "kl",
        device: torch.device | str = "cpu",
        dtype: torch.dtype = torch.float32,
        tolerance: float = 1e-3,
    ) -> None:
        check_radius((radius_min, radius_max))
        if not radius_min < radius_max:
            raise ValueError(f"radius_min must be below radius_max, got {radius_min} and {radius_max}")
        _check_dtype(dtype)
        self.radius_min, self.radius_max, self.dtype = float(radius_min), float(radius_max), dtype
        self.divergence = get_divergence(divergence)
        self.max_error = 0.0
        self._sides: tuple[_SideTable, _SideTable] | None = None
        if self.divergence.solver == "closed":
            return
        logs = torch.linspace(math.log(radius_min), math.log(radius_max), RADIUS_NODES, dtype=torch.float64)
        radii = torch.exp(logs)
        sides = [_SideTable.build(radii, self.divergence, upper, _BITS_2D, dtype) for upper in (False, True)]
        self._sides = (sides[0], sides[1])
        between = torch.exp(0.5 * (logs[1:] + logs[:-1]))[:, None].to(dtype)
        for side in sides:
            a = side.probes(torch.tensor([0.0, 0.5], dtype=torch.float64))[1:]
            exact = band(a.double(), between.double(), self.divergence)
            self.max_error = max(self.max_error, _MARGIN * _error(self(a, between), exact) + _rounding(dtype))
        if not self.max_error <= tolerance:
            raise ValueError(
                f"the table of {self.divergence.name!r} for radii {radius_min} to {radius_max} has error "
                f"{self.max_error:.3g}, above the tolerance {tolerance:g}"
            )
        self._sides = (sides[0].to(device), sides[1].to(device))

    def __call__(self, old_logps: Tensor, radius: float | Tensor) -> RatioBounds:
        """RatioBounds for log-probs of any shape and a radius that broadcasts to them."""
        a = check_logps(old_logps, "old_logps").to(self.dtype)
        if self._sides is None:
            return band(a, radius, self.divergence)
        check_radius(radius)
        r = torch.as_tensor(radius, dtype=self.dtype, device=a.device).expand(a.shape)
        span = math.log(self.radius_max) - math.log(self.radius_min)
        row = (torch.log(r) - math.log(self.radius_min)) * ((RADIUS_NODES - 1) / span)
        row = row.clamp(0.0, RADIUS_NODES - 1.0)
        return RatioBounds(self._sides[0](a, row), self._sides[1](a, row))

    def save(self, path: str | PathLike[str]) -> None:
        """Write the table as safetensors; see :meth:`BandTable.save`."""
        _save(path, self, {"radius": f"{self.radius_min!r},{self.radius_max!r}"})

    @classmethod
    def load(cls, path: str | PathLike[str], device: torch.device | str = "cpu") -> BandTable2D:
        """Read a table written by :meth:`save`; see :meth:`BandTable.load`."""
        table = cls.__new__(cls)
        low, high = _load(path, table, device)["radius"].split(",")
        table.radius_min, table.radius_max = float(low), float(high)
        return table


def _check_dtype(dtype: torch.dtype) -> None:
    if dtype not in (torch.float32, torch.float64):
        raise ValueError(f"a table is torch.float32 or torch.float64, got {dtype}")


def _named(name: str) -> FDivergence | None:
    """The divergence a name stands for, or None."""
    try:
        return get_divergence(name)
    except ValueError:
        return None


@functools.lru_cache(maxsize=64)
def band_table(
    radius: float | tuple[float, float] = DEFAULT_RADIUS,
    divergence: str | FDivergence = "kl",
    device: torch.device | str = "cpu",
    dtype: torch.dtype = torch.float32,
) -> BandTable:
    """The :class:`BandTable` of these arguments, built once and kept in memory."""
    return BandTable(radius, divergence, device, dtype)
