# Kernels are untyped, as Triton compiles them from their source.
# mypy: disable-error-code="no-untyped-def"
"""Triton kernels: the whole token loss in one pass, with its backward.

Importing this module imports Triton. With TRITON_INTERPRET=1 set before Triton's first import the same kernels run
on the CPU. All arithmetic is float32 whatever the inputs hold. exp, expm1, log and log1p are built here from
additions, multiplications and divisions, so that their last digits do not depend on a device's approximate units:
within 2.5 ulp over float32's normal range (tests/test_kernels.py).
"""

from __future__ import annotations

from contextlib import AbstractContextManager
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from bandpo.core.checks import as_tensor
from bandpo.core.divergences import get_divergence
from bandpo.core.rules import ClipRule
from bandpo.core.tokens import Tokens

INTERPRETED: bool = bool(triton.knobs.runtime.interpret) and not isinstance(tl.sum, triton.JITFunction)
"""Whether these kernels run in the interpreter; fixed when Triton and this module are first imported."""

TILE = 1024
"""Tokens of one tile, a power of two; a row shorter than this shares its tile with other rows."""

MAX_PROGRAMS = 1024
"""Programs of the forward pass; they loop over further tiles, so that partial sums stay few."""

LOSS_WARPS = 8
"""Warps of a forward tile: 4 tokens per thread keep the kernel below 128 registers, without spills (sm_90)."""

SLOTS = 16
"""Partial sums (LOSS to SATURATED) and maxima (from RATIO_MAX on) that each program stores."""

LOSS, TOKENS = tl.constexpr(0), tl.constexpr(1)
CLIPPED_LOW, CLIPPED_HIGH, OUTSIDE_LOW, OUTSIDE_HIGH = (tl.constexpr(k) for k in (2, 3, 4, 5))
CAPPED, FLOORED, DIVERGENCE_SUM, RATIO_SUM = (tl.constexpr(k) for k in (6, 7, 8, 9))
ENTROPY, DUAL, SATURATED = (tl.constexpr(k) for k in (10, 11, 12))
RATIO_MAX, RATIO_MIN, DIVERGENCE_MAX = (tl.constexpr(k) for k in (13, 14, 15))
NO_SLOT = tl.constexpr(16)

# Where finished metrics lie in the vector that _finish_kernel writes; the first two replace LOSS and TOKENS.
METRIC_SLOTS = {
    "clip_fraction_low": CLIPPED_LOW.value,
    "clip_fraction_high": CLIPPED_HIGH.value,
    "out_of_band_fraction_low": OUTSIDE_LOW.value,
    "out_of_band_fraction_high": OUTSIDE_HIGH.value,
    "saturated_fraction": SATURATED.value,
    "cap_fraction": CAPPED.value,
    "floor_fraction": FLOORED.value,
    "clip_fraction": LOSS.value,
    "out_of_band_fraction": TOKENS.value,
    "divergence": DIVERGENCE_SUM.value,
    "ratio": RATIO_SUM.value,
    "entropy": ENTROPY.value,
    "ratio_max": RATIO_MAX.value,
    "ratio_min": RATIO_MIN.value,
    "divergence_max": DIVERGENCE_MAX.value,
    "dual_clip_fraction": DUAL.value,
}

DIVERGENCES = {"kl": 0, "tv": 1, "chi2": 2}
TOKEN_MEAN, SEQUENCE_SUM, SEQUENCE_MEAN = 0, 1, 2
AGGREGATION_CODES = {
    "token-mean": TOKEN_MEAN,
    "seq-mean-token-sum": SEQUENCE_SUM,
    "seq-mean-token-sum-norm": SEQUENCE_SUM,
    "seq-mean-token-mean": SEQUENCE_MEAN,
}


# --- elementary functions -----------------------------------------------------------------------------------


@triton.jit
def _residual(t):
    # e^t - 1 - t for |t| <= 1/2: the series to t^9, whose first omitted term is below 2e-9 of the sum.
    s = 1.0 / 40320.0 + t * (1.0 / 362880.0)
    s = 1.0 / 5040.0 + t * s
    s = 1.0 / 720.0 + t * s
    s = 1.0 / 120.0 + t * s
    s = 1.0 / 24.0 + t * s
    s = 1.0 / 6.0 + t * s
    return (t * t) * (0.5 + t * s)


@triton.jit
def _exp(x):
    # 2^n e^r, |r| <= 0.35; the two halves of 2^n let the result be subnormal or overflow to inf.
    x = tl.where(x < -104.0, -104.0, tl.where(x > 89.0, 89.0, x))
    n = tl.floor(x * 1.4426950408889634 + 0.5)
    r = (x - n * 0.693359375) + n * 2.12194440e-4  # ln 2 in two pieces, the first with an exact product
    k = n.to(tl.int32)
    half = k >> 1
    first = ((half + 127) << 23).to(tl.float32, bitcast=True)
    second = ((k - half + 127) << 23).to(tl.float32, bitcast=True)
    return (1.0 + (r + _residual(r))) * first * second


@triton.jit
def _log_near(f):
    # log(1 + f) for 1 + f in [sqrt(1/2), sqrt(2)]: 2 atanh(s), s = f / (2 + f), the leading f kept apart.
    s = f / (2.0 + f)
    z = s * s
    r = z * (2.0 / 3.0 + z * (2.0 / 5.0 + z * (2.0 / 7.0 + z * (2.0 / 9.0))))
    h = 0.5 * f * f
    return f - (h - s * (h + r))


@triton.jit
def _log_of(u, offset, lost):
    # log(u + lost): offset is u - 1 without rounding where u is near 1, lost what rounding took from u.
    tiny = u < 1.1754943508222875e-38
    bits = tl.where(tiny, u * 8388608.0, u).to(tl.int32, bitcast=True)
    k = (bits - 0x3F3504F3) >> 23
    m = (bits - (k << 23)).to(tl.float32, bitcast=True)
    e = k.to(tl.float32) - tl.where(tiny, 23.0, 0.0)
    near = e == 0.0
    f = tl.where(near, offset, m - 1.0)
    small = tl.where(near, 0.0, lost / u) - e * 2.12194440e-4
    out = (_log_near(f) + small) + e * 0.693359375
    out = tl.where(u == float("inf"), u, out)
    return tl.where(u == 0.0, -float("inf"), tl.where(u > 0.0, out, float("nan")))


@triton.jit
def _log(x):
    return _log_of(x, x - 1.0, 0.0)


@triton.jit
def _log1p(x):
    u = 1.0 + x
    return _log_of(u, x, tl.where(u > 2.0, 1.0 - (u - x), x - (u - 1.0)))


@triton.jit
def _expm1(x):
    return tl.where(tl.abs(x) < 0.5, x + _residual(x), _exp(x) - 1.0)


@triton.jit
def _rest(x, e):
    # 1 - e^x for x <= 0, e = e^x
    return tl.where(x > -0.5, 0.0 - (x + _residual(x)), 1.0 - e)


@triton.jit
def _clean(x):
    # As check_logps if checking would cost a sync: rounding above 0 becomes 0, more becomes NaN.
    return tl.where(x > 1e-3, float("nan"), tl.where(x > 0.0, 0.0, x))


@triton.jit
def _settled(x, other, unit):
    # bandpo.core.coins.settle: a 0 is as near to the other log-prob as its rounding allows.
    return tl.where(x == 0.0, tl.where(other < -unit, -unit, other), x)


# --- the band -----------------------------------------------------------------------------------------------


@triton.jit
def _divergence(new, old, p, c, DIVERGENCE: tl.constexpr):
    """g_f(p, r) from log-probs <= 0 (p = e^old, c = 1 - p), with its limits at 0 and -inf.

    With q - p the probability moved, TV is |q - p| and chi2 is (q - p)(r - 1)/c. KL(old || new) is
    p R(log r) + c R(log v), R(t) = e^t - 1 - t >= 0, so nothing cancels; away from 1 it is (q - p) - p log r.
    """
    q = _exp(new)
    s = tl.where(new == old, 0.0, new - old)
    near = tl.abs(s) < 0.5
    residual = _residual(s)
    moved = tl.where(near, p * (s + residual), q - p)
    if DIVERGENCE == 1:
        return tl.abs(moved)
    if DIVERGENCE == 2:
        relative = tl.where(near, s + residual, _exp(s) - 1.0)
        return tl.where(moved == 0.0, 0.0, tl.abs(moved * relative) / c)
    d = _rest(new, q)
    change = tl.where(s == 0.0, 0.0, -moved / c)
    # If most of the rest is gone, the quotient of what is left is more accurate.
    emptied = change < -0.5
    v = tl.where(emptied, d / c, 1.0 + change)
    lost = tl.where(v > 2.0, 1.0 - (v - change), change - (v - 1.0))
    t = _log_of(v, change, tl.where(emptied, 0.0, lost))
    token = tl.where(near, p * residual, moved - tl.where(p == 0.0, 0.0, p * s))
    others = tl.where(tl.abs(t) < 0.5, c * _residual(t), -moved - tl.where(c == 0.0, 0.0, c * t))
    return token + others


@triton.jit
def _solve_kl(u, w, radius):
    # Halley's method from the right, two iterations; bandpo.core.solvers.solve_kl explains why it needs no bracket.
    scale = tl.where(w < 1e-18, 1e-18, w)
    start = radius / scale
    shrink = start + tl.sqrt_rn(2.0 * start * u)
    for _ in tl.static_range(2):
        share = 0.0 - _expm1(0.0 - shrink)
        moved = scale * share
        relative = moved / u
        relative = tl.where(relative > 1e30, 1e30, relative)
        step = (u + moved) / share * (shrink - (u * _log1p(relative) + radius) / scale)
        bend = (1.0 - share) * u / (2.0 * (u + moved) * share)
        shrink = shrink - step / (1.0 - step * bend)
    shrink = shrink * (scale / w)
    return 0.0 - _expm1(0.0 - shrink), shrink


@triton.jit
def _log_bound(old, p, c, up, radius, DIVERGENCE: tl.constexpr):
    """Log-ratio bound of one side per token (`up` picks it): the root of g_f = radius, or the simplex edge."""
    u, w = tl.where(up, p, c), tl.where(up, c, p)
    if DIVERGENCE == 0:
        share, shrink = _solve_kl(u, w, radius)
    else:
        if DIVERGENCE == 1:
            share = tl.div_rn(radius, w)
        else:
            # (w E)^2 = radius u w; the root of p by its logarithm, where p itself underflows.
            share = tl.sqrt_rn(tl.div_rn(radius, w)) * tl.where(up, _exp(0.5 * old), tl.sqrt_rn(c))
        share = tl.where(share > 1.0, 1.0, share)
        shrink = 0.0 - _log1p(0.0 - share)
    edge = 0.0 - old
    saturated = shrink == float("inf")
    if DIVERGENCE == 2:
        # A steep f: nothing to grow from leaves r = 1, and at p = 0 or 1 the upper bound is the edge.
        shrink = tl.where(u == 0.0, 0.0, shrink)
        saturated = saturated | (edge == float("inf")) | (edge == 0.0)
    lower = tl.where(p == 0.0, -float("inf"), 0.0 - shrink)
    moved = w * share
    relative = tl.where(moved == 0.0, 0.0, moved / u)
    near = _log1p(tl.where(relative > 1.0, 1.0, relative))
    upper = tl.where(relative > 1.0, _log(u + moved) - old, near)
    upper = tl.where(saturated | (upper > edge), edge, upper)
    return tl.where(up, upper, lower)


# --- the loss -----------------------------------------------------------------------------------------------


@triton.jit
def _count(flag):
    return tl.sum(tl.sum(flag.to(tl.float32), 1), 0)


@triton.jit
def _total(x):
    return tl.sum(tl.sum(x, 1), 0)


@triton.jit
def _top(x, keep):
    return tl.max(tl.max(tl.where(keep, x, -float("inf")), 1), 0)


@triton.jit
def _load(ptr, row, col, by_row, by_col, keep):
    return tl.load(ptr + row * by_row + col * by_col, mask=keep, other=0.0).to(tl.float32)


@triton.jit
def _held(old, rising, low, high, log_floor, log_cap, clipped, BALL: tl.constexpr, DIVERGENCE: tl.constexpr):
    """The ratio at which a clipped token is held: the bound that it has crossed."""
    held = tl.where(rising, high, low)
    if BALL:  # noqa: SIM102 (decided when the kernel is compiled)
        # Few tiles hold a clipped token, so most skip the solve.
        if tl.max(tl.max(clipped.to(tl.int32), 1), 0) > 0:
            p = _exp(old)
            bound = _log_bound(old, p, _rest(old, p), rising, held, DIVERGENCE)
            bound = tl.where(rising & (bound > log_cap), log_cap, bound)
            bound = tl.where((rising == 0) & (bound < log_floor), log_floor, bound)
            held = _exp(bound)
    return held


@triton.jit
def _loss_kernel(
    new_ptr, old_ptr, advantage_ptr, mask_ptr, weight_ptr, entropy_ptr, low_ptr, high_ptr,
    slope_ptr, partial_ptr, row_ptr,
    rows, cols, col_tiles, tiles,
    new_row, new_col, old_row, old_col, advantage_row, advantage_col, mask_row, mask_col,
    weight_row, weight_col, entropy_row, entropy_col, low_row, low_col, high_row, high_col,
    new_unit, old_unit, log_floor, log_cap, dual_clip,
    BALL: tl.constexpr, DIVERGENCE: tl.constexpr, TWO_SIDED: tl.constexpr,
    HAS_DUAL: tl.constexpr, HAS_WEIGHT: tl.constexpr, HAS_ENTROPY: tl.constexpr,
    STORE_SLOPE: tl.constexpr, STORE_ROWS: tl.constexpr, ROWS: tl.constexpr, COLS: tl.constexpr,
):  # fmt: skip
    """One pass over the tokens: loss, d loss / d logp before aggregation, and the sums of the metrics.

    low and high are the radii of a ball of the divergence (BALL), else the bounds of the ratio. One function, because
    anything moved out of the loop would have to be passed tensor by tensor: Triton's helpers take each one by name.
    """
    program = tl.program_id(0)
    slot = tl.arange(0, 16)
    sums = tl.zeros([16], tl.float32)
    tops = tl.full([16], -float("inf"), tl.float32)
    for tile in range(program, tiles, tl.num_programs(0)):
        row = ((tile // col_tiles) * ROWS + tl.arange(0, ROWS)[:, None]).to(tl.int64)
        col = ((tile % col_tiles) * COLS + tl.arange(0, COLS)[None, :]).to(tl.int64)
        exists = (row < rows) & (col < cols)
        keep = exists & (tl.load(mask_ptr + row * mask_row + col * mask_col, mask=exists, other=0) != 0)
        # Masked tokens are never read, so their values cannot matter.
        new = _load(new_ptr, row, col, new_row, new_col, keep)
        old = _load(old_ptr, row, col, old_row, old_col, keep)
        advantage = _load(advantage_ptr, row, col, advantage_row, advantage_col, keep)
        low = _load(low_ptr, row, col, low_row, low_col, keep)
        high = _load(high_ptr, row, col, high_row, high_col, keep)

        log_ratio = new - old
        ratio = _exp(log_ratio)
        rising = log_ratio > 0.0
        clean_new, clean_old = _clean(new), _clean(old)
        near_new, near_old = _settled(clean_new, clean_old, new_unit), _settled(clean_old, clean_new, old_unit)
        p = _exp(near_old)
        g = _divergence(near_new, near_old, p, _rest(near_old, p), DIVERGENCE)
        if BALL:
            member = (g <= tl.where(near_new > near_old, high, low)) & (log_ratio <= log_cap)
            member = member & (log_ratio >= log_floor)
        else:
            near_ratio = _exp(near_new - near_old)
            member = (near_ratio >= low) & (near_ratio <= high)
        outside = keep & (member == 0)

        # The surrogate: what the rule clips is held at the bound that it has crossed.
        clipped = outside & (advantage != 0.0)
        if TWO_SIDED == 0:
            clipped = clipped & (((advantage > 0.0) & rising) | ((advantage < 0.0) & (log_ratio < 0.0)))
        held = _held(clean_old, rising, low, high, log_floor, log_cap, clipped, BALL, DIVERGENCE)
        constant = clipped
        if HAS_DUAL:
            dual = keep & (advantage < 0.0) & (ratio > dual_clip)
            held = tl.where(dual, dual_clip, held)
            constant = constant | dual
        moving = keep & (constant == 0) & (advantage != 0.0)
        loss = 0.0 - advantage * tl.where(moving, ratio, tl.where(constant, held, 0.0))
        slope = 0.0 - advantage * ratio
        if HAS_WEIGHT:
            weight = _load(weight_ptr, row, col, weight_row, weight_col, keep)
            loss = loss * weight
            slope = slope * weight
        slope = tl.where(moving, slope, 0.0)  # exactly 0 where held or masked, even if the ratio overflowed
        loss = tl.where(keep, loss, 0.0)
        if STORE_SLOPE:
            tl.store(slope_ptr + row * cols + col, slope, mask=exists)
        if STORE_ROWS:
            line = tl.arange(0, ROWS)
            index = ((tile // col_tiles) * ROWS + line).to(tl.int64)
            at = (index * col_tiles + tile % col_tiles) * 2
            tl.store(row_ptr + at, tl.sum(loss, 1), mask=index < rows)
            tl.store(row_ptr + at + 1, tl.sum(keep.to(tl.float32), 1), mask=index < rows)

        # What the metrics need.
        part = tl.where(slot == LOSS, _total(loss), 0.0)
        part = tl.where(slot == TOKENS, _count(keep), part)
        part = tl.where(slot == CLIPPED_LOW, _count(clipped & (rising == 0)), part)
        part = tl.where(slot == CLIPPED_HIGH, _count(clipped & rising), part)
        part = tl.where(slot == OUTSIDE_LOW, _count(outside & (rising == 0)), part)
        part = tl.where(slot == OUTSIDE_HIGH, _count(outside & rising), part)
        part = tl.where(slot == CAPPED, _count(keep & (log_ratio > log_cap)), part)
        part = tl.where(slot == FLOORED, _count(keep & (log_ratio < log_floor)), part)
        saturated = keep & ((new >= 0.0) | (old >= 0.0))
        part = tl.where(slot == SATURATED, _count(saturated), part)
        part = tl.where(slot == DIVERGENCE_SUM, _total(tl.where(keep, g, 0.0)), part)
        part = tl.where(slot == RATIO_SUM, _total(tl.where(keep, ratio, 0.0)), part)
        if HAS_ENTROPY:
            entropy = _load(entropy_ptr, row, col, entropy_row, entropy_col, keep)
            part = tl.where(slot == ENTROPY, _total(entropy), part)
        if HAS_DUAL:
            part = tl.where(slot == DUAL, _count(dual), part)
        sums += part
        top = tl.where(slot == RATIO_MAX, _top(log_ratio, keep), -float("inf"))
        top = tl.where(slot == RATIO_MIN, _top(0.0 - log_ratio, keep), top)
        top = tl.where(slot == DIVERGENCE_MAX, _top(g, keep), top)
        tops = tl.maximum(tops, top)
    tl.store(partial_ptr + program * 16 + slot, tl.where(slot < RATIO_MAX, sums, tops))


@triton.jit
def _rows_kernel(
    row_ptr, row_scale_ptr, partial_ptr, rows, col_tiles, SEQUENCE_MEAN: tl.constexpr, ROWS: tl.constexpr
):
    """Sums of whole sequences from those of their tiles; per program (sum over sequences, non-empty sequences)."""
    row = (tl.program_id(0) * ROWS + tl.arange(0, ROWS)).to(tl.int64)
    exists = row < rows
    total = tl.zeros([ROWS], tl.float32)
    count = tl.zeros([ROWS], tl.float32)
    for tile in range(col_tiles):
        at = (row * col_tiles + tile) * 2
        total += tl.load(row_ptr + at, mask=exists, other=0.0)
        count += tl.load(row_ptr + at + 1, mask=exists, other=0.0)
    if SEQUENCE_MEAN:
        scale = 1.0 / tl.where(count < 1.0, 1.0, count)
        total = total * scale
        tl.store(row_scale_ptr + row, scale, mask=exists)
    at = tl.program_id(0) * 2
    tl.store(partial_ptr + at, tl.sum(total, 0))
    tl.store(partial_ptr + at + 1, tl.sum((count > 0.0).to(tl.float32), 0))


@triton.jit
def _at(x, slot, k: tl.constexpr):
    return tl.sum(tl.where(slot == k, x, 0.0), 0)


@triton.jit
def _finish_kernel(
    partial_ptr, sequence_ptr, loss_ptr, scale_ptr, metrics_ptr, programs, sequence_programs, divisor,
    SEQUENCES: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Partial sums to the loss, its scale for backward, and the metrics: one program, float64 sums."""
    slot = tl.arange(0, 16)
    sums = tl.zeros([16], tl.float64)
    tops = tl.full([16], -float("inf"), tl.float32)
    for start in range(0, programs, BLOCK):
        line = start + tl.arange(0, BLOCK)[:, None]
        exists = (line < programs) & (slot[None, :] < 16)
        part = tl.load(partial_ptr + line * 16 + slot[None, :], mask=exists, other=0.0)
        sums += tl.sum(part.to(tl.float64), 0)
        tops = tl.maximum(tops, tl.max(tl.where(exists, part, -float("inf")), 0))
    tokens = tl.maximum(_at(sums, slot, TOKENS), 1.0)
    total = _at(sums, slot, LOSS)
    count = tokens
    if SEQUENCES:
        total = _at(sums, slot, NO_SLOT)  # a float64 zero
        count = total
        for start in range(0, sequence_programs, BLOCK):
            line = start + tl.arange(0, BLOCK)
            exists = line < sequence_programs
            total += tl.sum(tl.load(sequence_ptr + line * 2, mask=exists, other=0.0).to(tl.float64), 0)
            count += tl.sum(tl.load(sequence_ptr + line * 2 + 1, mask=exists, other=0.0).to(tl.float64), 0)
        count = tl.maximum(count, 1.0) * divisor
    tl.store(loss_ptr, (total / count).to(tl.float32))
    tl.store(scale_ptr, (1.0 / count).to(tl.float32))

    out = (sums / tokens).to(tl.float32)
    clipped = (_at(sums, slot, CLIPPED_LOW) + _at(sums, slot, CLIPPED_HIGH)) / tokens
    beyond = (_at(sums, slot, OUTSIDE_LOW) + _at(sums, slot, OUTSIDE_HIGH)) / tokens
    out = tl.where(slot == LOSS, clipped.to(tl.float32), tl.where(slot == TOKENS, beyond.to(tl.float32), out))
    # Maxima skip NaN, sums do not: take it from them.
    divergence, ratio = _at(sums, slot, DIVERGENCE_SUM), _at(sums, slot, RATIO_SUM)
    tops = tl.where(slot == DIVERGENCE_MAX, tl.where(divergence == divergence, tops, float("nan")), tops)
    tops = tl.where(slot < DIVERGENCE_MAX, tl.where(ratio == ratio, tops, float("nan")), tops)
    tops = tl.where(_at(sums, slot, TOKENS) > 0.0, tops, 0.0)  # no token at all: none has moved
    out = tl.where(slot == RATIO_MAX, _exp(tops), out)
    out = tl.where(slot == RATIO_MIN, _exp(0.0 - tops), out)
    out = tl.where(slot == DIVERGENCE_MAX, tops, out)
    tl.store(metrics_ptr + slot, out)


@triton.jit
def _backward_kernel(
    slope_ptr, upstream_ptr, scale_ptr, row_scale_ptr, grad_ptr, rows, cols, col_tiles,
    SEQUENCE_MEAN: tl.constexpr, ROWS: tl.constexpr, COLS: tl.constexpr,
):  # fmt: skip
    tile = tl.program_id(0)
    row = ((tile // col_tiles) * ROWS + tl.arange(0, ROWS)[:, None]).to(tl.int64)
    col = ((tile % col_tiles) * COLS + tl.arange(0, COLS)[None, :]).to(tl.int64)
    exists = (row < rows) & (col < cols)
    factor = tl.load(upstream_ptr).to(tl.float32) * tl.load(scale_ptr)
    grad = tl.load(slope_ptr + row * cols + col, mask=exists, other=0.0) * factor
    if SEQUENCE_MEAN:
        grad = grad * tl.load(row_scale_ptr + row, mask=row < rows, other=0.0)
    tl.store(grad_ptr + row * cols + col, grad, mask=exists)


# --- launching ----------------------------------------------------------------------------------------------


def refusal(rule: ClipRule) -> str | None:
    """Why the fused kernel does not support this rule, or None if it does."""
    form = get_divergence(rule.divergence)
    if form.name in DIVERGENCES and form is get_divergence(form.name):
        return None
    return f"the fused kernel supports the divergences {', '.join(DIVERGENCES)}, not {form.name!r}"


def _on(tensor: Tensor) -> AbstractContextManager[Any]:
    return torch.cuda.device_of(tensor)


def _tiling(rows: int, cols: int) -> tuple[int, int, int, int]:
    """(rows of a tile, columns of a tile, tiles across, tiles)."""
    width = min(TILE, triton.next_power_of_2(cols))
    height = max(1, min(TILE // width, triton.next_power_of_2(rows)))
    across = triton.cdiv(cols, width)
    return height, width, across, across * triton.cdiv(rows, height)


def _as_rows(x: Tensor, shape: torch.Size) -> Tensor:
    # (B, T) stays a view, broadcast dimensions with stride 0 included.
    return x.detach().expand(shape).reshape(-1, shape[-1])


class _FusedLoss(torch.autograd.Function):
    """Forward stores d loss / d logp per token; backward is one multiplication."""

    @staticmethod
    def forward(ctx: Any, logps: Tensor, given: dict[str, Any]) -> tuple[Tensor, Tensor]:
        store_slope = ctx.needs_input_grad[0]
        shape, device = logps.shape, logps.device
        new = _as_rows(logps, shape)
        rows, cols = new.shape
        height, width, across, tiles = _tiling(rows, cols)
        programs = min(tiles, MAX_PROGRAMS)
        mode = given["mode"]

        def empty(*size: int) -> Tensor:
            return torch.empty(size, dtype=torch.float32, device=device)

        tensors = {
            name: new if x is None else _as_rows(x, shape)
            for name in ("old_logps", "advantages", "mask", "weights", "entropy", "low", "high")
            for x in (given[name],)
        }
        slope = empty(rows, cols) if store_slope else new
        partial = empty(programs, SLOTS)
        by_row = empty(rows, across, 2) if mode != TOKEN_MEAN else partial
        loss, scale, metrics = empty(), empty(), empty(SLOTS)
        row_scale, sequences, row_programs = scale, partial, 0
        with _on(new):
            _loss_kernel[(programs,)](
                new, *tensors.values(), slope, partial, by_row, rows, cols, across, tiles,
                *new.stride(), *(stride for x in tensors.values() for stride in x.stride()), *given["numbers"],
                **given["switches"], STORE_SLOPE=store_slope, STORE_ROWS=mode != TOKEN_MEAN,
                ROWS=height, COLS=width, num_warps=LOSS_WARPS,
            )  # fmt: skip
            if mode != TOKEN_MEAN:
                row_programs = triton.cdiv(rows, 128)
                sequences = empty(row_programs, 2)
                row_scale = empty(rows) if mode == SEQUENCE_MEAN else scale
                _rows_kernel[(row_programs,)](
                    by_row, row_scale, sequences, rows, across, SEQUENCE_MEAN=mode == SEQUENCE_MEAN, ROWS=128
                )
            _finish_kernel[(1,)](
                partial, sequences, loss, scale, metrics, programs, row_programs, given["divisor"],
                SEQUENCES=mode != TOKEN_MEAN, BLOCK=128,
            )  # fmt: skip
        if store_slope:
            ctx.save_for_backward(slope, scale, row_scale)
        ctx.shape, ctx.dtype, ctx.mode = shape, logps.dtype, mode
        ctx.mark_non_differentiable(metrics)
        return loss, metrics

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, upstream: Tensor, _: Any) -> tuple[Tensor, None]:
        slope, scale, row_scale = ctx.saved_tensors
        rows, cols = slope.shape
        height, width, across, tiles = _tiling(rows, cols)
        grad = torch.empty(ctx.shape, dtype=ctx.dtype, device=slope.device)
        with _on(slope):
            _backward_kernel[(tiles,)](
                slope, upstream, scale, row_scale, grad, rows, cols, across,
                SEQUENCE_MEAN=ctx.mode == SEQUENCE_MEAN, ROWS=height, COLS=width,
            )  # fmt: skip
        return grad, None


def fused_loss(
    logps: Tensor,
    tokens: Tokens,
    weights: Tensor | None,
    entropy: Tensor | None,
    rule: ClipRule,
    aggregation: str,
    dual_clip: float | None,
    horizon: int | None,
) -> tuple[Tensor, dict[str, Tensor]]:
    """(loss, metrics) of :func:`bandpo.policy_loss` by the fused kernels; inputs as there, already checked.

    Two launches forward (three for the sequence modes), one backward. Memory beyond the inputs: 4 bytes per token
    for the slope, if a gradient is wanted, and the gradient; everything else is a few numbers per tile. A rule that
    is not a ball of its divergence, or has needs, adds what it computes in PyTorch.
    """
    assert tokens.mask is not None
    keep = tokens.mask.bool().expand_as(logps)
    radii = rule.radii(tokens.clean(keep) if rule.needs else tokens)
    if radii is None:
        bounds = rule.bounds(tokens.clean(keep))
        low, high = bounds.lower, bounds.upper
    else:
        low, high = (as_tensor(x, torch.float32, logps.device) for x in radii)
    log_floor, log_cap = rule.log_limits
    units = (torch.finfo(x.dtype).eps / 2 for x in (logps, tokens.old_logps))
    given: dict[str, Any] = {
        "old_logps": tokens.old_logps,
        "advantages": tokens.advantages,
        "mask": tokens.mask,
        "weights": weights,
        "entropy": entropy,
        "low": low,
        "high": high,
        "mode": AGGREGATION_CODES[aggregation],
        "divisor": 1.0,
        "numbers": (*units, log_floor, log_cap, 1.0 if dual_clip is None else float(dual_clip)),
        "switches": {
            "BALL": radii is not None,
            "DIVERGENCE": DIVERGENCES[get_divergence(rule.divergence).name],
            "TWO_SIDED": rule.two_sided,
            "HAS_DUAL": dual_clip is not None,
            "HAS_WEIGHT": weights is not None,
            "HAS_ENTROPY": entropy is not None,
        },
    }
    if aggregation == "seq-mean-token-sum-norm":
        given["divisor"] = float(logps.shape[-1] if horizon is None else horizon)
    loss, vector = _FusedLoss.apply(logps, given)
    named = vector.unbind()
    given_of = {
        "cap_fraction": rule.cap, "floor_fraction": rule.floor, "entropy": entropy, "dual_clip_fraction": dual_clip
    }  # fmt: skip
    return loss, {name: named[slot] for name, slot in METRIC_SLOTS.items() if given_of.get(name, 1) is not None}
