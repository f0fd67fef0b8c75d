# Kernels are untyped, as Triton compiles them from their source.
# mypy: disable-error-code="no-untyped-def"
"""Triton kernels: the whole token loss in one pass with its backward, and the bounds of the band.

Importing this module imports Triton. With TRITON_INTERPRET=1 set before Triton's first import the same kernels run
on the CPU. All arithmetic is float32 whatever the inputs hold. exp, expm1, log and log1p are built here from
additions, multiplications and divisions, so that their last digits do not depend on a device's approximate units:
within 2.5 ulp over float32's normal range (tests/test_kernels.py).
"""

from __future__ import annotations

import math
from contextlib import AbstractContextManager
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from bandpo.core.checks import check_broadcast, check_radius
from bandpo.core.divergences import FDivergence, get_divergence
from bandpo.core.rules import DCPO, Band, Clip, ClipRule, NoClip

INTERPRETED: bool = bool(triton.knobs.runtime.interpret) and not isinstance(tl.sum, triton.JITFunction)
"""Whether these kernels run in the interpreter; fixed when Triton and this module are first imported."""

TILE = 1024
"""Tokens of one tile, a power of two; a row shorter than this shares its tile with other rows."""

MAX_PROGRAMS = 1024
"""Programs of the forward pass; more tiles than this are looped over, so that partial sums stay few."""

LOSS_WARPS = 8
"""Warps of a forward tile: 4 tokens a thread keep the kernel below 128 registers, without spills (sm_90)."""

SLOTS = 16
"""Partial sums (0 to 11) and maxima (12 to 14) that each program stores."""

DIVERGENCES = {"kl": 0, "tv": 1, "chi2": 2}
NO_CLIP, CLIP, DYNAMIC, BAND = 0, 1, 2, 3
TOKEN_MEAN, SEQUENCE_SUM, SEQUENCE_MEAN = 0, 1, 2
AGGREGATION_CODES = {
    "token-mean": TOKEN_MEAN,
    "seq-mean-token-sum": SEQUENCE_SUM,
    "seq-mean-token-sum-norm": SEQUENCE_SUM,
    "seq-mean-token-mean": SEQUENCE_MEAN,
}

# Where finished metrics lie in the vector that _finish_kernel writes.
METRIC_SLOTS = {
    "clip_fraction_low": 2,
    "clip_fraction_high": 3,
    "out_of_band_fraction_low": 4,
    "out_of_band_fraction_high": 5,
    "cap_fraction": 6,
    "floor_fraction": 7,
    "clip_fraction": 0,
    "out_of_band_fraction": 1,
    "divergence": 8,
    "ratio": 9,
    "entropy": 10,
    "ratio_max": 12,
    "ratio_min": 13,
    "divergence_max": 14,
    "dual_clip_fraction": 11,
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
    # What check_logps does where looking would cost a sync: rounding above 0 is 0, more becomes NaN.
    return tl.where(x > 1e-3, float("nan"), tl.where(x > 0.0, 0.0, x))


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
    # Where most of the rest has gone, the quotient of what is left is the accurate one.
    emptied = change < -0.5
    v = tl.where(emptied, d / c, 1.0 + change)
    lost = tl.where(v > 2.0, 1.0 - (v - change), change - (v - 1.0))
    t = _log_of(v, change, tl.where(emptied, 0.0, lost))
    token = tl.where(near, p * residual, moved - tl.where(p == 0.0, 0.0, p * s))
    others = tl.where(tl.abs(t) < 0.5, c * _residual(t), -moved - tl.where(c == 0.0, 0.0, c * t))
    return token + others


@triton.jit
def _solve_kl(u, w, radius):
    # Halley's method from the right, two trips: bandpo.core.solvers.solve_kl says why it needs no bracket.
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
            share = radius / w
        else:
            # (w E)^2 = radius u w; the root of p by its logarithm, where p itself underflows.
            share = tl.sqrt_rn(radius / w) * tl.where(up, _exp(0.5 * old), tl.sqrt_rn(c))
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


@triton.jit
def _band_kernel(
    old_ptr, low_ptr, high_ptr, lower_ptr, upper_ptr,
    rows, cols, col_tiles, old_row, old_col, low_row, low_col, high_row, high_col, radius_low, radius_high,
    LOW_TENSOR: tl.constexpr, HIGH_TENSOR: tl.constexpr, DIVERGENCE: tl.constexpr,
    ROWS: tl.constexpr, COLS: tl.constexpr,
):  # fmt: skip
    tile = tl.program_id(0)
    row = ((tile // col_tiles) * ROWS + tl.arange(0, ROWS)[:, None]).to(tl.int64)
    col = ((tile % col_tiles) * COLS + tl.arange(0, COLS)[None, :]).to(tl.int64)
    inside = (row < rows) & (col < cols)
    old = _clean(tl.load(old_ptr + row * old_row + col * old_col, mask=inside, other=0.0).to(tl.float32))
    low = tl.zeros_like(old) + radius_low
    if LOW_TENSOR:
        low = tl.load(low_ptr + row * low_row + col * low_col, mask=inside, other=1.0).to(tl.float32)
    high = tl.zeros_like(old) + radius_high
    if HIGH_TENSOR:
        high = tl.load(high_ptr + row * high_row + col * high_col, mask=inside, other=1.0).to(tl.float32)
    p = _exp(old)
    c = _rest(old, p)
    up = old == old
    lower = _log_bound(old, p, c, old != old, low, DIVERGENCE)
    upper = _log_bound(old, p, c, up, high, DIVERGENCE)
    out = row * cols + col
    tl.store(lower_ptr + out, tl.where(up, lower, old), mask=inside)
    tl.store(upper_ptr + out, tl.where(up, upper, old), mask=inside)


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
def _loss_kernel(
    new_ptr, old_ptr, advantage_ptr, mask_ptr, weight_ptr, entropy_ptr, low_ptr, high_ptr,
    slope_ptr, partial_ptr, row_ptr,
    rows, cols, col_tiles, tiles,
    new_row, new_col, old_row, old_col, advantage_row, advantage_col, mask_row, mask_col,
    weight_row, weight_col, entropy_row, entropy_col, low_row, low_col, high_row, high_col,
    side_low, side_high, log_floor, log_cap, dual_clip,
    RULE: tl.constexpr, DIVERGENCE: tl.constexpr, LOW_TENSOR: tl.constexpr, HIGH_TENSOR: tl.constexpr,
    HAS_FLOOR: tl.constexpr, HAS_CAP: tl.constexpr, HAS_DUAL: tl.constexpr, HAS_WEIGHT: tl.constexpr,
    HAS_ENTROPY: tl.constexpr, STORE_SLOPE: tl.constexpr, STORE_ROWS: tl.constexpr,
    ROWS: tl.constexpr, COLS: tl.constexpr,
):  # fmt: skip
    """One pass over the tokens: loss, d loss / d logp before aggregation, and what the metrics sum up.

    side_low and side_high are the radii of Band, the interval's ends of Clip, the two epsilons of DCPO.
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
        # Masked tokens are never read, so nothing that they hold can matter.
        new = tl.load(new_ptr + row * new_row + col * new_col, mask=keep, other=0.0).to(tl.float32)
        old = tl.load(old_ptr + row * old_row + col * old_col, mask=keep, other=0.0).to(tl.float32)
        advantage = tl.load(advantage_ptr + row * advantage_row + col * advantage_col, mask=keep, other=0.0)
        advantage = advantage.to(tl.float32)

        log_ratio = new - old
        ratio = _exp(log_ratio)
        rising = log_ratio > 0.0
        up = advantage > 0.0
        clean_new, clean_old = _clean(new), _clean(old)
        p = _exp(clean_old)
        c = _rest(clean_old, p)
        g = _divergence(clean_new, clean_old, p, c, DIVERGENCE)

        # Membership, by one evaluation of g_f or by the interval.
        low = tl.zeros_like(new) + side_low
        high = tl.zeros_like(new) + side_high
        if RULE == 3:
            if LOW_TENSOR:
                low = tl.load(low_ptr + row * low_row + col * low_col, mask=keep, other=1.0).to(tl.float32)
            if HIGH_TENSOR:
                high = tl.load(high_ptr + row * high_row + col * high_col, mask=keep, other=1.0).to(tl.float32)
            member = g <= tl.where(clean_new > clean_old, high, low)
            if HAS_CAP:
                member = member & (log_ratio <= log_cap)
            if HAS_FLOOR:
                member = member & (log_ratio >= log_floor)
        elif RULE == 2:
            inverse = _exp(0.0 - old)
            inner = 1.0 - 4.0 * low * inverse
            low = 0.5 + 0.5 * tl.sqrt_rn(tl.where(inner < 0.0, 0.0, inner))
            high = 0.5 + 0.5 * tl.sqrt_rn(1.0 + 4.0 * high * inverse)
            if HAS_CAP:
                limit = log_cap  # DCPO's cap is a plain ratio
                high = tl.where(high > limit, limit, high)
            member = (ratio >= low) & (ratio <= high)
        elif RULE == 1:
            member = (ratio >= low) & (ratio <= high)
        else:
            member = (ratio >= 0.0) & (ratio <= float("inf"))
        outside = keep & (member == 0)

        # The surrogate. A token that has left on the side its advantage pushes to is held at that bound.
        outward = (up & rising) | ((up == 0) & (log_ratio < 0.0))
        held_there = outside & outward & (advantage != 0.0)
        held = tl.where(up, high, low)
        if RULE == 3:
            held = tl.zeros_like(new)
            # Few tiles hold a clipped token, so most skip the solve.
            if tl.max(tl.max(held_there.to(tl.int32), 1), 0) > 0:
                bound = _log_bound(clean_old, p, c, up, tl.where(up, high, low), DIVERGENCE)
                if HAS_CAP:
                    bound = tl.where(up & (bound > log_cap), log_cap, bound)
                if HAS_FLOOR:
                    bound = tl.where((up == 0) & (bound < log_floor), log_floor, bound)
                held = _exp(bound)
        constant = held_there
        if HAS_DUAL:
            dual = keep & (advantage < 0.0) & (ratio > dual_clip)
            held = tl.where(dual, dual_clip, held)
            constant = constant | dual
        moving = keep & (constant == 0) & (advantage != 0.0)
        value = tl.where(moving, ratio, tl.where(constant, held, 0.0))
        loss = 0.0 - advantage * value
        slope = 0.0 - advantage * ratio
        if HAS_WEIGHT:
            weight = tl.load(weight_ptr + row * weight_row + col * weight_col, mask=keep, other=0.0).to(tl.float32)
            loss = loss * weight
            slope = slope * weight
        slope = tl.where(moving, slope, 0.0)  # exactly 0 where held or masked, whatever the ratio overflowed to
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
        below = outside & (rising == 0)
        above = outside & rising
        part = tl.where(slot == 0, _total(loss), 0.0)
        part = tl.where(slot == 1, _count(keep), part)
        part = tl.where(slot == 2, _count(below & (advantage < 0.0)), part)
        part = tl.where(slot == 3, _count(above & (advantage > 0.0)), part)
        part = tl.where(slot == 4, _count(below), part)
        part = tl.where(slot == 5, _count(above), part)
        if HAS_CAP:
            over = log_ratio > log_cap
            if RULE == 2:
                over = log_ratio > log_floor  # the logarithm of DCPO's cap
            part = tl.where(slot == 6, _count(keep & over), part)
        if HAS_FLOOR:
            part = tl.where(slot == 7, _count(keep & (log_ratio < log_floor)), part)
        part = tl.where(slot == 8, _total(tl.where(keep, g, 0.0)), part)
        part = tl.where(slot == 9, _total(tl.where(keep, ratio, 0.0)), part)
        if HAS_ENTROPY:
            entropy = tl.load(entropy_ptr + row * entropy_row + col * entropy_col, mask=keep, other=0.0)
            part = tl.where(slot == 10, _total(entropy.to(tl.float32)), part)
        if HAS_DUAL:
            part = tl.where(slot == 11, _count(dual), part)
        sums += part
        top = tl.where(slot == 12, _top(log_ratio, keep), -float("inf"))
        top = tl.where(slot == 13, _top(0.0 - log_ratio, keep), top)
        top = tl.where(slot == 14, _top(g, keep), top)
        tops = tl.maximum(tops, top)
    tl.store(partial_ptr + program * 16 + slot, tl.where(slot < 12, sums, tops))


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
    tokens = tl.maximum(_at(sums, slot, 1), 1.0)
    total = _at(sums, slot, 0)
    count = tokens
    if SEQUENCES:
        total = _at(sums, slot, 16)  # no such slot: a float64 zero
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
    clipped = (_at(sums, slot, 2) + _at(sums, slot, 3)) / tokens
    beyond = (_at(sums, slot, 4) + _at(sums, slot, 5)) / tokens
    out = tl.where(slot == 0, clipped.to(tl.float32), tl.where(slot == 1, beyond.to(tl.float32), out))
    # Maxima skip NaN, sums do not: take it from them.
    divergence, ratio = _at(sums, slot, 8), _at(sums, slot, 9)
    tops = tl.where(slot == 14, tl.where(divergence == divergence, tops, float("nan")), tops)
    tops = tl.where(slot < 14, tl.where(ratio == ratio, tops, float("nan")), tops)
    out = tl.where(slot == 12, _exp(tops), out)
    out = tl.where(slot == 13, _exp(0.0 - tops), out)
    out = tl.where(slot == 14, tops, out)
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
    """Why the fused kernels do not do this rule, or None if they do."""
    if type(rule) in (NoClip, Clip, DCPO):
        return None
    if type(rule) is not Band:
        return f"the fused kernel knows the rules NoClip, Clip, DCPO and Band, not {type(rule).__name__}"
    return divergence_refusal(rule.divergence)


def divergence_refusal(divergence: str | FDivergence) -> str | None:
    """Why the fused kernels do not do this divergence, or None if they do."""
    form = get_divergence(divergence)
    if form.name in DIVERGENCES and form is get_divergence(form.name):
        return None
    return f"the fused kernel knows the divergences {', '.join(DIVERGENCES)}, not {form.name!r}"


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


def _place(radius: float | Tensor, like: Tensor) -> tuple[Tensor, float]:
    """(tensor or a stand-in, number or a stand-in) for one radius."""
    if not isinstance(radius, Tensor):
        return like, float(radius)
    check_broadcast("radius", radius, "old_logps", like)
    return _as_rows(radius.to(device=like.device, non_blocking=True), like.shape), 0.0


def triton_band(
    old_logps: Tensor,
    radius_low: float | Tensor,
    radius_high: float | Tensor,
    divergence: str | FDivergence = "kl",
) -> tuple[Tensor, Tensor]:
    """(log_lower, log_upper) of :func:`bandpo.band` in one kernel: reads old_logps, writes the two outputs.

    KL by two trips of Halley's method, TV and chi2 in closed form; float32 inside.

    Args:
        old_logps: log p, any shape, e.g. (B, T); float16, bfloat16 or float32, <= 0, -inf allowed. Not checked
            for positive values, which give NaN.
        radius_low: radius of the lower side, > 0; a number or a tensor broadcastable to old_logps.
        radius_high: radius of the upper side.
        divergence: "kl", "tv" or "chi2".

    Returns:
        Two float32 tensors of old_logps' shape, contiguous. No gradient flows through them.

    Raises:
        ValueError: another divergence, float64 input, shapes that do not broadcast.
    """
    why = divergence_refusal(divergence)
    if why is None and (old_logps.dtype == torch.float64 or not old_logps.dtype.is_floating_point):
        why = f"the fused kernel computes in float32, and old_logps is {old_logps.dtype}"
    if why is not None:
        raise ValueError(why)
    low, low_number = _place(radius_low, old_logps)
    high, high_number = _place(radius_high, old_logps)
    lower = torch.empty(old_logps.shape, dtype=torch.float32, device=old_logps.device)
    upper = torch.empty_like(lower)
    if not old_logps.numel():
        return lower, upper
    old = old_logps.detach().reshape(-1, old_logps.shape[-1] if old_logps.dim() else 1)
    low, high = (x if x is not old_logps else old for x in (low, high))
    rows, cols = old.shape
    height, width, across, tiles = _tiling(rows, cols)
    with _on(old):
        _band_kernel[(tiles,)](
            old, low, high, lower, upper,
            rows, cols, across, *old.stride(), *low.stride(), *high.stride(), low_number, high_number,
            LOW_TENSOR=isinstance(radius_low, Tensor), HIGH_TENSOR=isinstance(radius_high, Tensor),
            DIVERGENCE=DIVERGENCES[get_divergence(divergence).name], ROWS=height, COLS=width,
        )  # fmt: skip
    return lower, upper


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
    old_logps: Tensor,
    advantages: Tensor,
    mask: Tensor,
    rule: ClipRule,
    aggregation: str,
    *,
    dual_clip: float | None = None,
    weights: Tensor | None = None,
    entropy: Tensor | None = None,
    horizon: int | None = None,
) -> tuple[Tensor, dict[str, Tensor]]:
    """(loss, metrics) of :func:`bandpo.policy_loss` by the fused kernels; inputs as there, already checked.

    Two launches forward (three for the sequence modes), one backward. Memory beyond the inputs: 4 bytes a token
    for the slope, if a gradient is wanted, and the gradient; everything else is a few numbers a tile.
    """
    low: float | Tensor = 0.0
    high: float | Tensor = 0.0
    floor, cap = getattr(rule, "floor", None), getattr(rule, "cap", None)
    log_floor = math.log(floor) if floor else -math.inf
    log_cap = math.inf if cap is None else math.log(cap)
    kind = NO_CLIP
    if isinstance(rule, Band):
        kind, (low, high) = BAND, check_radius(rule.radius)
    elif isinstance(rule, Clip):
        kind, low, high = CLIP, 1 - rule.low, 1 + rule.high
    elif isinstance(rule, DCPO):
        # The kernel's two numbers are for DCPO the cap's logarithm and the cap: it has no floor.
        kind, low, high = DYNAMIC, rule.low, rule.high
        if cap is not None:
            log_floor, log_cap = log_cap, cap
    low_tensor, low_number = _place(low, logps)
    high_tensor, high_number = _place(high, logps)
    given: dict[str, Any] = {
        "old_logps": old_logps,
        "advantages": advantages,
        "mask": mask,
        "weights": weights,
        "entropy": entropy,
        "low": low_tensor if isinstance(low, Tensor) else None,
        "high": high_tensor if isinstance(high, Tensor) else None,
        "mode": AGGREGATION_CODES[aggregation],
        "divisor": 1.0,
        "numbers": (low_number, high_number, log_floor, log_cap, 1.0 if dual_clip is None else float(dual_clip)),
        "switches": {
            "RULE": kind,
            "DIVERGENCE": DIVERGENCES[get_divergence(getattr(rule, "divergence", "kl")).name],
            "LOW_TENSOR": isinstance(low, Tensor),
            "HIGH_TENSOR": isinstance(high, Tensor),
            "HAS_FLOOR": floor is not None,
            "HAS_CAP": cap is not None,
            "HAS_DUAL": dual_clip is not None,
            "HAS_WEIGHT": weights is not None,
            "HAS_ENTROPY": entropy is not None,
        },
    }
    if aggregation == "seq-mean-token-sum-norm":
        given["divisor"] = float(logps.shape[-1] if horizon is None else horizon)
    loss, vector = _FusedLoss.apply(logps, given)
    named = vector.unbind()
    absent = {
        name
        for name, there in (
            ("cap_fraction", cap is not None),
            ("floor_fraction", floor is not None),
            ("entropy", entropy is not None),
            ("dual_clip_fraction", dual_clip is not None),
        )
        if not there
    }
    return loss, {name: named[slot] for name, slot in METRIC_SLOTS.items() if name not in absent}
