"""Fixed-trip root finding for one side of the band: no device sync, no data-dependent trip counts.

Both sides are one problem. With u the old probability of the outcome that grows and w = 1 - u that of the one
that shrinks, find D >= 0 (the shrinking outcome is scaled by e^-D) with

    g(D) = (u + w E) f*(e^-x) + w f(e^-D) = radius,     E = 1 - e^-D,   x = log1p(w E / u),

where f* is the conjugate generator. The upper bound of a token is x with (u, w) = (p, 1 - p); its lower bound
is -D with (u, w) = (1 - p, p). g increases in D, and D = inf is the edge of the simplex.
Each solver takes tensors of any one shape in a work dtype and returns (E, D).
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from .divergences import FDivergence, LogForm, expm1, log1p

# Trips that reach the last digits for radius in [1e-8, 20]; tests/test_solvers.py checks.
KL_TRIPS = {torch.float32: 2, torch.float64: 3}
NEWTON_TRIPS = 8
BRACKET_TRIPS = 60


def growth(share: Tensor, u: Tensor, w: Tensor, log_u: Tensor) -> Tensor:
    """x = log1p(w E / u), the log-ratio of the growing outcome, also where u underflows."""
    moved = w * share
    relative = moved / u
    # 0 / 0: both have underflowed, and r = 1 is the bound that can be vouched for.
    relative = torch.where(moved == 0.0, 0.0, relative)
    near = log1p(relative.clamp(max=1.0), finite=True)
    return torch.where(relative > 1.0, torch.log(u + moved) - log_u, near)


def evaluate(
    share: Tensor, shrink: Tensor, u: Tensor, w: Tensor, log_u: Tensor, form: LogForm
) -> tuple[Tensor, Tensor]:
    """(g, x) at a trial point (E, D)."""
    x = growth(share, u, w, log_u)
    return (u + w * share) * form.conjugate(-x) + w * form.value(-shrink), x


def edge_value(u: Tensor, w: Tensor, log_u: Tensor, form: LogForm) -> Tensor:
    """g at the edge of the simplex (D = inf), what a radius must reach to saturate the side."""
    rest = torch.where(w == 0.0, 0.0, w * form.at_zero)
    return torch.where(log_u == 0.0, 0.0, form.conjugate(log_u)) + rest


def _start(u: Tensor, w: Tensor, radius: Tensor, curvature: float) -> Tensor:
    scaled = radius / (w * curvature)
    return scaled + torch.sqrt(2.0 * scaled * u)


def solve_kl(u: Tensor, w: Tensor, log_u: Tensor, radius: Tensor) -> tuple[Tensor, Tensor]:
    """KL(old || new): h(D) = w D - u log1p(w E / u) - radius = 0 by Halley's step from the right.

    h is convex and radius/w + sqrt(2 radius u/w) lies right of its root, where Halley's method, Newton with
    the known second derivative, falls to the root with the error cubed at every trip.
    Cost: 1 tanh and 1 log a trip (2 trips in float32, 3 in float64), 1 tanh after.
    Precision: a few ulp of D for radius >= 1e-2, growing like ulp / sqrt(radius) below.
    """
    # Below the floor D = (radius + O(w)) / w exactly enough; solving there keeps radius / w finite.
    floor = 1e-18 if w.dtype == torch.float32 else 1e-30
    scale = w.clamp(min=floor)
    start = radius / scale
    shrink = start + torch.sqrt(2.0 * start * u)
    big = 1e30 if w.dtype == torch.float32 else 1e280
    for _ in range(KL_TRIPS[w.dtype]):
        half = torch.tanh(0.5 * shrink)
        share = moved_share(half)
        moved = scale * share
        relative = (moved / u).clamp(max=big)
        ratio = (u + moved) / share
        step = ratio * (shrink - (u * log1p(relative, finite=True) + radius) / scale)
        # h''/(2 h') = u e^-D / (2 q E)
        bend = (1.0 - share) * u / (2.0 * (u + moved) * share)
        shrink = shrink - step / (1.0 - step * bend)
    shrink = shrink * (scale / w)
    return moved_share(torch.tanh(0.5 * shrink)), shrink


def moved_share(half: Tensor) -> Tensor:
    """E = 1 - e^-D from tanh(D/2): accurate at every D >= 0, and SIMD on the CPU where expm1 is not."""
    return 2.0 * half / (1.0 + half)


def solve_newton(u: Tensor, w: Tensor, log_u: Tensor, radius: Tensor, form: LogForm) -> tuple[Tensor, Tensor]:
    """Any generator with a log form: Newton in coordinates where g is nearly a straight line, with a bracket.

    The unknown is log D where f grows like -log u at 0, else log(e^D - 1), the log-odds of the moved share;
    the equation is log(g / radius) = 0, or with a finite edge value G, log(g (G - radius) / (radius (G - g)))
    = 0. Both ends are then lines (slope 2 at the centre), so Newton converges in a few trips; a step that
    leaves the bracket is replaced by its midpoint. D beyond 690 counts as saturated, log tails excepted.
    Cost: a trip evaluates f, f* and their slopes once, about 10 transcendentals; NEWTON_TRIPS trips.
    Precision: a few ulp times the condition of the root (poor only within ulps of saturation).
    """
    edge = edge_value(u, w, log_u, form)
    saturated = radius >= edge
    bounded = torch.isfinite(edge)
    log_tail = form.log_tail
    start = _start(u, w, radius, form.curvature)
    info = torch.finfo(w.dtype)
    low, high = torch.full_like(w, info.tiny), torch.full_like(w, info.max * 0.25)
    # The state is D itself or e^D - 1, moved by factors: relative accuracy at every size.
    state = start if log_tail else expm1(start.clamp(max=4.0))
    state = torch.where((state > low) & (state < high), state, 1.0)
    for _ in range(NEWTON_TRIPS):
        share, shrink, kept, speed = _coordinates(state, log_tail)
        g, x = evaluate(share, shrink, u, w, log_u, form)
        remaining = edge - g
        h = torch.log(g / radius)
        h = torch.where(bounded, h - torch.log(remaining / (edge - radius)), h)
        slope = speed * w * (kept * form.slope(x) - kept_slope(-shrink, form))
        weight = torch.where(bounded, 1.0 / g + 1.0 / remaining, 1.0 / g)
        below = g < radius
        low = torch.where(below, state, low)
        high = torch.where(below, high, state)
        step = state * torch.exp(-h / (slope * weight))
        inside = (step >= low) & (step <= high)
        state = torch.where(inside, step, torch.sqrt(low) * torch.sqrt(high))
    state = torch.where(torch.isnan(edge + radius), torch.nan, state)
    share, shrink, _, _ = _coordinates(state, log_tail)
    if not log_tail:
        saturated = saturated | (shrink > 690.0)
    return torch.where(saturated, 1.0, share), torch.where(saturated, torch.inf, shrink)


def _coordinates(state: Tensor, log_tail: bool) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    # (E, D, e^-D, dD/dlog state)
    if log_tail:
        return -expm1(-state), state, torch.exp(-state), state
    share = state / (1.0 + state)
    return share, log1p(state), 1.0 / (1.0 + state), share


def kept_slope(t: Tensor, form: LogForm) -> Tensor:
    """u f'(u) at u = e^t, t <= 0, without the 0 * inf that a steep f makes of it far out."""
    if form.log_tail:  # constant below e^-40
        t = t.clamp(min=-40.0)
    near = torch.exp(t) * form.slope(t)
    if form.log_tail or math.isfinite(form.at_zero):
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
    edge, _ = evaluate(torch.ones_like(w), reach, u, w, log_u, form)
    saturated = radius >= torch.where(w == 0.0, 0.0, edge)

    def residual(theta: Tensor) -> Tensor:
        shrink = torch.exp(theta)
        g, _ = evaluate(-expm1(-shrink), shrink, u, w, log_u, form)
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
        return solve_newton(u, w, log_u, radius, divergence.log_form)
    return solve_bracket(u, w, log_u, radius, divergence.log_form)
