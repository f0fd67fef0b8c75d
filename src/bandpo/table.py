"""The band by table lookup: for divergences whose bounds need an iterative solve.

A side is tabulated against v = asinh(k (z - z0)), z = logit p, where z0 is the log-odds at which the side
saturates: the grid is finest at that kink and the kink itself falls on a known value, so both sides of it are
smooth. The lower side stores r in [0, 1], the upper side log q = log(r p) less its trend in log p. Divergences
with a closed form are not tabulated; they are computed, with max_error 0 (arXiv 2603.04918 for the operator).
"""

from __future__ import annotations

import functools
import math
from os import PathLike

import torch
from torch import Tensor

from .band import DEFAULT_RADIUS, RatioBounds, band, band_side, check_logps, check_radius
from .divergences import FDivergence, binary_value, get_divergence, log1mexp

DEFAULT_TOLERANCE = 5e-5
"""The error a table may have before its constructor refuses; the only place this default is written."""

NODES = 16384
RADIUS_NODES = 65
RADIUS_TABLE_NODES = 4096
_Z_RANGE = (-101.0, 104.0)  # log-odds tabulated: log p from -101 to the last float32 below 0
_MARGIN = 2.0  # the certified error is this times the largest one seen between the nodes


def _logit(a: Tensor) -> Tensor:
    return a - log1mexp(a)


def _log_p(z: Tensor) -> Tensor:
    return -torch.nn.functional.softplus(-z)


class _SideTable:
    """One side over rows of radii: values (J, N), kinks (J,); J = 1 for a single radius."""

    def __init__(self, kinks: Tensor, steps: tuple[float, float, float, float], values: Tensor, kind: str) -> None:
        # kind: "upper", "lower", or "steep" for the lower side of an f of infinite slope, which is 1 at p = 1.
        self.kinks, self.values, self.kind, self.upper = kinks, values, kind, kind == "upper"
        self.steps = steps
        self.sharpness, self.start, self.step, self.trend = steps

    @classmethod
    def build(cls, radii: Tensor, divergence: FDivergence, upper: bool, nodes: int) -> _SideTable:
        kinks, found = _kinks(radii, divergence, upper)
        sharpness = 1000.0 if found else 1.0
        start = float(torch.asinh(sharpness * (_Z_RANGE[0] - kinks)).min())
        stop = float(torch.asinh(sharpness * (_Z_RANGE[1] - kinks)).max())
        v = torch.linspace(start, stop, nodes, dtype=torch.float64)
        z = kinks[:, None] + torch.sinh(v) / sharpness
        a = _log_p(z)
        bound = band_side(a, radii[:, None], divergence, upper)
        kind = "upper" if upper else "steep" if math.isinf(divergence.log_form.at_infinity) else "lower"
        if upper:
            # Far left log q is a straight line in log p; without it the values are flat there, and an index
            # rounded to float32 loses nothing.
            values = a + bound
            trend = float(((values[:, 1] - values[:, 0]) / (a[:, 1] - a[:, 0])).mean())
            values = values - trend * a
        else:
            values, trend = torch.exp(bound), 0.0
        return cls(kinks, (sharpness, start, (stop - start) / (nodes - 1), trend), values, kind)

    def to(self, device: torch.device | str, dtype: torch.dtype) -> _SideTable:
        return _SideTable(self.kinks.to(device, dtype), self.steps, self.values.to(device, dtype), self.kind)

    def __call__(self, a: Tensor, row: Tensor | None = None) -> Tensor:
        """Log bound for log p; `row` is the real-valued row of each token's radius, None for a single row."""
        z = _logit(a)
        rows: list[tuple[Tensor | None, Tensor | float]]
        if row is None:
            kink: Tensor = self.kinks[0]
            rows = [(None, 1.0)]
        else:
            rows = _cubic(row, self.kinks.numel())
            kink = torch.zeros_like(a)
            for j, weight in rows:
                kink = kink + weight * self.kinks[j]
        v = (torch.asinh(self.sharpness * (z - kink)) - self.start) / self.step
        last = self.values.shape[1] - 1
        # NaN has no integer; it is restored at the end.
        v = torch.nan_to_num(v, nan=0.0).clamp(0.0, float(last))
        i = v.to(torch.int64).clamp(max=last - 1)
        fraction = v - i
        flat = self.values.reshape(-1)
        value = torch.zeros_like(a)
        for j, weight in rows:
            at = i if j is None else i + j * (last + 1)
            left, right = flat[at], flat[at + 1]
            value = value + weight * torch.lerp(left, right, fraction)
        if self.upper:
            edge = 0.0 - a
            # From log q: within [1, 1/p]; -inf - (-inf) has the limit +inf.
            bound = torch.where(torch.isinf(a), edge, (value + (self.trend - 1.0) * a).clamp(min=0.0))
            bound = torch.minimum(bound, edge)
            bound = torch.where((z >= kink) & (self.sharpness > 1.0), edge, bound)
        else:
            bound = torch.log(value.clamp(0.0, 1.0))
            out = ((z <= kink) & (self.sharpness > 1.0)) | (a == -torch.inf)
            bound = torch.where(out, -torch.inf, bound)
            if self.kind == "steep":
                bound = torch.where(a == 0.0, 0.0, bound)
        return torch.where(torch.isnan(a), torch.nan, bound)


def _cubic(row: Tensor, rows: int) -> list[tuple[Tensor | None, Tensor | float]]:
    # Lagrange weights of the four rows around a real-valued row.
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
    """Log-odds where the side saturates, by bisection; where it never does, a centre for the grid."""

    def saturated(z: Tensor) -> Tensor:
        edge = torch.zeros_like(z) if upper else torch.full_like(z, -torch.inf)
        return binary_value(edge, _log_p(z), divergence.log_form) <= radii

    low, high = torch.full_like(radii, -745.0), torch.full_like(radii, 745.0)
    found = bool(saturated(torch.full_like(radii, 30.0 if upper else -30.0)).all())
    if not found:
        centre = torch.log(torch.expm1(radii.clamp(max=20.0)))
        return (-centre if upper else centre), False
    for _ in range(100):
        middle = 0.5 * (low + high)
        left = ~saturated(middle) if upper else saturated(middle)
        low, high = torch.where(left, middle, low), torch.where(left, high, middle)
    return 0.5 * (low + high), True


def _error(got: RatioBounds, want: RatioBounds) -> float:
    """Largest of |lower - lower'| and |log upper - log upper'|."""
    down = (got.lower.double() - want.lower).abs()
    up = (got.log_upper.double() - want.log_upper).abs()
    return max(float(down.max()), float(up.max()))


class BandTable:
    """The band of one radius by linear interpolation in a table; a call is a gather and a few tensor ops.

    Args:
        radius: a number, or a pair (lower side, upper side); > 0 and finite.
        divergence: a name or an FDivergence.
        device: where the table lies.
        dtype: torch.float32 or torch.float64, of table and result.
        tolerance: the largest max_error accepted.

    Attributes:
        max_error: bound on |lower - exact lower| and on |log_upper - exact log_upper|, that is absolute on the
            lower ratio and relative on the upper one, for log-probs >= -100 in the table's dtype: twice the
            largest error at three points inside every cell, checked at build. Beyond -100 results stay within
            [0, 1] and [1, 1/p]. 0 where the closed form is used instead of a table.

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
        sides = []
        for value, upper in zip(self.radius, (False, True), strict=True):
            radii = torch.tensor([value], dtype=torch.float64)
            sides.append(_SideTable.build(radii, self.divergence, upper, NODES))
        self._sides = (sides[0].to("cpu", dtype), sides[1].to("cpu", dtype))
        self.max_error = _MARGIN * self._measure()
        if not self.max_error <= tolerance:
            raise ValueError(
                f"the table of {self.divergence.name!r} at radius {self.radius} has error {self.max_error:.3g}, "
                f"above the tolerance {tolerance:g}"
            )
        self._sides = (self._sides[0].to(device, dtype), self._sides[1].to(device, dtype))

    def _measure(self) -> float:
        assert self._sides is not None
        worst = 0.0
        for side in self._sides:
            cells = torch.arange(side.values.shape[1] - 1, dtype=torch.float64)
            for inside in (0.2, 0.5, 0.8):
                v = side.start + side.step * (cells + inside)
                a = _log_p(side.kinks.double() + torch.sinh(v) / side.sharpness).to(self.dtype)
                a = a[a >= -100.0]
                worst = max(worst, _error(self(a), band(a.double(), self.radius, self.divergence)))
        return worst

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
        from safetensors.torch import save_file

        if _named(self.divergence.name) != self.divergence:
            raise ValueError(f"only named divergences can be saved, not the FDivergence {self.divergence.name!r}")
        meta = {
            "divergence": self.divergence.name,
            "radius": f"{self.radius[0]!r},{self.radius[1]!r}",
            "dtype": str(self.dtype).removeprefix("torch."),
            "max_error": repr(self.max_error),
        }
        tensors = {"none": torch.zeros(1)}
        for name, side in zip(("lower", "upper"), self._sides or (), strict=False):
            tensors[f"{name}.values"], tensors[f"{name}.kinks"] = side.values.cpu(), side.kinks.cpu()
            meta[f"{name}.grid"], meta[f"{name}.kind"] = ",".join(repr(x) for x in side.steps), side.kind
        save_file(tensors, path, metadata=meta)

    @classmethod
    def load(cls, path: str | PathLike[str], device: torch.device | str = "cpu") -> BandTable:
        """Read a table written by :meth:`save`; nothing is solved again."""
        from safetensors import safe_open

        table = cls.__new__(cls)
        with safe_open(path, framework="pt") as file:
            meta = file.metadata()
            low, high = meta["radius"].split(",")
            table.radius, table.dtype = (float(low), float(high)), getattr(torch, meta["dtype"])
            table.divergence, table.max_error = get_divergence(meta["divergence"]), float(meta["max_error"])
            table._sides = None
            if "lower.grid" in meta:
                sides = []
                for name in ("lower", "upper"):
                    sharpness, start, step, trend = (float(x) for x in meta[f"{name}.grid"].split(","))
                    values, kinks = file.get_tensor(f"{name}.values"), file.get_tensor(f"{name}.kinks")
                    side = _SideTable(kinks, (sharpness, start, step, trend), values, meta[f"{name}.kind"])
                    sides.append(side.to(device, table.dtype))
                table._sides = (sides[0], sides[1])
        return table


class BandTable2D:
    """The band for a radius per token: cubic in log radius over linear in the probability.

    Args:
        radius_min: the smallest radius served.
        radius_max: the largest radius served; radii outside are clamped into the range.
        divergence: a name or an FDivergence.
        device: where the table lies.
        dtype: torch.float32 or torch.float64, of table and result.

    Attributes:
        max_error: as in :class:`BandTable`, from 100,000 points drawn between the nodes rather than from every
            cell: an estimate with the same margin, not a certificate.

    Raises:
        ValueError: bad radii, divergence or dtype.
    """

    def __init__(
        self,
        radius_min: float,
        radius_max: float,
        divergence: str | FDivergence = "kl",
        device: torch.device | str = "cpu",
        dtype: torch.dtype = torch.float32,
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
        built = [
            _SideTable.build(torch.exp(logs), self.divergence, upper, RADIUS_TABLE_NODES) for upper in (False, True)
        ]
        self._sides = (built[0].to("cpu", dtype), built[1].to("cpu", dtype))
        generator = torch.Generator().manual_seed(0)
        uniform = torch.rand((2, 100_000), generator=generator, dtype=torch.float64)
        a = _log_p(40.0 * (uniform[0] - 0.5)).to(dtype)
        radius = torch.exp(logs[0] + (logs[-1] - logs[0]) * uniform[1]).to(dtype)
        self.max_error = _MARGIN * _error(self(a, radius), band(a.double(), radius.double(), self.divergence))
        self._sides = (built[0].to(device, dtype), built[1].to(device, dtype))

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
