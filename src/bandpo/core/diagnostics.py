"""What a clip rule did to a batch: sums over tokens, so that any number of processes can add them up."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from bandpo.core.band import binary_divergence
from bandpo.core.checks import as_work_dtype
from bandpo.core.divergences import FDivergence
from bandpo.core.rules import ClipRule


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
        return {**means, **finish_maxima(self.maxima)}


def finish_maxima(maxima: dict[str, Tensor]) -> dict[str, Tensor]:
    """The smallest ratio travels as the maximum of -log r, so that one reduction serves all extremes."""
    named = dict(maxima)
    return {
        "ratio_max": named.pop("log_ratio_max").exp(),
        "ratio_min": named.pop("negative_log_ratio_max").neg().exp(),
        **named,
    }


@torch.no_grad()
def clip_statistics(
    logps: Tensor,
    old_logps: Tensor,
    advantages: Tensor,
    mask: Tensor,
    rule: ClipRule,
    entropy: Tensor | None = None,
    inside: Tensor | None = None,
) -> ClipStatistics:
    """Count what `rule` does to the tokens of a batch.

    Args:
        logps: Log-probs under the policy being trained, shape (B, T).
        old_logps: Log-probs under the anchor policy, shape (B, T).
        advantages: Shape (B, T) or (B, 1).
        mask: 1 for tokens that count, shape (B, T).
        rule: The clip rule.
        entropy: Entropy of the policy at each position in nats, shape (B, T), if known.
        inside: The rule's membership of these tokens, where the caller has it already.

    Returns:
        ClipStatistics: No value is read back to the host.
    """
    keep = mask.bool()
    zero = torch.zeros((), dtype=as_work_dtype(logps).dtype, device=logps.device)
    logps = torch.where(keep, as_work_dtype(logps), zero)
    old_logps = torch.where(keep, as_work_dtype(old_logps), zero)
    log_ratio = logps - old_logps
    outside = keep & ~(rule.inside(logps, old_logps) if inside is None else inside)
    rising = log_ratio > 0
    divergence: str | FDivergence = getattr(rule, "divergence", "kl")
    realised = torch.where(keep, binary_divergence(logps, old_logps, divergence=divergence), zero)
    flags = {
        "clip_fraction_low": outside & ~rising & (advantages < 0),
        "clip_fraction_high": outside & rising & (advantages > 0),
        "out_of_band_fraction_low": outside & ~rising,
        "out_of_band_fraction_high": outside & rising,
    }
    cap, floor = getattr(rule, "cap", None), getattr(rule, "floor", None)
    if cap is not None:
        flags["cap_fraction"] = keep & (log_ratio > math.log(cap))
    if floor is not None:
        flags["floor_fraction"] = keep & (log_ratio < (math.log(floor) if floor > 0 else -math.inf))
    sums = {name: flag.sum().to(zero.dtype) for name, flag in flags.items()}
    sums["clip_fraction"] = sums["clip_fraction_low"] + sums["clip_fraction_high"]
    sums["out_of_band_fraction"] = sums["out_of_band_fraction_low"] + sums["out_of_band_fraction_high"]
    sums["divergence"] = realised.sum()
    sums["ratio"] = log_ratio.exp().masked_fill(~keep, 0).sum()
    if entropy is not None:
        sums["entropy"] = as_work_dtype(entropy).masked_fill(~keep, 0).sum()
    infinity = torch.full_like(zero, -math.inf)
    maxima = {
        "log_ratio_max": torch.where(keep, log_ratio, infinity).amax(),
        "negative_log_ratio_max": torch.where(keep, -log_ratio, infinity).amax(),
        "divergence_max": torch.where(keep, realised, infinity).amax(),
    }
    return ClipStatistics(keep.sum(), sums, maxima)
