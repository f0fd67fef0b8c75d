"""The policy loss: a clipped surrogate under any clip rule."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

import torch
from torch import Tensor

from bandpo.diagnostics import clip_statistics
from bandpo.divergences import as_work_dtype
from bandpo.rules import Band, ClipRule, nearest

Aggregation = Literal["token-mean", "seq-mean-token-sum", "seq-mean-token-mean", "seq-mean-token-sum-norm"]
AGGREGATIONS: tuple[str, ...] = get_args(Aggregation)


@dataclass(frozen=True)
class PolicyLoss:
    """Result of `policy_loss`.

    Attributes:
        loss: Scalar to call backward() on.
        metrics: Name -> detached scalar tensor on the same device (docs/metrics.md explains each).
    """

    loss: Tensor
    metrics: dict[str, Tensor]


def policy_loss(
    logps: Tensor,
    old_logps: Tensor,
    advantages: Tensor,
    mask: Tensor,
    rule: ClipRule | None = None,
    aggregation: str = "token-mean",
    *,
    dual_clip: float | None = None,
    weights: Tensor | None = None,
    entropy: Tensor | None = None,
    horizon: int | None = None,
) -> PolicyLoss:
    """Clipped policy-gradient surrogate whose trust region is set by a clip rule.

    Per token, with r = exp(logps - old_logps) and the rule's bounds [lower, upper],

        loss = -min(r A, clip(r, lower, upper) A)

    (arXiv 1707.06347, eq. 7, with the bounds of arXiv 2603.04918). The gradient vanishes exactly where the
    ratio has left the bounds in the direction that the advantage pushes it, so it is decided by the rule's
    membership test; bounds only supply the value of those tokens, which is constant.

    Args:
        logps: Log-probs under the policy being trained, shape (B, T); the only input that is differentiated.
        old_logps: Log-probs under the policy that the trust region is centred on, shape (B, T).
        advantages: Shape (B, T), (B, 1) or (B,) (one advantage a sequence).
        mask: 1 (or True) for tokens that count, shape (B, T). Masked tokens may hold anything, NaN included.
        rule: Clip rule; `Band()` if None.
        aggregation: "token-mean", "seq-mean-token-sum", "seq-mean-token-mean" or "seq-mean-token-sum-norm",
            as in verl; sequences without a token do not count.
        dual_clip: If given (> 1), tokens with A < 0 lose no more than -A dual_clip (arXiv 1912.09729).
        weights: Importance weights that multiply each token's loss, shape (B, T), e.g. rollout correction.
        entropy: Policy entropy at each position in nats, shape (B, T); only reported.
        horizon: Divisor of "seq-mean-token-sum-norm"; T if None.

    Returns:
        PolicyLoss: Loss in float32 (float64 for float64 log-probs), and metrics.

    Raises:
        ValueError: If shapes do not broadcast to that of `logps`, an option is unknown, log-probs are
            positive, or (on the CPU, where looking costs no synchronisation) an unmasked value is NaN.
    """
    rule = Band() if rule is None else rule
    if dual_clip is not None and not dual_clip > 1:
        raise ValueError(f"dual_clip is {dual_clip!r}, allowed is None or a number > 1")
    if advantages.dim() == 1 and logps.dim() == 2:
        advantages = advantages.unsqueeze(1)
    given = {"old_logps": old_logps, "advantages": advantages, "mask": mask}
    given |= {name: t for name, t in (("weights", weights), ("entropy", entropy)) if t is not None}
    for name, tensor in given.items():
        _check_shape(name, tensor, logps)
    keep = mask.bool().expand_as(logps)
    work = as_work_dtype(logps)
    zero = torch.zeros((), dtype=work.dtype, device=work.device)
    work = torch.where(keep, work, zero)
    old = torch.where(keep, as_work_dtype(old_logps.detach()), zero).to(work.dtype)
    advantages = torch.where(keep, advantages.detach().to(work.dtype), zero)
    check_not_nan(logps=work.detach(), old_logps=old, advantages=advantages)

    with torch.no_grad():
        log_ratio = work - old
        up = advantages > 0
        outward = torch.where(up, log_ratio > 0, log_ratio < 0) & (advantages != 0)
        clipped = outward & ~rule.inside(work, old)
        bounds = rule.bounds(old)
        held = torch.where(up, bounds.upper, bounds.lower)
        dual = torch.zeros_like(clipped)
        if dual_clip is not None:
            dual = (advantages < 0) & (log_ratio.exp() > dual_clip)
            held = torch.where(dual, dual_clip, held)
        constant = clipped | dual
        held = torch.where(constant, held, zero)
    # A token held at a bound leaves the graph before exp(): an overflowing ratio times zero would be NaN.
    moving = keep & ~constant & (advantages != 0)
    ratio = torch.where(moving, work - old, zero).exp()
    token_loss = -advantages * torch.where(moving, ratio, held)
    if weights is not None:
        token_loss = token_loss * torch.where(keep, weights.detach().to(work.dtype), zero)
    loss = aggregate(token_loss, keep, aggregation, horizon=horizon)

    statistics = clip_statistics(work, old, advantages, keep, rule, entropy=entropy)
    metrics = statistics.metrics()
    if dual_clip is not None:
        metrics["dual_clip_fraction"] = dual.sum() / statistics.tokens.clamp(min=1)
    return PolicyLoss(loss, metrics)


def aggregate(values: Tensor, mask: Tensor, aggregation: str, horizon: int | None = None) -> Tensor:
    """Reduce per-token values (B, T) to a scalar, in the modes (and under the names) of verl.

    token-mean: mean over all tokens. seq-mean-token-sum: sum over each sequence, mean over sequences.
    seq-mean-token-mean: mean over each sequence, mean over sequences. seq-mean-token-sum-norm:
    seq-mean-token-sum divided by `horizon` (T if None). Sequences without a token do not count.

    Raises:
        ValueError: For an unknown mode, or a horizon that is not positive.
    """
    if horizon is not None and not horizon > 0:
        raise ValueError(f"horizon is {horizon!r}, allowed is None or a number > 0")
    counts = mask.to(values.dtype)
    values = torch.where(mask.bool(), values, torch.zeros((), dtype=values.dtype, device=values.device))
    if aggregation == "token-mean":
        return values.sum() / counts.sum().clamp(min=1)
    per_sequence = counts.sum(-1)
    sequences = (per_sequence > 0).to(values.dtype).sum().clamp(min=1)
    sums = values.sum(-1)
    if aggregation == "seq-mean-token-sum":
        return sums.sum() / sequences
    if aggregation == "seq-mean-token-mean":
        return (sums / per_sequence.clamp(min=1)).sum() / sequences
    if aggregation == "seq-mean-token-sum-norm":
        return sums.sum() / sequences / (values.shape[-1] if horizon is None else horizon)
    raise ValueError(
        f"unknown aggregation {aggregation!r}{nearest(aggregation, AGGREGATIONS)}; known: {', '.join(AGGREGATIONS)}"
    )


def check_not_nan(**tensors: Tensor) -> None:
    """Raise ValueError naming the tensor that holds a NaN; only where looking costs no device sync."""
    if torch.compiler.is_compiling():
        return
    for name, tensor in tensors.items():
        if tensor.device.type == "cpu" and bool(torch.isnan(tensor).any()):
            count = int(torch.isnan(tensor).sum())
            raise ValueError(f"{name} holds {count} NaN among its unmasked values; allowed are numbers")


def _check_shape(name: str, tensor: Tensor, logps: Tensor) -> None:
    try:
        fits = torch.broadcast_shapes(tensor.shape, logps.shape) == logps.shape
    except RuntimeError:
        fits = False
    if not fits:
        raise ValueError(
            f"{name} has shape {tuple(tensor.shape)}, which does not broadcast to that of logps, {tuple(logps.shape)}"
        )
