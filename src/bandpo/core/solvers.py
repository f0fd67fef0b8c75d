"""Fixed-trip root finding for one side of the band: no device sync, no data-dependent trip counts.

Both sides are one problem. With u the old probability of the outcome that grows and w = 1 - u that of the one
that shrinks, find D >= 0 (the shrinking outcome is scaled by e^-D) with

    g(D) = (u + w E) f*(e^-x) + w f(e^-D) = radius,     E = 1 - e^-D,   x = torch.log1p(w E / u),

where f* is the conjugate generator. The upper bound of a token is x with (u, w) = (p, 1 - p); its lower bound
is -D with (u, w) = (1 - p, p). g increases in D, and D = inf is the edge of the simplex.
Each solver takes tensors of any one shape in a work dtype and returns (E, D).
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from .divergences import HUGE, TINY, BinaryForm, Coins, FDivergence, LogForm, expm1

# Trips that reach the last digits for radius in [1e-8, 20]; tests/test_solvers.py checks.
KL_TRIPS = {torch.float32: (torch.float32, torch.float64), torch.float64: (torch.float64,) * 3}
BRACKET_TRIPS = 60
STEP = 64.0


class Growth:
    """x = log1p(w E / u) = log(q / p), the log-ratio of the growing outcome, also where u underflows.

    1/u is taken as e^m e^rest with e^m finite: where the rest is not 0, w E e^m is far above 1 and log1p is log.
    What depends on u alone is computed once, as solvers ask for x at every trip.
    """

    def __init__(self, w: Tensor, log_u: Tensor) -> None:
        self.part = (0.0 - log_u).clamp(max=80.0 if w.dtype == torch.float32 else 600.0)
        self.rest = (0.0 - log_u) - self.part
        self.odds = w * torch.exp(self.part)

    def __call__(self, share: Tensor) -> Tensor:
        return torch.log1p(self.odds * share) + self.rest


def evaluate(
    share: Tensor, shrink: Tensor, u: Tensor, w: Tensor, growth: Growth, form: LogForm
) -> tuple[Tensor, Tensor]:
    """(g, x) at a trial point (E, D)."""
    x = growth(share)
    return (u + w * share) * form.conjugate(-x) + w * form.value(-shrink), x


def solve_kl(u: Tensor, w: Tensor, log_u: Tensor, radius: Tensor) -> tuple[Tensor, Tensor]:
    """KL(old || new): h(D) = w D - u log1p(w E / u) - radius = 0 by Halley's step from the right.

    h is convex and radius/w + sqrt(2 radius u/w) lies right of its root, where Halley's method, Newton with
    the known second derivative, falls to the root with the error cubed at every trip.
    Cost: an expm1 and a log1p a trip, an expm1 after. The last trip is in float64, where the two terms of h may
    cancel down to a radius of 1e-6 and leave every digit of float32.
    Precision: a few ulp of D in float32, 1e-16 / sqrt(radius) in float64.
    """
    dtype = w.dtype
    # Below the floor D = (radius + O(w)) / w exactly enough; solving there keeps radius / w finite.
    scale = w.clamp(min=1e-18 if dtype == torch.float32 else 1e-30)
    start = radius / scale
    shrink = start + torch.sqrt(2.0 * start * u)
    back = scale / w
    for trip in KL_TRIPS[dtype]:
        u, scale, shrink, radius = u.to(trip), scale.to(trip), shrink.to(trip), radius.to(trip)
        share = 0.0 - expm1(-shrink)
        moved = scale * share
        grown = u + moved
        relative = (moved / u).clamp(max=1e30)
        step = grown / share * (shrink - (u * torch.log1p(relative) + radius) / scale)
        # h''/(2 h') = u e^-D / (2 q E)
        bend = (0.5 - 0.5 * share) * u / (grown * share)
        shrink = shrink - step / (1.0 - step * bend)
    shrink = shrink.to(dtype) * back
    return 0.0 - expm1(-shrink), shrink


def solve_newton(u: Tensor, w: Tensor, log_u: Tensor, radius: Tensor, f: FDivergence) -> tuple[Tensor, Tensor]:
    """Any generator with slopes: Newton in coordinates where g is nearly a straight line.

    The unknown is log D where f grows like -log u at 0, else log(e^D - 1), the log-odds of the moved share;
    the equation is log(g / radius) = 0, or with a finite edge value G, log(g (G - radius) / (radius (G - g)))
    = 0. Both ends are then lines (slope 2 at the centre), so Newton converges from anywhere in a few trips; a
    step is held to a factor e^STEP. D beyond 690 counts as saturated, log tails excepted.
    Cost: `f.trips` trips of 5 transcendentals in float64 and those of the divergence's binary form.
    Precision: a few ulp times the condition of the root (poor only within ulps of saturation).
    """
    form, binary = f.log_form, f.binary if f.binary is not None and f.binary.slope else _binary_of(f.log_form)
    value, slope = binary.value, binary.slope
    assert slope is not None
    growth = Growth(w, log_u)
    # Where everything that shrinks has gone. An infinite edge counts as huge, which drops it from the equation.
    x = (0.0 - log_u).clamp(max=HUGE)
    ends = Coins(u, w, torch.ones_like(w), torch.zeros_like(w), x, torch.full_like(w, -HUGE), w)
    edge = value(ends)
    saturated = radius >= edge
    edge = edge.clamp(max=HUGE)
    reach = (edge - radius).clamp(min=TINY) / radius
    start = radius / (w * form.curvature + TINY)
    start = start + torch.sqrt(2.0 * start * u)
    # The state is D itself or e^D - 1, moved by factors: relative accuracy at every size.
    state = start if form.log_tail else expm1(start.clamp(max=4.0))
    for _ in range(f.trips):
        state = state.clamp(min=TINY, max=HUGE)
        share, shrink, kept, speed = _coordinates(state, form.log_tail)
        moved = w * share
        k = Coins(u, w, u + moved, w * kept, growth(share), 0.0 - shrink, moved)
        g = value(k).clamp(min=TINY, max=HUGE)
        remaining = (edge - g).clamp(min=TINY)
        h = torch.log(g / remaining * reach)
        step = h / (speed * slope(k) * (1.0 / g + 1.0 / remaining))
        # inf / inf, where all has underflowed: stay. A NaN input is in the state itself.
        state = state * torch.exp(0.0 - torch.nan_to_num(step, nan=0.0).clamp(min=-STEP, max=STEP))
    share, shrink, _, _ = _coordinates(state, form.log_tail)
    if not form.log_tail:
        saturated = saturated | (shrink > 690.0)
    return torch.where(saturated, 1.0, share), torch.where(saturated, torch.inf, shrink)


def _coordinates(state: Tensor, log_tail: bool) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    # (E, D, e^-D, dD/dlog state)
    if log_tail:
        return 0.0 - expm1(-state), state, torch.exp(-state), state
    kept = (1.0 + state).reciprocal()
    share = state * kept
    return share, torch.log1p(state), kept, share


def _binary_of(form: LogForm) -> BinaryForm:
    """The binary form of a generator of which only the log form is known, on the side s >= 0 >= t."""

    def value(k: Coins) -> Tensor:
        shrunk = torch.where(k.c == 0.0, 0.0, k.c * form.value(k.t))
        return torch.where(k.s == 0.0, 0.0, k.q * form.conjugate(0.0 - k.s)) + shrunk

    def slope(k: Coins) -> Tensor:
        return k.d * form.slope(k.s) - k.c * kept_slope(k.t, form)

    return BinaryForm(value, slope)


def kept_slope(t: Tensor, form: LogForm) -> Tensor:
    """u f'(u) at u = e^t, t <= 0, without the 0 * inf that a steep f makes of it far out."""
    if form.log_tail:  # constant below e^-40
        t = t.clamp(min=-40.0)
    near = torch.exp(t) * form.slope(t)
    if form.log_tail or form.at_zero < math.inf:
        return near
    # f(u) - f*'(1/u) is the same thing and overflows only with f itself.
    return torch.where(t < -40.0, form.value(t) - form.conjugate_slope(-t), near)


def solve_bracket(u: Tensor, w: Tensor, log_u: Tensor, radius: Tensor, form: LogForm) -> tuple[Tensor, Tensor]:
    """Any convex f, kinks included, from values alone: Chandrupatla's method on log(g / radius) over log D.

    Every trip is an inverse quadratic interpolation where that is safe and a bisection elsewhere.
    Cost: a trip evaluates f and f* once; BRACKET_TRIPS trips cover log D in [-60, log 700].
    Precision: that of f near 1, about 1e-16 / radius relative; D beyond 700 counts as saturated.
    """
    limit = 700.0
    reach = torch.full_like(w, limit)
    growth = Growth(w, log_u)
    edge, _ = evaluate(torch.ones_like(w), reach, u, w, growth, form)
    saturated = radius >= torch.where(w == 0.0, 0.0, edge)

    def residual(theta: Tensor) -> Tensor:
        shrink = torch.exp(theta)
        g, _ = evaluate(-expm1(-shrink), shrink, u, w, growth, form)
        return torch.log(g.clamp(min=1e-300) / radius).clamp(-1e3, 1e3)

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
    best = torch.where(fa.abs() < fb.abs(), a, b)
    shrink = torch.where(torch.isnan(edge + radius), torch.nan, torch.exp(best))
    return torch.where(saturated, 1.0, -expm1(-shrink)), torch.where(saturated, torch.inf, shrink)


def solve(divergence: FDivergence, u: Tensor, w: Tensor, log_u: Tensor, radius: Tensor) -> tuple[Tensor, Tensor]:
    """(E, D) of the root by the divergence's own solver; all tensors in one work dtype and shape."""
    if divergence.solver == "kl":
        return solve_kl(u, w, log_u, radius)
    if divergence.solver == "closed":
        assert divergence.closed is not None
        return divergence.closed(u, w, log_u, radius)
    if divergence.solver == "newton":
        return solve_newton(u, w, log_u, radius, divergence)
    return solve_bracket(u, w, log_u, radius, divergence.log_form)
