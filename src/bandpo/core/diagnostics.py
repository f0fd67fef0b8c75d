"""What a clip rule did to a batch: sums over tokens, so that any number of processes can add them up."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from bandpo.core.checks import as_work_dtype
from bandpo.core.rules import ClipRule
from bandpo.core.tokens import Tokens


@dataclass(frozen=True)
class ClipStatistics:
    """Sums and extremes over the unmasked tokens of a batch; every value is a scalar tensor on the device.

    Attributes:
        tokens: Number of unmasked tokens.
        sums: Name -> sum over tokens; divided by `tokens` it is the metric of that name.
        maxima: Name -> maximum over tokens.
    """

    tokens: Tensor
    sums: dict[str, Tensor]
    maxima: dict[str, Tensor]

    def metrics(self) -> dict[str, Tensor]:
        """Name -> scalar tensor, as docs/metrics.md explains them."""
        tokens = self.tokens.clamp(min=1)
        means = {name: value / tokens for name, value in self.sums.items()}
        return {**means, **finish_maxima(self.maxima, self.tokens)}


def finish_maxima(maxima: dict[str, Tensor], tokens: Tensor | float) -> dict[str, Tensor]:
    """The smallest ratio is kept as the maximum of -log r, so that one reduction serves all extremes.

    Without any token they are those of a token that has not moved.
    """
    some = torch.as_tensor(tokens, device=maxima["divergence_max"].device) > 0
    named = {name: torch.where(some, value, 0.0) for name, value in maxima.items()}
    return {
        "ratio_max": named.pop("log_ratio_max").exp(),
        "ratio_min": named.pop("negative_log_ratio_max").neg().exp(),
        **named,
    }


@torch.no_grad()
def clip_statistics(
    logps: Tensor,
    tokens: Tokens,
    rule: ClipRule,
    entropy: Tensor | None = None,
    measured: tuple[Tensor, Tensor] | None = None,
) -> ClipStatistics:
    """Count what `rule` does to the tokens of a batch.

    Args:
        logps: Log-probs under the policy being trained, shape (B, T).
        tokens: The batch under the anchor policy, with `advantages` of shape (B, T) or (B, 1) and `mask`.
        rule: The clip rule.
        entropy: Entropy of the policy being trained at each position in nats, shape (B, T), if known.
        measured: `rule.judge(logps, tokens)`, if the caller has it already; the tokens are clean then.

    Returns:
        ClipStatistics: No value is read back to the host.
    """
    assert tokens.mask is not None
    keep = tokens.mask.bool().expand_as(logps)
    zero = torch.zeros((), dtype=as_work_dtype(logps).dtype, device=logps.device)
    if measured is None:
        dtypes = logps.dtype, tokens.old_logps.dtype
        logps, tokens = torch.where(keep, as_work_dtype(logps), zero), tokens.clean(keep)
        measured = rule.judge(logps, tokens, dtypes)
    assert tokens.advantages is not None
    log_ratio = logps - tokens.old_logps
    realized, inside = torch.where(keep, measured[0], zero), measured[1]
    rising = log_ratio > 0
    saturated = keep & (torch.maximum(logps, tokens.old_logps) >= 0)
    outside = keep & ~inside
    clipped = keep & rule.clipped(inside, log_ratio, tokens.advantages)
    flags = {
        "clip_fraction_low": clipped & ~rising,
        "clip_fraction_high": clipped & rising,
        "out_of_band_fraction_low": outside & ~rising,
        "out_of_band_fraction_high": outside & rising,
        "saturated_fraction": saturated,
    }
    log_floor, log_cap = rule.log_limits
    if rule.cap is not None:
        flags["cap_fraction"] = keep & (log_ratio > log_cap)
    if rule.floor is not None:
        flags["floor_fraction"] = keep & (log_ratio < log_floor)
    sums = {name: flag.sum().to(zero.dtype) for name, flag in flags.items()}
    sums["clip_fraction"] = sums["clip_fraction_low"] + sums["clip_fraction_high"]
    sums["out_of_band_fraction"] = sums["out_of_band_fraction_low"] + sums["out_of_band_fraction_high"]
    sums["divergence"] = realized.sum()
    sums["ratio"] = log_ratio.exp().masked_fill(~keep, 0).sum()
    if entropy is not None:
        sums["entropy"] = as_work_dtype(entropy).masked_fill(~keep, 0).sum()
    extremes = {"log_ratio_max": log_ratio, "negative_log_ratio_max": -log_ratio, "divergence_max": realized}
    nothing = torch.full_like(zero, -math.inf)
    maxima = {name: torch.where(keep, x, nothing).amax() if x.numel() else nothing for name, x in extremes.items()}
    return ClipStatistics(keep.sum(), sums, maxima)
