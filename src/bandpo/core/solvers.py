"""Fixed-trip root finding for one side of the band: no device sync, no data-dependent trip counts.

Both sides are one problem. With u the old probability of the outcome that grows and w = 1 - u that of the one
that shrinks, find D >= 0 (the shrinking outcome is scaled by e^-D) with

    g(D) = (u + w E) f*(e^-x) + w f(e^-D) = radius,     E = 1 - e^-D,   x = log1p(w E / u),

where f*(v) = v f(1/v) is the conjugate generator. The upper bound of a token is x with (u, w) = (p, 1 - p); its
lower bound is -D with (u, w) = (1 - p, p). g increases in D, and D = inf is the edge of the simplex.
Each solver takes u, w, log u and the radius, of any one shape in a work dtype, and returns (E, D).
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from .coins import HUGE, TINY, BinaryForm, Coins, Perspective, TensorFunction, divergence_of, expm1, one_minus_exp

Root = tuple[Tensor, Tensor]  # (E, D)
Solver = Callable[[Tensor, Tensor, Tensor, Tensor], Root]

# Iterations that reach the last digits for radius in [1e-8, 20]; tests/core/test_solvers.py checks.
KL_TRIPS = {torch.float32: (torch.float32, torch.float64), torch.float64: (torch.float64,) * 3}
BRACKET_TRIPS = 60
STEP = 64.0


def growth(w: Tensor, log_u: Tensor) -> TensorFunction:
    """E -> x = log1p(w E / u), the log-ratio of the outcome that grows, even if u underflows.

    1/u is taken as e^m e^rest with e^m finite: if the rest is not 0, w E e^m is far above 1 and log1p is log.
    What depends on u alone is computed once, because solvers compute x in every iteration.
    """
    m = (0.0 - log_u).clamp(max=80.0 if w.dtype == torch.float32 else 700.0)
    rest = (0.0 - log_u) - m
    odds = w * torch.exp(m)
    return lambda E: torch.log1p(odds * E) + rest


# --- closed forms -------------------------------------------------------------------------------------------
# E and D each by the formula that keeps it accurate.


def from_share(E: Tensor) -> Root:
    """From a known E, capped at 1, where the side is saturated."""
    E = E.clamp(max=1.0)
    return E, -torch.log1p(-E)


def solve_neyman(u: Tensor, w: Tensor, log_u: Tensor, radius: Tensor) -> Root:
    """(w E)^2 = radius (u + w E)(w - w E), the Wilson interval, solved for the odds E / (1 - E): nothing cancels."""
    odds = (radius + torch.sqrt(radius * (radius + 4.0 * u * w))) / (2.0 * w)
    finite = odds.clamp(max=1e30)
    return finite / (1.0 + finite), torch.log1p(odds)


def solve_hellinger(u: Tensor, w: Tensor, log_u: Tensor, radius: Tensor) -> Root:
    """sqrt(1 - E) = sin(omega - theta) / sin(omega), tan(omega) = sqrt(w / u), cos(theta) = 1 - radius / 2."""
    sine = torch.sqrt((radius * (1.0 - 0.25 * radius)).clamp(min=1e-30))  # not 0: u / w may be inf
    lost = (0.5 * radius + torch.sqrt(u / w) * sine).clamp(max=1.0)
    return lost * (2.0 - lost), -2.0 * torch.log1p(-lost)


# --- iterations ---------------------------------------------------------------------------------------------


def solve_kl(u: Tensor, w: Tensor, log_u: Tensor, radius: Tensor) -> Root:
    """KL(old || new): h(D) = w D - u log1p(w E / u) - radius = 0 by Halley's step from the right.

    h is convex and radius/w + sqrt(2 radius u/w) lies right of its root, where Halley's method, Newton with
    the known second derivative, falls to the root with the error cubed in every iteration.
    Cost: an expm1 and a log1p per iteration, an expm1 after; log u is not read. The last one is in float64, where the
    two terms of h may cancel down to a radius of 1e-6 and leave every digit of float32.
    Precision: a few ulp of D in float32, 1e-16 / sqrt(radius) in float64.
    """
    dtype = w.dtype
    # Below the floor D = (radius + O(w)) / w exactly enough; solving there keeps radius / w finite.
    raised = w.clamp(min=1e-18 if dtype == torch.float32 else 1e-30)
    back = raised / w
    D = radius / raised
    D = D + torch.sqrt(2.0 * D * u)
    w = raised
    for trip in KL_TRIPS[dtype]:
        u, w, D, radius = u.to(trip), w.to(trip), D.to(trip), radius.to(trip)
        E = one_minus_exp(-D)
        moved = w * E
        q = u + moved
        relative = (moved / u).clamp(max=1e30)
        step = q / E * (D - (u * torch.log1p(relative) + radius) / w)
        # h'' / (2 h') = u e^-D / (2 q E)
        half_bend = (0.5 - 0.5 * E) * u / (q * E)
        D = D - step / (1.0 - step * half_bend)
    D = D.to(dtype) * back
    return one_minus_exp(-D), D


def solve_newton(u: Tensor, w: Tensor, log_u: Tensor, radius: Tensor, binary: BinaryForm, curvature: float) -> Root:
    """A binary form with its slope: Newton in coordinates where g is nearly a straight line.

    The unknown is log D where f grows like -log u at 0, else log(e^D - 1), the log-odds of the moved share;
    the equation is log(g / radius) = 0, or with a finite edge value G, log(g (G - radius) / (radius (G - g))) = 0.
    Both ends are then lines (slope 2 at the center), so Newton converges from anywhere in a few iterations, each of
    at most a factor e^STEP; f''(1) and `power` give the start. D beyond 690 counts as saturated, log tails excepted.
    Cost: `binary.trips` iterations of 5 transcendentals in float64 plus those of the binary form.
    Precision: a few ulp times the condition of the root (poor only within ulps of saturation).
    """
    assert binary.slope is not None
    x_of = growth(w, log_u)
    # The edge: everything that shrinks is gone. An infinite one counts as huge, which drops it from the equation.
    x = (0.0 - log_u).clamp(max=HUGE)
    k = Coins(u, w, torch.ones_like(w), torch.zeros_like(w), x, torch.full_like(w, -HUGE), w)
    edge = divergence_of(k, binary.value)
    saturated = radius >= edge
    edge = edge.clamp(max=HUGE)
    reach = (edge - radius).clamp(min=TINY) / radius
    far = radius / (w * curvature + TINY)
    start = far + torch.sqrt(2.0 * far * u)
    # The state is D itself or e^D - 1, moved by factors: relative accuracy at every size.
    state = start if binary.log_tail else expm1(_held(start, u, w, radius, binary.power))
    for _ in range(binary.trips):
        state = state.clamp(min=TINY, max=HUGE)
        E, D, kept, speed = _coordinates(state, binary.log_tail)
        moved = w * E
        k = Coins(u, w, u + moved, w * kept, x_of(E), 0.0 - D, moved)
        g = divergence_of(k, binary.value).clamp(min=TINY, max=HUGE)
        remaining = (edge - g).clamp(min=TINY)
        h = torch.log(g / remaining * reach)
        step = h / (speed * binary.slope(k) * (1.0 / g + 1.0 / remaining))
        # inf / inf, if all has underflowed: stay. A NaN input is in the state itself.
        state = state * torch.exp(0.0 - torch.nan_to_num(step, nan=0.0).clamp(min=-STEP, max=STEP))
    E, D, _, _ = _coordinates(state, binary.log_tail)
    if not binary.log_tail:
        saturated = saturated | (D > 690.0)
    return torch.where(saturated, 1.0, E), torch.where(saturated, torch.inf, D)


def _held(start: Tensor, u: Tensor, w: Tensor, radius: Tensor, power: float) -> Tensor:
    """A start, held to where the outcome on f's steep side, if there is one, reaches the radius alone."""
    if 0.0 <= power <= 1.0:
        return start.clamp(max=4.0)
    size = radius / (w if power < 0.0 else u).clamp(min=TINY)
    # f(e^t) = size, from its limits t^2 / 2 and e^(power t) / (power (power - 1))
    t = torch.log1p(abs(power) * torch.sqrt(2.0 * size) + power * (power - 1.0) * size) / abs(power)
    if power > 0.0:
        t = -torch.log1p(-(u * expm1(t.clamp(max=690.0)) / w).clamp(max=0.98))
    return torch.minimum(start, t).clamp(max=690.0)


def _coordinates(state: Tensor, log_tail: bool) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    # (E, D, e^-D, dD/dlog state)
    if log_tail:
        return one_minus_exp(-state), state, torch.exp(-state), state
    kept = (1.0 + state).reciprocal()
    E = state * kept
    return E, torch.log1p(state), kept, E


def solve_bracket(u: Tensor, w: Tensor, log_u: Tensor, radius: Tensor, part: Perspective) -> Root:
    """Any convex f, kinks included, from values of g_f only: Chandrupatla's method on log(g / radius) over log D.

    Every iteration is an inverse quadratic interpolation if that is safe, else a bisection.
    Cost: an iteration evaluates f twice; BRACKET_TRIPS iterations cover log D in [-60, log 700].
    Precision: that of f near 1, about 1e-16 / radius relative; D beyond 700 counts as saturated.
    """
    x_of = growth(w, log_u)

    def at(D: Tensor) -> Tensor:
        E = one_minus_exp(-D)
        return divergence_of(Coins(u, w, u + w * E, w * torch.exp(-D), x_of(E), -D, w * E), part)

    def residual(log_D: Tensor) -> Tensor:
        return torch.log(at(torch.exp(log_D)).clamp(min=TINY) / radius).clamp(-1e3, 1e3)

    edge = at(torch.full_like(w, 700.0))
    saturated = radius >= torch.where(w == 0.0, 0.0, edge)
    # a: newest point, b: the other end, c: the one before; f(a) and f(b) differ in sign.
    b, a = torch.full_like(w, -60.0), torch.full_like(w, 6.551080335043404)
    fb, fa = residual(b), residual(a)
    c, fc = a, fa
    t = torch.full_like(w, 0.5)
    for _ in range(BRACKET_TRIPS):
        new = a + t * (b - a)
        fnew = residual(new)
        same = (fnew < 0.0) == (fa < 0.0)
        c, fc = torch.where(same, a, b), torch.where(same, fa, fb)
        b, fb = torch.where(same, b, a), torch.where(same, fb, fa)
        a, fa = new, fnew
        xi, phi = (a - b) / (c - b), (fa - fb) / (fc - fb)
        safe = (phi.square() < xi) & ((1.0 - phi).square() < 1.0 - xi)
        quadratic = fa / (fb - fa) * fc / (fb - fc) + (c - a) / (b - a) * fa / (fc - fa) * fb / (fc - fb)
        t = torch.where(safe, quadratic, 0.5)
        width = 2.0 * torch.finfo(w.dtype).eps / (b - a).abs().clamp(min=1e-300)
        t = torch.where(width < 0.5, t.clamp(min=width, max=1.0 - width), 0.5)
        t = torch.where(torch.isfinite(t), t, 0.5)
    D = torch.exp(torch.where(fa.abs() < fb.abs(), a, b))
    D = torch.where(torch.isnan(edge + radius), torch.nan, D)
    return torch.where(saturated, 1.0, one_minus_exp(-D)), torch.where(saturated, torch.inf, D)
