"""The Band operator: for each token, the interval of probability ratios inside an f-divergence ball.

For a token the old policy gave probability p, the band is {r : g_f(p, r) <= radius} = [lower, upper] with

    g_f(p, r) = p f(r) + (1 - p) f((1 - r p) / (1 - p))            (arXiv 2603.04918)

A hard clip needs only membership, :func:`inside`, which is one evaluation of g_f and no root.
Nothing here synchronises with an accelerator, and everything traces whole under torch.compile.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from . import solvers
from .divergences import FDivergence, as_work_dtype, binary_value, coins, expm1, get_divergence

DEFAULT_RADIUS = 0.05
"""The divergence budget per token; the only place this default is written."""

POSITIVE_TOLERANCE = 1e-3
"""A log-probability in (0, POSITIVE_TOLERANCE] is rounding and counts as 0; a larger one is an error."""

CPU_BLOCK = 32768
"""Tokens a thread solves at a time on the CPU, so that temporaries stay in cache."""

Radius = float | Tensor | tuple[float | Tensor, float | Tensor]


@dataclass(frozen=True)
class RatioBounds:
    """Bounds of the ratio pi_new / pi_old, kept as log-ratios; shape of the old log-probs, e.g. (B, T).

    log_lower is -inf and log_upper is -old_logps where the side reaches the edge of the simplex.
    """

    log_lower: Tensor
    log_upper: Tensor
    ratios: tuple[Tensor, Tensor] | None = None
    """(lower, upper) where the bounds were set as ratios, which exp(log) would round."""

    @classmethod
    def from_ratios(cls, lower: Tensor, upper: Tensor) -> RatioBounds:
        """Bounds set as ratios, as fixed intervals are."""
        return cls(torch.log(lower), torch.log(upper), (lower, upper))

    @property
    def lower(self) -> Tensor:
        return torch.exp(self.log_lower) if self.ratios is None else self.ratios[0]

    @property
    def upper(self) -> Tensor:
        return torch.exp(self.log_upper) if self.ratios is None else self.ratios[1]


@dataclass(frozen=True)
class Certificate:
    """Evidence that bounds are roots, evaluated in float64 at the exact inputs; shape of the old log-probs.

    Attributes:
        bounds: the bounds certified.
        residual_lower, residual_upper: g_f - radius at the bound; <= 0 at a saturated side.
        bracket_lower, bracket_upper: (inner, outer) log-ratios with g_f <= radius at inner and >= radius at
            outer, so the root lies between; both the edge at a saturated side; NaN if no sign change was
            found within 2^-10 relative.
        holds: bool tensor, a bracket was found on both sides.
    """

    bounds: RatioBounds
    residual_lower: Tensor
    residual_upper: Tensor
    bracket_lower: tuple[Tensor, Tensor]
    bracket_upper: tuple[Tensor, Tensor]
    holds: Tensor


# --- inputs -------------------------------------------------------------------------------------------------


def _may_look(x: Tensor) -> bool:
    # Reading values is free only on the CPU and outside a trace.
    return x.device.type == "cpu" and not torch.compiler.is_compiling()


def check_logps(x: Tensor, name: str) -> Tensor:
    """`x` in its work dtype, rounding above 0 removed; ValueError if it is not log-probabilities."""
    if not isinstance(x, Tensor):
        raise ValueError(f"{name} must be a tensor of log-probabilities, got {type(x).__name__}")
    work = as_work_dtype(x.detach())
    if _may_look(work):
        top = float(work.max()) if work.numel() else 0.0
        if math.isnan(top):
            top = float(work.nan_to_num(nan=0.0).max())
        if top > POSITIVE_TOLERANCE:
            raise ValueError(
                f"{name} must be log-probabilities <= 0 (up to {POSITIVE_TOLERANCE:g} is taken for rounding), "
                f"got {top:.6g}"
            )
        return work.clamp(max=0.0) if top > 0.0 else work
    # Where looking would cost a sync, a positive log-prob becomes NaN, which nobody overlooks.
    return torch.where(work > POSITIVE_TOLERANCE, torch.nan, work.clamp(max=0.0))


def _check_one_radius(radius: Any) -> None:
    if isinstance(radius, Tensor):
        if _may_look(radius) and radius.numel():
            bad = ~((radius > 0) & (radius < torch.inf)) & ~torch.isnan(radius)
            if bool(bad.any()):
                raise ValueError(f"radius must be > 0 and finite, got {float(radius.detach()[bad].flatten()[0])}")
        return
    try:
        value = float(radius)
    except (TypeError, ValueError):
        raise ValueError(
            f"radius must be a number, a tensor or a pair (lower side, upper side), got {radius!r}"
        ) from None
    if not 0.0 < value < math.inf:  # comparisons, which torch.compile can trace for a symbolic float
        raise ValueError(f"radius must be > 0 and finite, got {value}")


def check_radius(radius: Radius) -> tuple[float | Tensor, float | Tensor]:
    """The (lower side, upper side) radii; ValueError if one is not > 0 and finite, as far as looking is free."""
    if isinstance(radius, (tuple, list)):
        if len(radius) != 2:
            raise ValueError(f"a radius pair is (lower side, upper side), got {len(radius)} entries: {radius!r}")
        _check_one_radius(radius[0])
        _check_one_radius(radius[1])
        return radius[0], radius[1]
    _check_one_radius(radius)
    return radius, radius


def check_broadcast(name: str, x: Tensor, like_name: str, like: Tensor) -> None:
    """ValueError with both shapes unless `x` broadcasts to the shape of `like`."""
    try:
        fits = torch.broadcast_shapes(x.shape, like.shape) == like.shape
    except RuntimeError:
        fits = False
    if not fits:
        raise ValueError(
            f"{name} of shape {tuple(x.shape)} does not broadcast to {like_name} of shape {tuple(like.shape)}"
        )


def _place_radius(radius: float | Tensor, like: Tensor) -> Tensor:
    if not isinstance(radius, Tensor):
        return torch.full((), float(radius), dtype=like.dtype, device=like.device)
    check_broadcast("radius", radius, "old_logps", like)
    return radius.to(device=like.device, dtype=like.dtype)


def _radius_pair(radius: Radius, like: Tensor) -> tuple[Tensor, Tensor]:
    low, high = check_radius(radius)
    placed = _place_radius(low, like)
    return placed, placed if low is high else _place_radius(high, like)


# --- one side -----------------------------------------------------------------------------------------------


Side = bool | Tensor  # True: upper, False: lower, or a bool tensor that says which per token


def _solve(old: Tensor, sides: Sequence[tuple[Tensor, Side]], divergence: FDivergence) -> list[Tensor]:
    """Log-ratio bounds of the (radius, side)s asked for; old <= 0 in a work dtype."""

    def block(old: Tensor, *flat: Any) -> list[Tensor]:
        return _solve_block(old, list(zip(flat[::2], flat[1::2], strict=True)), divergence)

    args = (old, *(x for side in sides for x in side))
    return list(_in_blocks(block, old, args, (old.dtype,) * len(sides)))


def _in_blocks(function: Any, like: Tensor, args: Sequence[Any], dtypes: Sequence[torch.dtype]) -> Any:
    """function(*args), on the CPU over CPU_BLOCK tokens of each thread at a time, which keeps temporaries in cache.

    Tensors among `args` broadcast to the shape of `like`; the results have it, and these dtypes.
    """
    size = CPU_BLOCK * torch.get_num_threads() if _may_look(like) else 0
    if not size or like.numel() <= size:
        return function(*args)
    flat = [x.expand(like.shape).reshape(-1) if isinstance(x, Tensor) and x.dim() else x for x in args]
    outs = [torch.empty(like.shape, dtype=dtype) for dtype in dtypes]
    for i in range(0, like.numel(), size):
        part = [x[i : i + size] if isinstance(x, Tensor) and x.dim() else x for x in flat]
        for out, value in zip(outs, function(*part), strict=True):
            out.view(-1)[i : i + size] = value
    return outs


def _solve_block(old: Tensor, sides: Sequence[tuple[Tensor, Side]], divergence: FDivergence) -> list[Tensor]:
    out_dtype = old.dtype
    if not divergence.float32:
        old = old.double()
    p = torch.exp(old)
    rest = 0.0 - expm1(old)  # 1 - p to the last digit
    return [_solve_side(old, p, rest, r.to(old.dtype), divergence, up).to(out_dtype) for r, up in sides]


def _solve_side(old: Tensor, p: Tensor, rest: Tensor, radius: Tensor, divergence: FDivergence, upper: Side) -> Tensor:
    # log u of the lower side is log(1 - p); Halley's trips do not ask for it.
    log_rest = old if upper is True or divergence.solver == "kl" else _log_rest(p, rest)
    if isinstance(upper, Tensor):
        u, w, log_u = torch.where(upper, p, rest), torch.where(upper, rest, p), torch.where(upper, old, log_rest)
    else:
        u, w, log_u = (p, rest, old) if upper else (rest, p, log_rest)
    share, shrink = solvers.solve(divergence, u, w, log_u, radius)
    bound = share
    if upper is not True:
        bound = 0.0 - shrink
        if divergence.solver in ("newton", "bracket"):
            # Edges of the tokens where 0 / 0 may have led trips astray: r = 0 at p = 0, and at p = 1 r = 1 if f is
            # steep, as nothing can grow.
            if divergence.log_form.at_infinity == math.inf:
                bound = torch.where(u == 0.0, 0.0, bound)
            bound = torch.where(p == 0.0, -torch.inf, bound)
    if upper is not False:
        edge = 0.0 - old
        x = solvers.Growth(w, log_u)(share)
        if divergence.log_form.at_zero < math.inf:
            # An infinite D is the edge exactly, a finite one is below 1000: two SIMD operations, no branches.
            x = torch.maximum(x, shrink - 1000.0)
        if divergence.solver in ("newton", "bracket"):
            x = torch.where(torch.isinf(edge) | (edge == 0.0), edge, x)
        log_upper = torch.minimum(x, edge)
        bound = torch.where(upper, log_upper, bound) if isinstance(upper, Tensor) else log_upper
    return bound


def _log_rest(p: Tensor, rest: Tensor) -> Tensor:
    # log(1 - p), each half by what it knows to full precision
    return torch.where(p < 0.5, torch.log1p(-p), torch.log(rest))


def _side_derivatives(bound: Tensor, old: Tensor, divergence: FDivergence) -> tuple[Tensor, Tensor]:
    """(d bound / d old_logp, d bound / d radius) by the implicit function theorem, in float64 inside.

    With a = log p, b the bound, q = e^(a + b): g_a + g_b b' = 0, where g_b = q (f'(r) - f'(v)) and
    g_a = p (f*'(1/r) - f*'(1/v)) + g_b, v = (1 - q)/(1 - p). At the simplex edge the bound is -a or -inf.
    """
    form = divergence.log_form
    a, b = old.double(), bound.double()
    p, q = torch.exp(a), torch.exp(a + b)
    c = -expm1(a)
    moved = torch.where(b > 0.0, q * expm1(-b), -p * expm1(b))
    change = moved / c
    t = torch.where(change < -0.5, torch.log(-expm1(a + b) / c), torch.log1p(change))
    # q f'(r) and q f'(v) with the shrinking outcome's 0 * inf far out avoided.
    falls = b < 0.0
    by_token = torch.where(falls, p * solvers.kept_slope(b.clamp(max=0.0), form), q * form.slope(b))
    q_g_q = by_token - q * form.slope(t)
    g_p = form.conjugate_slope(-b) - form.conjugate_slope(-t)
    by_radius = 1.0 / q_g_q
    by_old = -1.0 - (p * g_p) / q_g_q
    at_top, at_zero = bound == -old, torch.isinf(bound) & (bound < 0)
    by_radius = torch.where(at_top | at_zero, 0.0, by_radius)
    by_old = torch.where(at_top, -1.0, torch.where(at_zero, 0.0, by_old))
    return by_old, by_radius


class _Side(torch.autograd.Function):
    """The solve with its implicit derivative; built only when somebody asks for a gradient."""

    @staticmethod
    def forward(ctx: Any, old: Tensor, radius: Tensor, divergence: FDivergence, upper: Any) -> Tensor:
        (bound,) = _solve(old, [(radius, upper)], divergence)
        ctx.save_for_backward(bound, old)
        ctx.divergence, ctx.radius_shape = divergence, radius.shape
        return bound

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, Tensor | None, None, None]:
        bound, old = ctx.saved_tensors
        by_old, by_radius = _side_derivatives(bound, old, ctx.divergence)
        for_old = (grad * by_old).to(old.dtype) if ctx.needs_input_grad[0] else None
        for_radius = None
        if ctx.needs_input_grad[1]:
            for_radius = (grad * by_radius).sum_to_size(ctx.radius_shape).to(old.dtype)
        return for_old, for_radius, None, None


def _wants_gradient(*tensors: Tensor) -> bool:
    return torch.is_grad_enabled() and any(x.requires_grad for x in tensors)


def _side(old_logps: Tensor, old: Tensor, radius: Tensor, divergence: FDivergence, upper: Side) -> Tensor:
    if _wants_gradient(old_logps, radius):
        tracked = as_work_dtype(old_logps)
        if old_logps.requires_grad:
            old = tracked + (old - tracked.detach()).detach()
            old = torch.where(torch.isnan(old), tracked, old)
        bound: Tensor = _Side.apply(old, radius, divergence, upper)
        return bound
    return _solve(old, [(radius, upper)], divergence)[0]


# --- public -------------------------------------------------------------------------------------------------


def band(old_logps: Tensor, radius: Radius = DEFAULT_RADIUS, divergence: str | FDivergence = "kl") -> RatioBounds:
    """The ratios r with g_f(p, r) <= radius, per token, as log-ratio bounds.

    Args:
        old_logps: log p of the sampled tokens, any shape, e.g. (B, T); float16, bfloat16, float32 or
            float64, <= 0, -inf allowed. The result is float32, or float64 for float64 input.
        radius: > 0; a number, a tensor broadcastable to old_logps, or a pair (lower side, upper side).
        divergence: a name or an :class:`FDivergence`; "kl" is KL(old || new).

    Returns:
        RatioBounds, 0 <= lower <= 1 <= upper <= 1/p, differentiable in radius and old_logps. A saturated
        side is exactly the simplex edge (log_upper = -old_logps, log_lower = -inf). At log-prob 0 (padding)
        the bounds are [limit, 1]; at -inf they are [0, inf]. NaN in gives NaN out. Where p underflows
        (finite log-probs below -700, for "chi2" in float32 below -180) a divergence whose slope at infinity
        is infinite only promises an upper bound in [1, 1/p].

    Raises:
        ValueError: radius not > 0 and finite, a log-prob beyond POSITIVE_TOLERANCE above 0, shapes that do
            not broadcast, unknown divergence. Tensor values are checked only where that costs no device sync
            (CPU, not compiling); elsewhere a positive log-prob gives NaN.
    """
    f = get_divergence(divergence)
    old = check_logps(old_logps, "old_logps")
    low, high = _radius_pair(radius, old)
    if _wants_gradient(old_logps, low, high):
        return RatioBounds(_side(old_logps, old, low, f, False), _side(old_logps, old, high, f, True))
    log_lower, log_upper = _solve(old, [(low, False), (high, True)], f)
    return RatioBounds(log_lower, log_upper)


def band_side(
    old_logps: Tensor,
    radius: Radius = DEFAULT_RADIUS,
    divergence: str | FDivergence = "kl",
    upper: bool | Tensor = True,
) -> Tensor:
    """One log-ratio bound a token, solving only that side: half the cost of :func:`band`.

    Args:
        old_logps: as in :func:`band`.
        radius: as in :func:`band`; of a pair, the one of the side solved.
        divergence: as in :func:`band`.
        upper: True or False, or a bool tensor broadcastable to old_logps that picks the side per token
            (advantages > 0, say).

    Raises:
        ValueError: as in :func:`band`, or an `upper` tensor that is not bool or does not broadcast.
    """
    f = get_divergence(divergence)
    old = check_logps(old_logps, "old_logps")
    low, high = _radius_pair(radius, old)
    if isinstance(upper, Tensor):
        if upper.dtype != torch.bool:
            raise ValueError(f"upper must be a bool or a bool tensor, got dtype {upper.dtype}")
        try:
            upper = upper.expand(old.shape)
        except RuntimeError:
            raise ValueError(
                f"upper of shape {tuple(upper.shape)} does not broadcast to old_logps of shape {tuple(old.shape)}"
            ) from None
        chosen = low if low is high else torch.where(upper, high, low)
    else:
        chosen = high if upper else low
    return _side(old_logps, old, chosen, f, upper)


def _two_logps(logps: Tensor, old_logps: Tensor) -> tuple[Tensor, Tensor]:
    new, old = check_logps(logps, "logps"), check_logps(old_logps, "old_logps")
    if new.shape != old.shape:
        try:
            torch.broadcast_shapes(new.shape, old.shape)
        except RuntimeError:
            raise ValueError(
                f"logps of shape {tuple(new.shape)} and old_logps of shape {tuple(old.shape)} do not broadcast"
            ) from None
    dtype = torch.promote_types(new.dtype, old.dtype)
    return new.to(dtype), old.to(dtype)


def measure(
    logps: Tensor,
    old_logps: Tensor,
    low: float | Tensor = DEFAULT_RADIUS,
    high: float | Tensor = DEFAULT_RADIUS,
    divergence: str | FDivergence = "kl",
) -> tuple[Tensor, Tensor]:
    """(g, inside) per token: g_f(p, r) and whether it is within the radius, from one evaluation.

    p = e^old_logps and r = e^(logps - old_logps), with

        g_f(p, r) = p f(r) + (1 - p) f((1 - r p) / (1 - p))            (arXiv 2603.04918)

    The evaluation is in float64 whatever the input: the binary form of the divergence for float32, whose terms may
    cancel there without harm, and the sum of two terms >= 0, exact to the last digits, for float64.

    Args:
        logps: log-probs of the new policy, any shape, e.g. (B, T).
        old_logps: log-probs of the old one; broadcasts with `logps`.
        low: radius > 0 of tokens that lost probability; a number, or a tensor that broadcasts.
        high: radius > 0 of tokens that gained.
        divergence: a name or an :class:`FDivergence`.

    Returns:
        g, float32 or float64 as the inputs, >= 0 up to rounding, no gradient; inside, bool. NaN is outside.

    Raises:
        ValueError: a log-prob above 0, a bad radius, shapes that do not broadcast (see :func:`band`).
    """
    f = get_divergence(divergence)
    new, old = _two_logps(logps, old_logps)
    radii = _radius_pair((low, high), old)

    def block(new: Tensor, old: Tensor, low: Tensor, high: Tensor) -> tuple[Tensor, Tensor]:
        k = coins(new.double(), old.double())
        if new.dtype == torch.float64 or f.binary is None:
            g = binary_value(new.double(), old.double(), f.log_form)
        else:
            g = f.binary.value(k)
        return g.to(new.dtype), g <= (low if low is high else torch.where(k.moved > 0.0, high, low))

    like = new if new.shape == old.shape else torch.broadcast_tensors(new, old)[0]
    g, inside = _in_blocks(block, like, (new, old, *radii), (new.dtype, torch.bool))
    return g, inside


def binary_divergence(logps: Tensor, old_logps: Tensor, divergence: str | FDivergence = "kl") -> Tensor:
    """g_f(p, r) per token, p = e^old_logps, r = e^(logps - old_logps): the divergence of the two coins.

    Any shape, e.g. (B, T); exact limits at 0 and -inf; float32 result, or float64 if either input is. No
    gradient flows through it. NaN in gives NaN out.

    Raises:
        ValueError: a log-prob above 0, shapes that do not broadcast, unknown divergence (see :func:`band`).
    """
    return measure(logps, old_logps, divergence=divergence)[0]


def inside(
    logps: Tensor, old_logps: Tensor, radius: Radius = DEFAULT_RADIUS, divergence: str | FDivergence = "kl"
) -> Tensor:
    """Whether g_f(p, r) <= radius, a bool tensor: membership of the band by one evaluation, no root.

    With a pair of radii, a token that lost probability is held to the lower side's radius and one that gained
    to the upper side's. NaN anywhere is outside. Shapes and errors as in :func:`band`.
    """
    return measure(logps, old_logps, *check_radius(radius), divergence)[1]


def certify(old_logps: Tensor, radius: Radius = DEFAULT_RADIUS, divergence: str | FDivergence = "kl") -> Certificate:
    """Solve and prove it: residuals, and log-ratio brackets on which g_f - radius changes sign.

    The bracket widens from 4 ulp of the result dtype, doubling, until the sign changes. Not for hot paths.
    Shapes and errors as in :func:`band`.
    """
    f = get_divergence(divergence)
    old = check_logps(old_logps, "old_logps")
    low, high = _radius_pair(radius, old)
    log_lower, log_upper = _solve(old.detach(), [(low.detach(), False), (high.detach(), True)], f)
    bounds = RatioBounds(log_lower, log_upper)
    res_low, bracket_low = _certify_side(bounds.log_lower, old, low, f, False)
    res_high, bracket_high = _certify_side(bounds.log_upper, old, high, f, True)
    holds = ~(torch.isnan(bracket_low[0]) | torch.isnan(bracket_high[0]))
    return Certificate(bounds, res_low, res_high, bracket_low, bracket_high, holds)


def _certify_side(
    bound: Tensor, old: Tensor, radius: Tensor, divergence: FDivergence, upper: bool
) -> tuple[Tensor, tuple[Tensor, Tensor]]:
    a, b, limit = old.double(), bound.double(), radius.double()

    def residual(log_ratio: Tensor) -> Tensor:
        return binary_value((a + log_ratio).clamp(max=0.0), a, divergence.log_form) - limit

    edge = -a if upper else torch.full_like(a, -torch.inf)
    at_edge = b == edge
    center = residual(b)
    inner, outer = torch.full_like(b, torch.nan), torch.full_like(b, torch.nan)
    eps = torch.finfo(bound.dtype).eps
    width = 2.0**-10
    while width >= 4.0 * eps:  # a fixed count for a dtype; the narrowest bracket wins
        near, far = b * (1.0 - width), b * (1.0 + width)
        found = (residual(near) <= 0.0) & (residual(far) >= 0.0)
        inner, outer = torch.where(found, near, inner), torch.where(found, far, outer)
        width *= 0.5
    saturated = at_edge & (center <= 0.0)
    return center, (torch.where(saturated, edge, inner), torch.where(saturated, edge, outer))
