"""The Band operator: for each token, the interval of probability ratios inside an f-divergence ball.

For a token the old policy gave probability p, the band is {r : g_f(p, r) <= radius} = [lower, upper] with

    g_f(p, r) = p f(r) + (1 - p) f((1 - r p) / (1 - p))            (arXiv 2603.04918)

A hard clip needs only membership, `inside`, which is one evaluation of g_f and no root.
Nothing here synchronizes with an accelerator, and everything traces whole under torch.compile.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from .checks import (
    DEFAULT_RADIUS,
    Radius,
    can_look,
    check_broadcast,
    check_logps,
    check_logps_pair,
    check_radius,
    place_radius,
)
from .coins import TINY, coins, divergence_of, log_rest, one_minus_exp
from .divergences import FDivergence, get_divergence
from .solvers import growth, solve_kl

CPU_BLOCK = 32768
"""Tokens per thread at a time on the CPU, so that temporaries stay in cache."""


@dataclass(frozen=True)
class RatioBounds:
    """Bounds of the ratio pi_new / pi_old, kept as log-ratios; shape of the old log-probs, e.g. (B, T).

    log_lower is -inf and log_upper is -old_logps where the side reaches the edge of the simplex.

    Examples:
        >>> RatioBounds.from_ratios(torch.tensor([0.5]), torch.tensor([2.0])).log_upper
        tensor([0.6931])
    """

    log_lower: Tensor
    log_upper: Tensor
    ratios: tuple[Tensor, Tensor] | None = None
    """(lower, upper) if the bounds were set as ratios, which exp(log) would round."""

    @classmethod
    def from_ratios(cls, lower: Tensor, upper: Tensor) -> RatioBounds:
        """Bounds set as ratios, as fixed intervals are."""
        return cls(torch.log(lower), torch.log(upper), (lower, upper))

    @property
    def lower(self) -> Tensor:
        """The smallest ratio allowed, in [0, 1], shape of the old log-probs."""
        return torch.exp(self.log_lower) if self.ratios is None else self.ratios[0]

    @property
    def upper(self) -> Tensor:
        """The largest ratio allowed, in [1, 1/p], inf at p = 0; shape of the old log-probs."""
        return torch.exp(self.log_upper) if self.ratios is None else self.ratios[1]


def in_blocks(
    function: Callable[..., Sequence[Tensor]], like: Tensor, args: Sequence[Any], dtypes: Sequence[torch.dtype]
) -> Sequence[Tensor]:
    """function(*args), on the CPU over CPU_BLOCK tokens per thread at a time, so that temporaries stay in cache.

    Tensors among `args` broadcast to the shape of `like`; the results have that shape, and these dtypes.
    """
    size = CPU_BLOCK * torch.get_num_threads() if can_look(like) else 0
    if not size or like.numel() <= size:
        return function(*args)
    flat = [x.expand(like.shape).reshape(-1) if isinstance(x, Tensor) and x.dim() else x for x in args]
    outs = [torch.empty(like.shape, dtype=dtype) for dtype in dtypes]
    for i in range(0, like.numel(), size):
        part = [x[i : i + size] if isinstance(x, Tensor) and x.dim() else x for x in flat]
        for out, value in zip(outs, function(*part), strict=True):
            out.view(-1)[i : i + size] = value
    return outs


# --- the solve ----------------------------------------------------------------------------------------------

Side = bool | Tensor  # True: upper, False: lower, or a bool tensor with one of them per token


def _solve(old: Tensor, sides: Sequence[tuple[Tensor, Side]], f: FDivergence) -> Sequence[Tensor]:
    """Log-ratio bounds of the requested (radius, side)s; old <= 0 in a work dtype."""

    def block(old: Tensor, *flat: Any) -> list[Tensor]:
        a = old if f.float32 else old.double()
        p, c = torch.exp(a), one_minus_exp(a)
        pairs = zip(flat[::2], flat[1::2], strict=True)
        return [_solve_side(a, p, c, radius.to(a.dtype), f, upper).to(old.dtype) for radius, upper in pairs]

    return in_blocks(block, old, (old, *(x for side in sides for x in side)), (old.dtype,) * len(sides))


def _solve_side(old: Tensor, p: Tensor, c: Tensor, radius: Tensor, f: FDivergence, upper: Side) -> Tensor:
    """One log bound. The edges, each met exactly:

    |       | p = 0 | p = 1                           | saturated, D = inf |
    |-------|-------|---------------------------------|--------------------|
    | lower | -inf  | 0 if f*(0) = inf, else the root | -inf               |
    | upper | inf   | 0                               | -log p             |
    """
    # Halley's iterations do not use log u; for the other solvers the lower side's is log(1 - p).
    log_c = old if upper is True or f.solve is solve_kl else log_rest(p, c)
    if isinstance(upper, Tensor):
        u, w, log_u = torch.where(upper, p, c), torch.where(upper, c, p), torch.where(upper, old, log_c)
    else:
        u, w, log_u = (p, c, old) if upper else (c, p, log_c)
    E, D = f.root(u, w, log_u, radius)
    if upper is False:
        return 0.0 - D
    x = growth(w, log_u)(E)
    if f.shape.at_zero < torch.inf:
        # An infinite D is the edge exactly, a finite one is below 1000: two SIMD operations, no branches.
        x = torch.maximum(x, D - 1000.0)
    x = torch.minimum(x, 0.0 - old)
    return torch.where(upper, x, 0.0 - D) if isinstance(upper, Tensor) else x


class _Side(torch.autograd.Function):
    """The solve with its derivative by the implicit function theorem; built only if a gradient is needed.

    On the bound b(a, radius), a = log p, g(a, b) = radius: b' = -g_a / g_b and db / dradius = 1 / g_b, in float64
    by autograd. At the simplex edge b is -a or -inf. At log p = 0 (padding) the slope in log p, which may be
    infinite, counts as 0.
    """

    generate_vmap_rule = True

    @staticmethod
    def forward(logps: Tensor, old: Tensor, radius: Tensor, f: FDivergence, upper: Any) -> Tensor:
        return _solve(old, [(radius, upper)], f)[0]

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Tensor) -> None:
        logps, old, radius, ctx.f, _ = inputs
        ctx.save_for_backward(output, old)
        ctx.dtypes, ctx.radius_shape = (logps.dtype, radius.dtype), radius.shape

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        bound, old = ctx.saved_tensors
        f = ctx.f

        def g(a: Tensor, b: Tensor) -> Tensor:
            value: Tensor = f.exact(coins(a + b, a))
            return value

        value, pull = torch.func.vjp(g, old.double().clamp(max=-TINY), bound.double())[:2]
        by_a, by_b = pull(torch.ones_like(value))
        at_top, at_zero = bound == -old, bound == -torch.inf
        by_radius = torch.where(at_top | at_zero, 0.0, 1.0 / by_b)
        by_old = torch.where(at_top, -1.0, torch.where(at_zero | (old == 0.0), 0.0, -by_a / by_b))
        for_old, for_radius = (grad * by_old).to(ctx.dtypes[0]), grad * by_radius
        return for_old, None, for_radius.sum_to_size(ctx.radius_shape).to(ctx.dtypes[1]), None, None


def _bounds(logps: Tensor, old: Tensor, sides: Sequence[tuple[Tensor, Side]], f: FDivergence) -> Sequence[Tensor]:
    wanted = logps.requires_grad or any(radius.requires_grad for radius, _ in sides)
    # Inside torch.func's transforms tensors do not show whether the caller needs a gradient.
    if torch.is_grad_enabled() and (wanted or torch._C._are_functorch_transforms_active()):
        return [_Side.apply(logps, old, radius, f, upper) for radius, upper in sides]
    return _solve(old, sides, f)


def band(old_logps: Tensor, radius: Radius = DEFAULT_RADIUS, divergence: str | FDivergence = "kl") -> RatioBounds:
    """The ratios r with g_f(p, r) <= radius, per token, as log-ratio bounds.

    The trust region {pi : D_f(old || pi) <= radius} projected onto a sampled token of old probability p is the
    interval of ratios r in [0, 1/p] with (arXiv 2603.04918)

        g_f(p, r) = p f(r) + (1 - p) f((1 - r p) / (1 - p)) <= radius

    Args:
        old_logps: log p of the sampled tokens, any shape, e.g. (B, T); float16, bfloat16, float32 or
            float64, <= 0, -inf allowed. The result is float32, or float64 for float64 input.
        radius: above 0, in units of the divergence (nats for KL); a number, a tensor broadcastable to old_logps, or a
            pair (lower side, upper side).
        divergence: a name or an `FDivergence`; "kl" is KL(old || new).

    Returns:
        RatioBounds, 0 <= lower <= 1 <= upper <= 1/p, differentiable in radius and old_logps. A saturated
        side is exactly the simplex edge (log_upper = -old_logps, log_lower = -inf). At log-prob 0 (padding)
        the bounds are [limit, 1]; at -inf they are [0, inf]. NaN in gives NaN out. Where p underflows
        (finite log-probs below -700, for "chi2" in float32 below -180) a divergence whose slope at infinity
        is infinite only promises an upper bound in [1, 1/p].

    Raises:
        ValueError: radius not > 0 and finite, a log-prob beyond POSITIVE_TOLERANCE above 0, shapes that do
            not broadcast, unknown divergence. Tensor values are checked only if that costs no device sync
            (CPU, not compiling); otherwise a positive log-prob gives NaN.

    Examples:
        >>> b = band(torch.tensor([0.01, 0.5, 0.99]).log(), radius=0.05)
        >>> b.lower, b.upper
        (tensor([0.0025, 0.6915, 0.9312]), tensor([7.8098, 1.3085, 1.0101]))
    """
    f = get_divergence(divergence)
    old = check_logps(old_logps, "old_logps")
    low, high = place_radius(radius, old)
    log_lower, log_upper = _bounds(old_logps, old, [(low, False), (high, True)], f)
    return RatioBounds(log_lower, log_upper)


def band_side(
    old_logps: Tensor,
    radius: Radius = DEFAULT_RADIUS,
    divergence: str | FDivergence = "kl",
    upper: bool | Tensor = True,
) -> Tensor:
    """One log-ratio bound per token, solving only that side: half the cost of `band`.

    The bound is the root of g_f(p, r) = p f(r) + (1 - p) f((1 - r p) / (1 - p)) = radius (arXiv 2603.04918) with
    r >= 1 on the upper side and r <= 1 on the lower.

    Args:
        old_logps: as in `band`.
        radius: as in `band`; of a pair, the one of the side solved.
        divergence: as in `band`.
        upper: True or False, or a bool tensor broadcastable to old_logps that picks the side per token
            (advantages > 0, say).

    Returns:
        log r, shape of old_logps; edges, limits, dtype and gradient as in `band`.

    Raises:
        ValueError: as in `band`, or an `upper` tensor that is not bool or does not broadcast.

    Examples:
        >>> old_logps, advantages = torch.tensor([0.01, 0.5]).log(), torch.tensor([1.0, -1.0])
        >>> band_side(old_logps, radius=0.05, upper=advantages > 0).exp()
        tensor([7.8098, 0.6915])
    """
    f = get_divergence(divergence)
    old = check_logps(old_logps, "old_logps")
    low, high = place_radius(radius, old)
    if isinstance(upper, Tensor):
        if upper.dtype != torch.bool:
            raise ValueError(f"upper must be a bool or a bool tensor, got dtype {upper.dtype}")
        check_broadcast("upper", upper, "old_logps", old)
        upper = upper.expand(old.shape)
        chosen = low if low is high else torch.where(upper, high, low)
    else:
        chosen = high if upper else low
    return _bounds(old_logps, old, [(chosen, upper)], f)[0]


def measure(
    logps: Tensor, old_logps: Tensor, low: float | Tensor, high: float | Tensor, divergence: str | FDivergence = "kl"
) -> tuple[Tensor, Tensor]:
    """(g_f(p, r), whether it is within the radius) per token, from one evaluation: all that a loss needs of a band.

    In float64 whatever the input: by the short form of the divergence for float32, whose terms may cancel there
    without harm, by the exact one for float64. `low` is the radius of tokens that lost probability, `high` of those
    that gained; else as `binary_divergence` and `inside`.
    """
    f = get_divergence(divergence)
    new, old = check_logps_pair(logps, old_logps)
    radii = place_radius((low, high), old)
    short = None if f.binary is None or new.dtype == torch.float64 else f.binary.value

    def block(new: Tensor, old: Tensor, low: Tensor, high: Tensor) -> tuple[Tensor, Tensor]:
        k = coins(new.double(), old.double())
        g = f.exact(k) if short is None else divergence_of(k, short)
        return g.to(new.dtype), g <= (low if low is high else torch.where(k.moved > 0.0, high, low))

    g, inside = in_blocks(block, new, (new, old, *radii), (new.dtype, torch.bool))
    return g, inside


def binary_divergence(logps: Tensor, old_logps: Tensor, divergence: str | FDivergence = "kl") -> Tensor:
    """g_f(p, r) per token, p = e^old_logps, r = e^(logps - old_logps): the divergence of the two coins.

        g_f(p, r) = p f(r) + (1 - p) f((1 - r p) / (1 - p))            (arXiv 2603.04918)

    Any shape, e.g. (B, T); in units of the divergence (nats for KL); exact limits at 0 and -inf; float32 result, or
    float64 if either input is. No gradient flows through it. NaN in gives NaN out.

    Raises:
        ValueError: a log-prob above 0, shapes that do not broadcast, unknown divergence (see `band`).

    Examples:
        >>> binary_divergence(torch.tensor([-1.0, -2.0]), torch.tensor([-1.1, -1.0]))
        tensor([0.0027, 0.1699])
    """
    return measure(logps, old_logps, DEFAULT_RADIUS, DEFAULT_RADIUS, divergence)[0]


def inside(
    logps: Tensor, old_logps: Tensor, radius: Radius = DEFAULT_RADIUS, divergence: str | FDivergence = "kl"
) -> Tensor:
    """Whether g_f(p, r) <= radius, a bool tensor: membership of the band by one evaluation, no root.

        g_f(p, r) = p f(r) + (1 - p) f((1 - r p) / (1 - p))            (arXiv 2603.04918)

    With a pair of radii, a token that lost probability is held to the lower side's radius and one that gained
    to the upper side's. NaN anywhere is outside. Shapes, units and errors as in `band`.

    Examples:
        >>> inside(torch.tensor([-1.0, -2.0]), torch.tensor([-1.1, -1.0]), radius=0.05)
        tensor([ True, False])
    """
    return measure(logps, old_logps, *check_radius(radius), divergence)[1]
