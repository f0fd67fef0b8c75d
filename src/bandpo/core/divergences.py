"""f-divergences between two coins: generators, their parts, and the registry of names.

The divergence of a token's coin before, (p, 1 - p), and after, (r p, 1 - r p), is

    g_f(p, r) = p f(r) + (1 - p) f((1 - r p) / (1 - p))            (arXiv 2603.04918)

the sum over the two outcomes of the perspective p f(q / p) of f. It is written in p, q, log(q / p) and q - p, all
known to full precision (letters: `bandpo.core.coins`), so that nothing overflows and the limits p -> 0 and p -> 1 are
ordinary values. Its exact form has f shifted to touch zero at 1: both parts are >= 0 and nothing cancels.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor

from bandpo.words import nearest

from . import solvers
from .coins import HUGE, TINY, BinaryForm, Coins, Perspective, TensorFunction, divergence_of, excess, expm1

INF, LOG_2 = math.inf, math.log(2.0)
FAR = 1e280  # a log-ratio beyond this is a change from or to 0


class Shape(NamedTuple):
    """f''(1), f(0) and the slope of f at infinity, f*(0); the last two may be +inf; f shifted to f'(1) = 0."""

    curvature: float
    at_zero: float
    at_infinity: float


@dataclass(frozen=True)
class FDivergence:
    """D_f(old || new) = E_old[f(pi_new / pi_old)] for a convex f with f(1) = 0; only f is required.

    With f alone, f is evaluated in float64 and roots are bracketed, 60 iterations per side. A `BinaryForm` makes
    membership cheap, and with its slope Newton's method replaces the bracket; a closed form replaces both.

    Attributes:
        name: its name in errors and logs.
        f: elementwise torch function of the ratio u > 0, differentiable if the bounds must be. Any multiple of
            (u - 1) in it cancels. f(0) may be +inf; where f gives NaN at 0 (0 log 0) the limit from
            u = e^-700 is used. Lower bounds below e^-700 are reported as 0.
        binary: optional formulas of the parts of g_f.
        solve: optional closed form or solver (u, w, log u, radius) -> (E, D), tensors of one shape: from the
            probabilities of the outcome that grows and of the one that shrinks, u + w = 1, to the share E of w that
            moves and D = -log(1 - E), inf if the side is saturated.
        float32: the solver reaches its precision in float32; otherwise it gets float64.
        shape: constants of f, found from f if None.

    Raises:
        ValueError: f is not elementwise on tensors, not finite for u > 0, f(1) != 0, or f is not convex.

    Examples:
        >>> triangular = FDivergence(name="triangular", f=lambda u: (u - 1) ** 2 / (u + 1))
        >>> bandpo.band(torch.tensor([-3.0]), radius=0.05, divergence=triangular).upper
        tensor([2.8752])
    """

    name: str
    f: TensorFunction = field(repr=False)
    binary: BinaryForm | None = field(default=None, repr=False)
    solve: solvers.Solver | None = field(default=None, repr=False)
    float32: bool = field(default=False, repr=False)
    shape: Shape = field(default=None, repr=False)  # type: ignore[assignment]
    part: Perspective = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        if self.binary is None or self.shape is None:
            part, shape = _examine(self.name, self.f)
            object.__setattr__(self, "shape", shape)
        if self.binary is not None:
            part = self.binary.exact or self.binary.value
        object.__setattr__(self, "part", part)

    def exact(self, k: Coins) -> Tensor:
        """g_f to the last digits at any size, limits included: for float64, proofs and gradients."""
        g = divergence_of(k, self.part)
        if self.shape.at_zero == INF:
            g = torch.where(torch.minimum(k.s, k.t) < -FAR, INF, g)
        if self.shape.at_infinity == INF:
            g = torch.where(torch.maximum(k.s, k.t) > FAR, INF, g)
        return g

    def root(self, u: Tensor, w: Tensor, log_u: Tensor, radius: Tensor) -> solvers.Root:
        """(E, D) of one side by the best solver available; all tensors in one work dtype and shape."""
        if self.solve is not None:
            return self.solve(u, w, log_u, radius)
        if self.binary is not None and self.binary.slope is not None:
            E, D = solvers.solve_newton(u, w, log_u, radius, self.binary, self.shape.curvature)
        else:
            E, D = solvers.solve_bracket(u, w, log_u, radius, self.part)
        # 0 / 0 may have led iterations astray here: nothing is left to lose at w = 0, and with an infinite slope of f
        # nothing can grow from u = 0.
        E, D = torch.where(w == 0.0, 1.0, E), torch.where(w == 0.0, INF, D)
        if self.shape.at_infinity == INF:
            E, D = torch.where(u == 0.0, 0.0, E), torch.where(u == 0.0, 0.0, D)
        return E, D


# --- parts of g_f -------------------------------------------------------------------------------------------


def _midpoint(p: Tensor, q: Tensor, moved: Tensor) -> Tensor:
    # log(q / m) is log1p of this, log(p / m) log1p of its negative, m = (p + q) / 2
    below_one = 1.0 - 0.5 * torch.finfo(p.dtype).eps
    return (moved / (p + q + TINY)).clamp(min=-below_one, max=below_one)


def _js(p: Tensor, q: Tensor, s: Tensor, moved: Tensor) -> Tensor:
    z = _midpoint(p, q, moved)
    return 0.5 * (q * torch.log1p(z) + p * torch.log1p(-z))


def _js_exact(p: Tensor, q: Tensor, s: Tensor, moved: Tensor) -> Tensor:
    z = _midpoint(p, q, moved)
    return 0.5 * (excess(q, -torch.log1p(z), -0.5 * moved) + excess(p, -torch.log1p(-z), 0.5 * moved))


def _js_slope(k: Coins) -> Tensor:
    token, rest = _midpoint(k.p, k.q, k.moved), _midpoint(k.c, k.d, -k.moved)
    return 0.5 * k.d * (torch.log1p(token) - torch.log1p(rest))


def _power(a: float, log_u: Tensor) -> Tensor:
    # u^a - 1, huge at most: 0 of it is 0
    return expm1((a * log_u).clamp(max=700.0))


def _alpha(p: Tensor, q: Tensor, s: Tensor, moved: Tensor, a: float) -> Tensor:
    # E_old[u^a - 1] = E_new[u^(a - 1) - 1]: the one whose power is nearer 0 divides out without a loss.
    b = a - 1.0
    return (q * _power(b, s) if a > 0.5 else p * _power(a, s)) / (a * b)


def _alpha_exact(p: Tensor, q: Tensor, s: Tensor, moved: Tensor, a: float) -> Tensor:
    # p (u^a - a u + a - 1) / (a b), as for `_alpha` from the power nearer 0, n
    b = a - 1.0
    w, n = (q, b) if a > 0.5 else (p, a)
    power = w * _power(n, s)
    other = b * excess(q, -s, -moved) if a > 0.5 else -a * excess(p, s, moved)
    return torch.where(s.abs() < 1.0, excess(w, n * s, power) + other, power - n * moved) / (a * b)


def _alpha_slope(k: Coins, a: float) -> Tensor:
    b = a - 1.0
    shrunk = k.d * _power(b, k.t) if a > 0.5 else k.c * _power(a, k.t) + k.moved  # the same; d may underflow
    return (k.d * _power(b, k.s) - shrunk) / b


# --- user generators ----------------------------------------------------------------------------------------

_LIMIT = 700.0  # e^-700 is the smallest ratio at which a plain f is evaluated, in float64


def _examine(name: str, f: TensorFunction) -> tuple[Perspective, Shape]:
    """Refuse an f that is not convex with f(1) = 0, naming what failed and where; else return its part and shape."""
    u = torch.exp(torch.linspace(-12.0, 12.0, 481, dtype=torch.float64))
    y = _check_values(name, f, u)

    def at(u: float) -> float:
        return float(f(torch.full((1,), u, dtype=torch.float64)).detach())

    def limit(at: Callable[[float], float]) -> float:
        # The value at 0 itself if f gives one, else (0 log 0, for example) the limit from a tiny u.
        found = [value for value in (at(0.0), at(math.exp(-_LIMIT))) if not math.isnan(value)]
        return found[0] if found else INF

    h = 6e-6  # cube root of the float64 epsilon: optimal for central differences
    tilt = (at(1.0 + h) - at(1.0 - h)) / (2.0 * h)
    _check_convex(name, u, y, tilt)
    at_zero = limit(lambda v: at(v) - tilt * (v - 1.0))
    at_infinity = limit(lambda v: v * at(1.0 / v if v else INF) - tilt * (1.0 - v))
    shape = Shape(max((at(1.001) + at(0.999)) * 1e6, 1e-6), at_zero, at_infinity)

    def part(p: Tensor, q: Tensor, s: Tensor, moved: Tensor) -> Tensor:
        u = torch.exp(s.clamp(min=-_LIMIT, max=_LIMIT))
        value = torch.where(s > 0.0, q / u, p) * (f(u) - tilt * (u - 1.0)).clamp(min=0.0)
        value = torch.where(s < -_LIMIT - 10.0, p * min(at_zero, HUGE), value)
        return torch.where(s > _LIMIT + 10.0, q * min(at_infinity, HUGE), value)

    return part, shape


def _check_values(name: str, f: TensorFunction, u: Tensor) -> Tensor:
    must = f"divergence {name!r}: f must"
    try:
        y: Any = f(u)
    except Exception as error:
        raise ValueError(
            f"{must} map a float64 tensor of ratios u to a tensor; calling it on one raised "
            f"{type(error).__name__}: {error}"
        ) from error
    if not isinstance(y, Tensor) or y.shape != u.shape:
        got = f"shape {tuple(y.shape)}" if isinstance(y, Tensor) else type(y).__name__
        raise ValueError(f"{must} act elementwise on tensors; a tensor of shape {tuple(u.shape)} gave {got}")
    y = y.detach().double()
    bad = ~torch.isfinite(y)
    if bool(bad.any()):
        raise ValueError(f"{must} be finite for u > 0, but f({float(u[bad][0]):.6g}) = {float(y[bad][0])}")
    return y


def _check_convex(name: str, u: Tensor, y: Tensor, tilt: float) -> None:
    at_one = float(y[y.numel() // 2])
    if not abs(at_one) <= 1e-9:
        raise ValueError(f"divergence {name!r}: f(1) must be 0, but f(1) = {at_one:.6g}")
    # Slopes of the chords must not fall; the allowance is the rounding of the differences.
    du = u[1:] - u[:-1]
    chord = (y[1:] - y[:-1]) / du
    noise = 64 * torch.finfo(torch.float64).eps * (y[1:].abs() + y[:-1].abs() + 1.0) / du
    fall = chord[:-1] - chord[1:] - noise[:-1] - noise[1:]
    if bool((fall > 1e-9 * (1.0 + chord[:-1].abs())).any()):
        where = float(u[1:-1][torch.argmax(fall)])
        raise ValueError(f"divergence {name!r}: f must be convex, but its slope falls near u = {where:.6g}")
    if bool(((y - tilt * (u - 1.0)).abs() <= 1e-8 * (1.0 + u)).all()):
        raise ValueError(f"divergence {name!r}: f must not be linear, but f(u) = {tilt:.6g} (u - 1) everywhere")


# --- the registry -------------------------------------------------------------------------------------------

_BUILT_IN = (
    FDivergence(
        "kl",
        lambda u: u - 1.0 - torch.log(u),
        BinaryForm(lambda p, q, s, moved: 0.0 - p * s, lambda p, q, s, moved: excess(p, s, moved)),
        solvers.solve_kl,
        float32=True,
        shape=Shape(1.0, INF, 1.0),
    ),
    FDivergence(
        "reverse_kl",
        lambda u: torch.xlogy(u, u) - u + 1.0,
        BinaryForm(
            lambda p, q, s, moved: q * s,
            lambda p, q, s, moved: excess(q, -s, -moved),
            slope=lambda k: k.d * (k.s - k.t),
            trips=6,
        ),
        shape=Shape(1.0, 1.0, INF),
    ),
    FDivergence(
        "tv",
        lambda u: 0.5 * (u - 1.0).abs(),
        BinaryForm(lambda p, q, s, moved: 0.5 * moved.abs()),
        lambda u, w, log_u, radius: solvers.from_share(radius / w),
        float32=True,
        shape=Shape(1.0, 0.5, 0.5),
    ),
    FDivergence(
        "chi2",
        lambda u: (u - 1.0).square(),
        BinaryForm(lambda p, q, s, moved: moved * (moved / (p + TINY))),
        # sqrt(u) from its logarithm, as u itself may underflow
        lambda u, w, log_u, radius: solvers.from_share(torch.sqrt(radius / w) * torch.exp(0.5 * log_u)),
        float32=True,
        shape=Shape(2.0, 1.0, INF),
    ),
    FDivergence(
        "neyman_chi2",
        lambda u: (u - 1.0).square() / u,
        BinaryForm(lambda p, q, s, moved: moved * (moved / (q + TINY))),
        solvers.solve_neyman,
        shape=Shape(2.0, INF, 1.0),
    ),
    FDivergence(
        "hellinger2",
        lambda u: (torch.sqrt(u) - 1.0).square(),
        BinaryForm(lambda p, q, s, moved: (moved / (torch.sqrt(p) + torch.sqrt(q) + TINY)).square()),
        solvers.solve_hellinger,
        shape=Shape(0.5, 1.0, 1.0),
    ),
    FDivergence(
        "js",
        lambda u: 0.5 * (torch.xlogy(u, u) - torch.xlogy(u + 1.0, 0.5 * (u + 1.0))),
        BinaryForm(_js, _js_exact, _js_slope, trips=6),
        shape=Shape(0.25, 0.5 * LOG_2, 0.5 * LOG_2),
    ),
    FDivergence(
        "jeffreys",
        lambda u: (u - 1.0) * torch.log(u),
        BinaryForm(
            lambda p, q, s, moved: moved * s,
            slope=lambda k: k.d * (k.s - k.t + k.moved / k.q) + k.moved,
            trips=6,
            log_tail=True,
        ),
        shape=Shape(2.0, INF, INF),
    ),
)
_REGISTRY = {divergence.name: divergence for divergence in _BUILT_IN}
DIVERGENCE_NAMES: tuple[str, ...] = (*_REGISTRY, "alpha:<a>")


def _alpha_divergence(name: str) -> FDivergence:
    text = name.partition(":")[2]
    try:
        a = float(text)
    except ValueError:
        a = math.nan
    if not math.isfinite(a) or a in (0.0, 1.0):
        raise ValueError(
            f"divergence {name!r}: alpha must be a finite number other than 0 and 1 "
            f"(0 is 'kl', 1 is 'reverse_kl'), for example 'alpha:0.5'; got {text!r}"
        )
    binary = BinaryForm(partial(_alpha, a=a), partial(_alpha_exact, a=a), partial(_alpha_slope, a=a), 6, power=a)
    shape = Shape(1.0, 1.0 / a if a > 0.0 else INF, 1.0 / (1.0 - a) if a < 1.0 else INF)
    return FDivergence(name, lambda u: (u**a - a * u + a - 1.0) / (a * (a - 1.0)), binary, shape=shape)


def get_divergence(divergence: str | FDivergence) -> FDivergence:
    """The FDivergence of a name; an FDivergence passes through.

    Raises:
        ValueError: unknown name (lists the known ones and the nearest), or alpha equal to 0 or 1.
    """
    if isinstance(divergence, FDivergence):
        return divergence
    known = ", ".join(DIVERGENCE_NAMES)
    if not isinstance(divergence, str):
        raise ValueError(f"divergence must be a name ({known}) or an FDivergence, got {divergence!r}")
    if divergence.startswith("alpha:") and divergence not in _REGISTRY:
        _REGISTRY[divergence] = _alpha_divergence(divergence)
    if divergence not in _REGISTRY:
        hint = nearest(divergence, DIVERGENCE_NAMES)
        raise ValueError(f"unknown divergence {divergence!r}{hint}; known: {known}, or an FDivergence")
    return _REGISTRY[divergence]


def renyi_to_alpha(order: float, radius: float) -> tuple[str, float]:
    """A Renyi ball as an alpha-divergence ball: the (divergence, radius) to pass to ``band``.

    Renyi divergence R_a(new || old) = ln(E_old[u^a]) / (a - 1) is an increasing function of the alpha
    divergence, E_old[u^a] = 1 + a (a - 1) D_a, so the balls coincide at

        D_a <= (e^((a - 1) radius) - 1) / (a (a - 1)).

    Raises:
        ValueError: order not a positive number other than 1, or radius not positive and finite.
    """
    if not (math.isfinite(order) and order > 0.0 and order != 1.0):
        raise ValueError(f"the Renyi order must be positive, finite and not 1 (1 is 'reverse_kl'), got {order}")
    if not (math.isfinite(radius) and radius > 0.0):
        raise ValueError(f"radius must be positive and finite, got {radius}")
    return f"alpha:{order!r}", math.expm1((order - 1.0) * radius) / (order * (order - 1.0))
