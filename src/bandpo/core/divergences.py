"""f-divergences between two coins: generators, their log-space forms, and the registry of names.

A token with old probability ``p`` and new probability ``q = r p`` leaves everybody else ``1 - p`` and
``1 - q``. The divergence of the two coins is

    g_f(p, r) = p f(r) + (1 - p) f((1 - r p) / (1 - p))            (arXiv 2603.04918)

One of the two outcomes grows, by ``e^x``, and the other shrinks, by ``e^-D``. Writing the perspective of the
growing one through the conjugate generator ``f*(v) = v f(1/v)`` gives

    g_f = q_grow f*(e^-x) + w_shrink f(e^-D)

so both generators are only ever evaluated on [0, 1], nothing overflows, the limits p -> 0 and p -> 1 are
ordinary values, and, as f and f* are shifted to touch zero at 1, both terms are >= 0 and nothing cancels.
"""

from __future__ import annotations

import difflib
import math
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor

TensorFunction = Callable[[Tensor], Tensor]

LOG_2 = math.log(2.0)


def as_work_dtype(x: Tensor) -> Tensor:
    """The tensor in the dtype all arithmetic uses: float64 stays, any other float becomes float32.

    Raises:
        ValueError: the tensor is not floating point.
    """
    if not x.dtype.is_floating_point:
        raise ValueError(
            f"log-probabilities must be floating point (float16, bfloat16, float32, float64), got {x.dtype}"
        )
    return x if x.dtype == torch.float64 else x.to(torch.float32)


# --- elementary functions -----------------------------------------------------------------------------------


def expm1(x: Tensor) -> Tensor:
    """e^x - 1 to a few ulp, compiled or not."""
    if torch.compiler.is_compiling() and x.device.type == "cpu":
        # Inductor's CPU code makes exp(x) - 1 of expm1, which loses every digit of 1 - p as p -> 1.
        half = torch.tanh(0.5 * x)
        return torch.where(x < 1.0, 2.0 * half / (1.0 - half), torch.exp(x) - 1.0)
    return torch.expm1(x)


def log1mexp(x: Tensor) -> Tensor:
    """log(1 - e^x) for x <= 0, accurate at both ends (Maechler's switch at -log 2)."""
    return torch.where(x > -LOG_2, torch.log(-expm1(x)), torch.log1p(-torch.exp(x)))


def _taylor_terms(dtype: torch.dtype) -> int:
    return 14 if dtype == torch.float64 else 8


def expm1_residual(t: Tensor) -> Tensor:
    """e^t - 1 - t >= 0 without the cancellation at small t."""
    small = t.abs() < 0.5
    z = torch.where(small, t, 0.0)
    n = _taylor_terms(t.dtype)
    series = torch.ones_like(z)
    for k in range(n + 1, 2, -1):
        series = 1.0 + series * z / k
    return torch.where(small, 0.5 * z * z * series, expm1(t) - t)


def _t_exp(t: Tensor) -> Tensor:
    # t e^t for t <= 0, with its limit 0 at -inf; e^-800 is 0 in both work dtypes.
    return t.clamp(min=-800.0) * torch.exp(t)


# --- log-space forms ----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class LogForm:
    """What a solver needs of a generator, in t = log u; f shifted so that f(1) = f'(1) = 0.

    Attributes:
        value: t <= 0 -> f(e^t); at -inf the limit f(0), which may be +inf.
        conjugate: t <= 0 -> f*(e^t) = e^t f(e^-t); at -inf the slope of f at infinity, may be +inf.
        slope: t -> f'(e^t), any sign of t.
        conjugate_slope: t -> f*'(e^t), any sign of t.
        curvature: f''(1), which sets the size of the band for a small radius.
        at_zero: f(0), may be +inf.
        at_infinity: the slope of f at infinity, f*(0), may be +inf.
        log_tail: f(u) grows like -log u at 0, so a lower log-bound can be as far away as radius / p.
    """

    value: TensorFunction
    conjugate: TensorFunction
    slope: TensorFunction
    conjugate_slope: TensorFunction
    curvature: float
    at_zero: float
    at_infinity: float
    log_tail: bool = False

    def reverse(self) -> LogForm:
        """The form of the conjugate generator, that is of the divergence with its arguments exchanged."""
        return LogForm(
            self.conjugate,
            self.value,
            self.conjugate_slope,
            self.slope,
            self.curvature,
            self.at_infinity,
            self.at_zero,
        )


def _kl_value(t: Tensor) -> Tensor:
    return expm1_residual(t)


def _kl_conjugate(t: Tensor) -> Tensor:
    # v ln v - v + 1 = e^t (e^-t - 1 + t): the product keeps small t exact, the sum keeps large ones finite.
    small = t > -0.5
    near = torch.exp(t) * expm1_residual(-torch.where(small, t, 0.0))
    return torch.where(small, near, _t_exp(t) - expm1(t))


def _kl_slope(t: Tensor) -> Tensor:
    return -expm1(-t)


def _identity(t: Tensor) -> Tensor:
    return t


def _tv_value(t: Tensor) -> Tensor:
    return -0.5 * expm1(t)


def _tv_slope(t: Tensor) -> Tensor:
    return 0.5 * torch.sign(t)


def _chi2_value(t: Tensor) -> Tensor:
    return expm1(t).square()


def _chi2_conjugate(t: Tensor) -> Tensor:
    return expm1(t).square() * torch.exp(-t)


def _chi2_slope(t: Tensor) -> Tensor:
    return 2.0 * expm1(t)


def _neyman_slope(t: Tensor) -> Tensor:
    return -expm1(-2.0 * t)


def _hellinger_value(t: Tensor) -> Tensor:
    return expm1(0.5 * t).square()


def _hellinger_slope(t: Tensor) -> Tensor:
    return -expm1(-0.5 * t)


def _js_value(t: Tensor) -> Tensor:
    # With z = t/2: (1 + e^t)/2 (z tanh z - log cosh z), which loses at most a factor three.
    e = torch.exp(t)
    near = t > -2.0
    zt = torch.where(near, t, 0.0)
    tanh = torch.tanh(0.5 * zt)
    close = 0.5 * (1.0 + e) * (0.5 * zt * tanh + 0.5 * torch.log1p(-tanh * tanh))
    far = 0.5 * (1.0 + e) * (LOG_2 - torch.log1p(e)) + 0.5 * _t_exp(t)
    return torch.where(near, close, far)


def _js_slope(t: Tensor) -> Tensor:
    # 1/2 ln(2u/(1+u)); each branch avoids the overflow of the other.
    down = 0.5 * (t - torch.log1p(0.5 * expm1(torch.clamp(t, max=0.0))))
    up = -0.5 * torch.log1p(0.5 * expm1(-torch.clamp(t, min=0.0)))
    return torch.where(t < 0.0, down, up)


def _jeffreys_value(t: Tensor) -> Tensor:
    return expm1(t) * t


def _jeffreys_slope(t: Tensor) -> Tensor:
    return t - expm1(-t)


def _alpha_value(t: Tensor, a: float) -> Tensor:
    # (u^a - a u + a - 1)/(a(a-1)). Written with b = min(a, 1-a) so that a near 0 or 1 loses nothing.
    limit = -1400.0 if t.dtype == torch.float64 else -170.0
    if a <= 0.5:
        near = t > -1.0
        tn = torch.where(near, t, 0.0)
        close = expm1_residual(a * tn) - a * expm1_residual(tn)
        far = expm1(a * t) - a * expm1(t)
        return torch.where(near, close, far) / (a * (a - 1.0))
    b = 1.0 - a
    tc = t.clamp(min=limit)  # e^limit is 0, and b * limit does not overflow
    return (torch.exp(tc) * expm1_residual(-b * tc) - b * _kl_conjugate(tc)) / (b * (b - 1.0))


def _alpha_slope(t: Tensor, a: float) -> Tensor:
    return expm1((a - 1.0) * t) / (a - 1.0)


INF = math.inf
KL_FORM = LogForm(_kl_value, _kl_conjugate, _kl_slope, _identity, 1.0, INF, 1.0, log_tail=True)
TV_FORM = LogForm(_tv_value, _tv_value, _tv_slope, _tv_slope, 1.0, 0.5, 0.5)
CHI2_FORM = LogForm(_chi2_value, _chi2_conjugate, _chi2_slope, _neyman_slope, 2.0, 1.0, INF)
HELLINGER_FORM = LogForm(_hellinger_value, _hellinger_value, _hellinger_slope, _hellinger_slope, 0.5, 1.0, 1.0)
JS_FORM = LogForm(_js_value, _js_value, _js_slope, _js_slope, 0.25, 0.5 * LOG_2, 0.5 * LOG_2)
JEFFREYS_FORM = LogForm(
    _jeffreys_value, _jeffreys_value, _jeffreys_slope, _jeffreys_slope, 2.0, INF, INF, log_tail=True
)


def _alpha_form(a: float) -> LogForm:
    return LogForm(
        partial(_alpha_value, a=a),
        partial(_alpha_value, a=1.0 - a),
        partial(_alpha_slope, a=a),
        partial(_alpha_slope, a=1.0 - a),
        1.0,
        1.0 / a if a > 0.0 else INF,
        1.0 / (1.0 - a) if a < 1.0 else INF,
    )


# --- short binary forms -------------------------------------------------------------------------------------


class Coins(NamedTuple):
    """Two coins, (p, c = 1 - p) before and (q, d = 1 - q) after, with what is known of them to full precision.

    s = log(q / p), t = log(d / c) and moved = q - p = c - d; one shape, float64.
    """

    p: Tensor
    c: Tensor
    q: Tensor
    d: Tensor
    s: Tensor
    t: Tensor
    moved: Tensor


CoinFunction = Callable[[Coins], Tensor]


@dataclass(frozen=True)
class BinaryForm:
    """g_f in its shortest form, for float64: few operations, and an absolute error near 1e-16 sqrt(g).

    That is a relative 1e-13 at g = 1e-6, where float32 would have nothing left; hence float64 even for float32
    log-probs. The changes of coins that never had a chance are huge rather than infinite (see `coins`) and a
    quotient is of p + TINY, so that 0 times such a change is 0 and NaN needs no care.

    Attributes:
        value: g_f.
        slope: -(d g_f / d t) = d (f'(q / p) - f'(d / c)) for s >= 0 >= t, which Newton's method divides by.
    """

    value: CoinFunction
    slope: CoinFunction | None = None


TINY, HUGE = 1e-300, 1e290


def _kl_binary(k: Coins) -> Tensor:
    return 0.0 - k.p * k.s - k.c * k.t


def _reverse_kl_binary(k: Coins) -> Tensor:
    return k.q * k.s + k.d * k.t


def _reverse_kl_binary_slope(k: Coins) -> Tensor:
    return k.d * (k.s - k.t)


def _tv_binary(k: Coins) -> Tensor:
    return k.moved.abs()


def _chi2_binary(k: Coins) -> Tensor:
    return k.moved * (k.moved / (k.p + TINY)) + k.moved * (k.moved / (k.c + TINY))


def _neyman_binary(k: Coins) -> Tensor:
    return k.moved * (k.moved / (k.q + TINY)) + k.moved * (k.moved / (k.d + TINY))


def _hellinger_binary(k: Coins) -> Tensor:
    return (torch.sqrt(k.q) - torch.sqrt(k.p)).square() + (torch.sqrt(k.d) - torch.sqrt(k.c)).square()


def _js_lean(before: Tensor, after: Tensor, moved: Tensor) -> Tensor:
    # log of the new outcome over the midpoint is log1p of this, of the old one log1p of its negative
    lean = moved / (before + after + TINY)
    return lean.clamp(min=-1.0 + 1e-16, max=1.0 - 1e-16)


def _js_binary(k: Coins) -> Tensor:
    z, y = _js_lean(k.p, k.q, k.moved), _js_lean(k.c, k.d, -k.moved)
    token = k.q * torch.log1p(z) + k.p * torch.log1p(-z)
    return 0.5 * (token + k.d * torch.log1p(y) + k.c * torch.log1p(-y))


def _js_binary_slope(k: Coins) -> Tensor:
    z, y = _js_lean(k.p, k.q, k.moved), _js_lean(k.c, k.d, -k.moved)
    return 0.5 * k.d * (torch.log1p(z) - torch.log1p(y))


def _jeffreys_binary(k: Coins) -> Tensor:
    return k.moved * (k.s - k.t)


def _jeffreys_binary_slope(k: Coins) -> Tensor:
    return k.d * (k.s - k.t + k.moved / k.q) + k.moved


def _power(a: float, log_u: Tensor) -> Tensor:
    # u^a - 1, huge at most: 0 of it is 0
    return expm1((a * log_u).clamp(max=700.0))


def _alpha_binary(k: Coins, a: float) -> Tensor:
    # E_old[u^a - 1] = E_new[u^(a - 1) - 1]: the one whose power is nearer 0 divides out without a loss.
    b = a - 1.0
    if a > 0.5:
        return (k.q * _power(b, k.s) + k.d * _power(b, k.t)) / (a * b)
    return (k.p * _power(a, k.s) + k.c * _power(a, k.t)) / (a * b)


def _alpha_binary_slope(k: Coins, a: float) -> Tensor:
    b = a - 1.0
    return k.d * (_power(b, k.s) - _power(b, k.t)) / b


# --- closed forms -------------------------------------------------------------------------------------------
# Each takes the probabilities of the growing and of the shrinking outcome (u + w = 1, both accurate), log u and
# the radius, and returns (E, D): the share of the shrinking outcome's probability that moves and D = -log(1 - E),
# each by the route that keeps it accurate. D = inf means the side is saturated.

ClosedForm = Callable[[Tensor, Tensor, Tensor, Tensor], tuple[Tensor, Tensor]]


def _from_share(share: Tensor) -> tuple[Tensor, Tensor]:
    share = share.clamp(max=1.0)
    return share, -torch.log1p(-share)


def _tv_closed(u: Tensor, w: Tensor, log_u: Tensor, radius: Tensor) -> tuple[Tensor, Tensor]:
    # |q - p| = w E = radius
    return _from_share(radius / w)


def _chi2_closed(u: Tensor, w: Tensor, log_u: Tensor, radius: Tensor) -> tuple[Tensor, Tensor]:
    # (w E)^2 / (u w) = radius
    # sqrt(u) from its logarithm, as u itself may underflow.
    return _from_share(torch.sqrt(radius / w) * torch.exp(0.5 * log_u))


def _neyman_closed(u: Tensor, w: Tensor, log_u: Tensor, radius: Tensor) -> tuple[Tensor, Tensor]:
    # (w E)^2 = radius (u + w E)(w - w E), the Wilson interval, solved for the odds E/(1-E): nothing cancels.
    odds = (radius + torch.sqrt(radius * (radius + 4.0 * u * w))) / (2.0 * w)
    finite = odds.clamp(max=1e30)
    return finite / (1.0 + finite), torch.log1p(odds)


def _hellinger_closed(u: Tensor, w: Tensor, log_u: Tensor, radius: Tensor) -> tuple[Tensor, Tensor]:
    # sqrt(1 - E) = sin(omega - theta) / sin(omega), tan(omega) = sqrt(w/u), cos(theta) = 1 - radius/2.
    sine = torch.sqrt((radius * (1.0 - 0.25 * radius)).clamp(min=1e-30))  # not 0: u / w may be inf
    lost = (0.5 * radius + torch.sqrt(u / w) * sine).clamp(max=1.0)
    return lost * (2.0 - lost), -2.0 * torch.log1p(-lost)


# --- user generators ----------------------------------------------------------------------------------------

_GENERIC_LIMIT = -700.0  # e^-700 is the smallest ratio a plain f of u is asked about, in float64
_GENERIC_STEP = 6e-6  # cube root of the float64 epsilon: optimal for central differences


def _generic_value(t: Tensor, f: TensorFunction, slope_at_1: float, at_zero: float) -> Tensor:
    u = torch.exp(t.double())
    safe = torch.where(t.double() > _GENERIC_LIMIT, u, math.exp(_GENERIC_LIMIT))
    inner = f(safe) - slope_at_1 * (safe - 1.0)
    return torch.where(u == 0.0, at_zero, inner).clamp(min=0.0).to(t.dtype)


def _generic_conjugate(t: Tensor, f: TensorFunction, slope_at_1: float, at_zero: float) -> Tensor:
    v = torch.exp(t.double())
    safe = torch.where(t.double() > _GENERIC_LIMIT, v, math.exp(_GENERIC_LIMIT))
    inner = safe * f(1.0 / safe) - slope_at_1 * (1.0 - safe)
    return torch.where(v == 0.0, at_zero, inner).clamp(min=0.0).to(t.dtype)


def _generic_slope(t: Tensor, f: TensorFunction, slope_at_1: float) -> Tensor:
    u = torch.exp(t.double().clamp(_GENERIC_LIMIT, -_GENERIC_LIMIT))
    h = _GENERIC_STEP
    return ((f(u * (1.0 + h)) - f(u * (1.0 - h))) / (2.0 * h * u) - slope_at_1).to(t.dtype)


def _generic_conjugate_slope(t: Tensor, f: TensorFunction, slope_at_1: float) -> Tensor:
    v = torch.exp(t.double().clamp(_GENERIC_LIMIT, -_GENERIC_LIMIT))
    h = _GENERIC_STEP
    up, down = v * (1.0 + h), v * (1.0 - h)
    return ((up * f(1.0 / up) - down * f(1.0 / down)) / (2.0 * h * v) + slope_at_1).to(t.dtype)


def _check_generator(name: str, f: TensorFunction) -> LogForm:
    """Refuse what is no convex f with f(1) = 0, saying which property failed and where; else its log form."""
    u = torch.exp(torch.linspace(-12.0, 12.0, 481, dtype=torch.float64))
    try:
        y: Any = f(u)
    except Exception as error:
        raise ValueError(
            f"divergence {name!r}: f must map a float64 tensor of ratios u to a tensor; calling it on one "
            f"raised {type(error).__name__}: {error}"
        ) from error
    if not isinstance(y, Tensor) or y.shape != u.shape:
        got = f"shape {tuple(y.shape)}" if isinstance(y, Tensor) else type(y).__name__
        raise ValueError(
            f"divergence {name!r}: f must act elementwise on tensors; a tensor of shape {tuple(u.shape)} gave {got}"
        )
    y = y.detach().double()
    bad = ~torch.isfinite(y)
    if bool(bad.any()):
        where = float(u[bad][0])
        raise ValueError(
            f"divergence {name!r}: f must be finite for u > 0, but f({where:.6g}) = {float(f(u[bad])[0])}"
        )
    one = torch.ones(1, dtype=torch.float64)
    at_one = float(f(one).detach())
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
    h = _GENERIC_STEP
    up, down = (float(f(one + s).detach()) for s in (h, -h))
    slope_at_1 = (up - down) / (2.0 * h)
    if bool(((y - slope_at_1 * (u - 1.0)).abs() <= 1e-8 * (1.0 + u)).all()):
        raise ValueError(f"divergence {name!r}: f must not be linear, but f(u) = {slope_at_1:.6g} (u - 1) everywhere")
    h2 = 1e-3
    curvature = (float(f(one + h2).detach()) + float(f(one - h2).detach())) / h2**2

    def limit(value: Callable[[Tensor], Tensor]) -> float:
        # The value at 0 itself if f gives one, else (0 log 0 and the like) the limit seen from a tiny u.
        at_zero = float(value(torch.zeros(1, dtype=torch.float64)).detach())
        if math.isnan(at_zero):
            at_zero = float(value(torch.full((1,), math.exp(_GENERIC_LIMIT), dtype=torch.float64)).detach())
        return math.inf if math.isnan(at_zero) else at_zero

    def slope_at_infinity(v: Tensor) -> Tensor:
        # v f(1/v) at v = 0 is 0 * inf; let it be NaN there so that the limit is used.
        return v * f(1.0 / v) - slope_at_1 * (1.0 - v)

    at_zero = limit(lambda v: f(v) - slope_at_1 * (v - 1.0))
    at_infinity = limit(slope_at_infinity)
    return LogForm(
        partial(_generic_value, f=f, slope_at_1=slope_at_1, at_zero=at_zero),
        partial(_generic_conjugate, f=f, slope_at_1=slope_at_1, at_zero=at_infinity),
        partial(_generic_slope, f=f, slope_at_1=slope_at_1),
        partial(_generic_conjugate_slope, f=f, slope_at_1=slope_at_1),
        max(curvature, 1e-6),
        at_zero,
        at_infinity,
    )


# --- the divergence -----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class FDivergence:
    """D_f(old || new) = E_old[f(pi_new / pi_old)] for a convex f with f(1) = 0; only f is required.

    Attributes:
        name: what errors and logs call it.
        f: elementwise torch function of the ratio u > 0. Any multiple of (u - 1) in it is irrelevant.
        form: optional log-space form (:class:`LogForm`). Without one, f is evaluated in float64 and roots are
            found without derivatives; f(0) may be +inf, and where f gives NaN at 0 (0 log 0) the limit from
            u = e^-700 is used. Lower bounds below e^-700 are reported as 0.
        closed: optional closed form (u, w, log_u, radius) -> (E, D): the share E of the shrinking outcome's
            probability w that moves to the growing one (u = 1 - w), and D = -log(1 - E), inf if saturated.
        binary: optional :class:`BinaryForm`, a short float64 form of g_f for membership and Newton's trips.
        solver: "kl", "closed" (needs `closed`), "newton" (needs `form`) or "bracket" (needs only f); chosen
            by what is given if empty.
        trips: Newton trips; as few as tests/test_solvers.py shows to suffice for the built-in ones.
        float32: the solve meets its precision in float32; otherwise it runs in float64 internally.

    Raises:
        ValueError: f is not elementwise on tensors, not finite for u > 0, f(1) != 0, or f is not convex.
    """

    name: str
    f: TensorFunction = field(repr=False)
    form: LogForm | None = field(default=None, repr=False)
    closed: ClosedForm | None = field(default=None, repr=False)
    binary: BinaryForm | None = field(default=None, repr=False)
    solver: str = field(default="", repr=False)
    trips: int = field(default=12, repr=False)
    float32: bool = field(default=False, repr=False)
    log_form: LogForm = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        built_in = self.form is not None
        object.__setattr__(self, "log_form", self.form if built_in else _check_generator(self.name, self.f))
        if not self.solver:
            chosen = "closed" if self.closed is not None else "newton" if built_in else "bracket"
            object.__setattr__(self, "solver", chosen)


def _f_kl(u: Tensor) -> Tensor:
    return u - 1.0 - torch.log(u)


def _f_reverse_kl(u: Tensor) -> Tensor:
    return torch.xlogy(u, u) - u + 1.0


def _f_tv(u: Tensor) -> Tensor:
    return 0.5 * (u - 1.0).abs()


def _f_chi2(u: Tensor) -> Tensor:
    return (u - 1.0).square()


def _f_neyman(u: Tensor) -> Tensor:
    return (u - 1.0).square() / u


def _f_hellinger(u: Tensor) -> Tensor:
    return (torch.sqrt(u) - 1.0).square()


def _f_js(u: Tensor) -> Tensor:
    return 0.5 * (torch.xlogy(u, u) - torch.xlogy(u + 1.0, 0.5 * (u + 1.0)))


def _f_jeffreys(u: Tensor) -> Tensor:
    return (u - 1.0) * torch.log(u)


def _f_alpha(u: Tensor, a: float) -> Tensor:
    return (u**a - a * u + a - 1.0) / (a * (a - 1.0))


_REGISTRY: dict[str, FDivergence] = {
    d.name: d
    for d in (
        FDivergence("kl", _f_kl, KL_FORM, binary=BinaryForm(_kl_binary), solver="kl", float32=True),
        FDivergence(
            "reverse_kl",
            _f_reverse_kl,
            KL_FORM.reverse(),
            binary=BinaryForm(_reverse_kl_binary, _reverse_kl_binary_slope),
            trips=6,
        ),
        FDivergence("tv", _f_tv, TV_FORM, _tv_closed, BinaryForm(_tv_binary), float32=True),
        FDivergence("chi2", _f_chi2, CHI2_FORM, _chi2_closed, BinaryForm(_chi2_binary), float32=True),
        FDivergence("neyman_chi2", _f_neyman, CHI2_FORM.reverse(), _neyman_closed, BinaryForm(_neyman_binary)),
        FDivergence("hellinger2", _f_hellinger, HELLINGER_FORM, _hellinger_closed, BinaryForm(_hellinger_binary)),
        FDivergence("js", _f_js, JS_FORM, binary=BinaryForm(_js_binary, _js_binary_slope), trips=6),
        FDivergence(
            "jeffreys",
            _f_jeffreys,
            JEFFREYS_FORM,
            binary=BinaryForm(_jeffreys_binary, _jeffreys_binary_slope),
            trips=6,
        ),
    )
}

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
    binary = BinaryForm(partial(_alpha_binary, a=a), partial(_alpha_binary_slope, a=a))
    # Beyond these powers the first trips overshoot.
    return FDivergence(name, partial(_f_alpha, a=a), _alpha_form(a), binary=binary, trips=6 if -3 <= a <= 3 else 12)


def _lookup(name: str) -> FDivergence:
    found = _REGISTRY.get(name)
    if found is not None:
        return found
    if name.startswith("alpha:"):
        return _REGISTRY.setdefault(name, _alpha_divergence(name))
    near = difflib.get_close_matches(name, DIVERGENCE_NAMES, n=1, cutoff=0.4)
    hint = f" Did you mean {near[0]!r}?" if near else ""
    raise ValueError(f"unknown divergence {name!r}; known: {', '.join(DIVERGENCE_NAMES)}, or an FDivergence.{hint}")


def get_divergence(divergence: str | FDivergence) -> FDivergence:
    """The FDivergence of a name; an FDivergence passes through.

    Raises:
        ValueError: unknown name (lists the known ones and the nearest), or alpha equal to 0 or 1.
    """
    if isinstance(divergence, FDivergence):
        return divergence
    if not isinstance(divergence, str):
        raise ValueError(
            f"divergence must be a name ({', '.join(DIVERGENCE_NAMES)}) or an FDivergence, got {divergence!r}"
        )
    return _lookup(divergence)


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


# --- the binary divergence ----------------------------------------------------------------------------------


def binary_value(logps: Tensor, old_logps: Tensor, form: LogForm) -> Tensor:
    """g_f from the two log-probabilities (work dtype, <= 0), any shape; limits at 0 and -inf included."""
    s = torch.where(logps == old_logps, 0.0, logps - old_logps)  # -inf against -inf is no change
    p, q = torch.exp(old_logps), torch.exp(logps)
    c, d = 0.0 - expm1(old_logps), 0.0 - expm1(logps)
    grows = s > 0.0
    moved = torch.where(grows, q, p) * -expm1(-s.abs())  # |q - p| without overflow or cancellation
    # log((1-q)/(1-p)): relative change for small ones, the quotient where nearly all of the rest has gone.
    change = torch.where(s == 0.0, 0.0, torch.where(grows, -moved, moved) / c)
    t = torch.where(change < -0.5, torch.log(d / c), torch.log1p(change))
    grown = torch.where(grows, q, d)
    shrinking = torch.where(grows, c, p)
    x = torch.where(grows, s, t).clamp(min=0.0)
    y = torch.where(grows, t, s).clamp(max=0.0)
    first = torch.where(grown == 0.0, 0.0, grown * form.conjugate(-x))
    second = torch.where(shrinking == 0.0, 0.0, shrinking * form.value(y))
    return first + second


def coins(logps: Tensor, old_logps: Tensor) -> Coins:
    """The two coins of a token from its log-probabilities (float64, <= 0; -inf allowed), to a few ulp each.

    A change from or to 0 is HUGE, not infinite, and none where both are 0; a NaN stays one in all but t.
    """
    new, old = logps.clamp(min=-HUGE), old_logps.clamp(min=-HUGE)
    s = new - old
    p, q = torch.exp(old), torch.exp(new)
    c, d = 0.0 - expm1(old), 0.0 - expm1(new)
    moved = torch.copysign(torch.maximum(p, q) * expm1(0.0 - s.abs()), s)  # q - p without cancellation
    # log(d / c): from the relative change where it is small, with the rounding of 1 + change added back.
    change = moved / (0.0 - c)
    far = change.abs() > 0.5
    ratio = torch.where(far, d / c, 1.0 + change)
    t = torch.log(ratio) + torch.where(far, 0.0, (change - (ratio - 1.0)) / ratio)
    # nan_to_num is SIMD on the CPU where `where` is a loop of branches.
    t = torch.nan_to_num(t, nan=0.0, posinf=HUGE, neginf=-HUGE)
    return Coins(p, c, q, d, s, t, moved)
