"""The two coins of a token: the token against everything else, before the update and after.

One of the two outcomes grows, the other shrinks. The letters of the core, the same in every formula and variable:

    p, c = 1 - p    the token and everything else under the old policy
    q, d = 1 - q    the same under the new policy
    s, t            log(q / p) and log(d / c), one >= 0 and the other <= 0
    u, w = 1 - u    the old probability of the outcome that grows, and of the one that shrinks
    x               the log-ratio of the outcome that grows
    D, E            the outcome that shrinks is scaled by e^-D; it loses the share E = 1 - e^-D
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

TensorFunction = Callable[[Tensor], Tensor]

TINY, HUGE = 1e-300, 1e290


def one_minus_exp(x: Tensor) -> Tensor:
    """1 - e^x for x <= 0 to a few ulp, compiled or not."""
    if torch.compiler.is_compiling() and x.device.type == "cpu":
        # Inductor's CPU code makes exp(x) - 1 of expm1, which loses every digit of 1 - p as p -> 1.
        half = torch.tanh(0.5 * x)
        return 2.0 * half / (half - 1.0)
    return 0.0 - torch.expm1(x)


def expm1(x: Tensor) -> Tensor:
    """e^x - 1 to a few ulp, compiled or not."""
    if torch.compiler.is_compiling() and x.device.type == "cpu":
        return torch.where(x < 1.0, 0.0 - one_minus_exp(x), torch.exp(x) - 1.0)
    return torch.expm1(x)


def log_rest(p: Tensor, c: Tensor) -> Tensor:
    """log(1 - p) of p and c = 1 - p, each half from the number that is known to full precision."""
    return torch.where(p < 0.5, torch.log1p(-p), torch.log(c))


def excess(weight: Tensor, t: Tensor, moved: Tensor) -> Tensor:
    """weight (e^t - 1 - t) >= 0 without the cancellation at small t, if moved = weight (e^t - 1) is known."""
    small = t.abs() < 0.5
    z = torch.where(small, t, 0.0)
    series = torch.ones_like(z)
    for k in range(15, 2, -1):
        series = 1.0 + series * z / k
    return torch.where(small, 0.5 * weight * z * z * series, moved - weight * t)


class Coins(NamedTuple):
    """Both coins in float64, one shape, with s = log(q / p), t = log(d / c) and moved = q - p = c - d exact too."""

    p: Tensor
    c: Tensor
    q: Tensor
    d: Tensor
    s: Tensor
    t: Tensor
    moved: Tensor


Perspective = Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]
"""(p, q, s, moved) -> p f(q / p), the part of one outcome in g_f, with s = log(q / p) and moved = q - p."""


def divergence_of(k: Coins, perspective: Perspective) -> Tensor:
    """g_f = p f(q / p) + c f(d / c)."""
    return perspective(k.p, k.q, k.s, k.moved) + perspective(k.c, k.d, k.t, 0.0 - k.moved)


@dataclass(frozen=True)
class BinaryForm:
    """The parts of g_f by formulas better than f(q / p), in float64; multiples of `moved` in them cancel in the sum.

    Attributes:
        value: few operations; the absolute error of the sum is near 1e-16 sqrt(g), a relative 1e-13 at g = 1e-6.
        exact: the same to the last digits, both parts >= 0; `value` if that is exact.
        slope: Coins -> -(d g_f / d t) = d (f'(q / p) - f'(d / c)) for s >= 0 >= t, which Newton's method divides by;
            without it roots are bracketed.
        trips: Newton's iterations; for the built-in forms as few as tests/core/test_solvers.py shows to suffice.
        log_tail: f(u) grows like -log u at 0, so a lower log-bound can be as far away as radius / p.
        power: f(u) grows like u^power / (power (power - 1)), at 0 if power < 0, at infinity if power > 1; the start.

    A change from or to 0 is huge rather than infinite (see `coins`); divide by p + TINY, so that 0 times such a
    change is 0 and NaN needs no special care.
    """

    value: Perspective
    exact: Perspective | None = None
    slope: Callable[[Coins], Tensor] | None = None
    trips: int = 12
    log_tail: bool = False
    power: float = 1.0


def coins(logps: Tensor, old_logps: Tensor) -> Coins:
    """The two coins of a token from its log-probabilities (float64, <= 0; -inf allowed), each to a few ulp.

    A change from or to 0 is HUGE, not infinite, and none where both are 0; a NaN stays one in all but t.
    """
    new, old = logps.clamp(min=-HUGE), old_logps.clamp(min=-HUGE)
    p, q = torch.exp(old), torch.exp(new)
    c, d = one_minus_exp(old), one_minus_exp(new)
    s = new - old
    moved = torch.copysign(torch.maximum(p, q) * one_minus_exp(-s.abs()), s)
    # log(d / c) with the rounding of the quotient added back, which is all of it if little has moved. nan_to_num
    # and clamp are SIMD on the CPU, where `where` is a loop of branches.
    ratio = d / c
    rounding = torch.nan_to_num(moved / -c - (ratio - 1.0), nan=0.0) / ratio.clamp(min=1.0)
    t = torch.nan_to_num(torch.log(ratio) + rounding, nan=0.0, posinf=HUGE, neginf=-HUGE)
    return Coins(p, c, q, d, s, t, moved)


def settle(new: Tensor, old: Tensor, dtypes: tuple[torch.dtype, torch.dtype]) -> tuple[Tensor, Tensor]:
    """Both log-probs (<= 0, in one work dtype), each 0 as near to the other as its rounding allows.

    Arithmetic in `dtypes` makes 0 of a log-prob down to -u, half their eps, so 0 stands for max(other, -u): the
    smallest change that agrees with what is known. Both 0 stay 0, a NaN stays one, anything else is exact.
    """
    new_unit, old_unit = (torch.finfo(dtype).eps / 2 for dtype in dtypes)
    near = torch.where(new == 0.0, old.clamp(-new_unit, 0.0), new)
    return near, torch.where(old == 0.0, new.clamp(-old_unit, 0.0), old)
