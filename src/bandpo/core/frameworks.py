"""A rule as the clip offsets of frameworks that clamp the ratio themselves."""

from __future__ import annotations

import torch
from torch import Tensor

from bandpo.core.checks import as_work_dtype
from bandpo.core.rules import ClipRule
from bandpo.core.tokens import Tokens


@torch.no_grad()
def clip_range(rule: ClipRule, old_logps: Tensor | Tokens, logps: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """The rule's bounds as the offsets from 1 that PPO implementations clamp with.

    clamp(ratio, 1 - low, 1 + high) is the clamp to the rule's bounds: low = 1 - lower, high = upper - 1. The
    subtraction returns both unrounded if lower >= 1/2; otherwise lower is off by at most 2^-25.

    Args:
        rule: The clip rule.
        old_logps: Log-probs under the policy on which the trust region is centered, any shape, or `Tokens`; tokens
            that its mask excludes may hold anything.
        logps: Log-probs under the policy being trained, which a two-sided rule needs: if the minimum of the
            clipped and unclipped terms would readmit a token outside the bounds, its interval is shrunk to a
            point just beyond its ratio, which keeps the value and removes the gradient.

    Returns:
        (low, high), each of the shape of `old_logps`, float32 (float64 for float64 input).
    """
    given = Tokens.of(old_logps)
    mask = given.mask if given.mask is not None else torch.ones_like(given.old_logps)
    keep = mask.bool().expand_as(given.old_logps)
    tokens = given.clean(keep)
    bounds = rule.bounds(tokens)
    low, high = 1 - bounds.lower, bounds.upper - 1
    if rule.two_sided:
        if logps is None or tokens.advantages is None:
            raise ValueError(f"clip rule {type(rule).__name__} is two-sided: it needs logps and advantages")
        dtypes = logps.dtype, given.old_logps.dtype
        logps = torch.where(keep, as_work_dtype(logps.detach()), 0.0)
        ratio = (logps - tokens.old_logps).exp()
        inward = ~rule.judge(logps, tokens, dtypes)[1] & (tokens.advantages * (ratio - 1) < 0)
        point = torch.where(ratio < 1, (ratio - 2.0**-20).clamp(min=0), ratio * (1 + 2.0**-16))
        low, high = torch.where(inward, 1 - point, low), torch.where(inward, point - 1, high)
    return low, high
