"""The policy loss: a clipped surrogate under any clip rule."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, Literal, NamedTuple, get_args

import torch
from torch import Tensor

from bandpo.core import backends
from bandpo.core.checks import POSITIVE_TOLERANCE, as_work_dtype, can_look, check_broadcast, check_logps
from bandpo.core.diagnostics import clip_statistics
from bandpo.core.rules import Band, ClipRule
from bandpo.core.tokens import Tokens
from bandpo.words import nearest

Aggregation = Literal["token-mean", "seq-mean-token-sum", "seq-mean-token-mean", "seq-mean-token-sum-norm"]
AGGREGATIONS: tuple[str, ...] = get_args(Aggregation)


@dataclass(frozen=True)
class PolicyLoss:
    """Result of `policy_loss`.

    Attributes:
        loss: Scalar to call backward() on.
        metrics: Name -> detached scalar tensor on the same device (docs/metrics.md explains each).

    Examples:
        >>> policy_loss(torch.zeros(1, 2), torch.zeros(1, 2), torch.ones(1), torch.ones(1, 2)).loss
        tensor(-1.)
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
    old_entropy: Tensor | None = None,
    sampling_logps: Tensor | None = None,
    positions: Tensor | None = None,
    groups: Tensor | None = None,
    disagreement: Tensor | None = None,
    backend: str | None = None,
) -> PolicyLoss:
    """Clipped policy-gradient surrogate whose trust region is set by a clip rule.

    Per token, with r = exp(logps - old_logps) and the rule's bounds [lower, upper],

        loss = -min(r A, clip(r, lower, upper) A)

    (arXiv 1707.06347, eq. 7, with the bounds of arXiv 2603.04918). The gradient is 0 exactly where the ratio has left
    the bounds and the advantage pushes it further: the rule's membership test decides, bounds give the value.

    Args:
        logps: Log-probs under the policy being trained, shape (B, T); the only input that is differentiated.
        old_logps: Log-probs under the policy that the trust region is centered on, shape (B, T).
        advantages: Shape (B, T), (B, 1) or (B,) (one advantage per sequence).
        mask: 1 (or True) for tokens that count, shape (B, T). Masked tokens may hold anything, NaN included.
        rule: Clip rule; `Band()` if None.
        aggregation: "token-mean", "seq-mean-token-sum", "seq-mean-token-mean", "seq-mean-token-sum-norm".
        dual_clip: If given (> 1), the loss of a token with A < 0 is at most -A dual_clip (arXiv 1912.09729).
        weights: Importance weights that multiply each token's loss, shape (B, T), e.g. rollout correction.
        entropy: Policy entropy at each position in nats, shape (B, T); only reported.
        horizon: Divisor of "seq-mean-token-sum-norm"; T if None.
        old_entropy, sampling_logps, positions, groups, disagreement: What a rule may need (`Tokens`), as there.
        backend: "eager", "compile" or "triton"; None: BANDPO_BACKEND, else by size. The results are the same.

    Returns:
        PolicyLoss: Loss in float32 (float64 for float64 log-probs), and metrics.

    Raises:
        ValueError: If shapes do not broadcast to that of `logps`, an option is unknown, log-probs are positive,
            or, on the CPU, an unmasked value is NaN or both log-probs of an unmasked token are -inf.
        RuntimeError: If the requested backend cannot run.

    Examples:
        >>> logps, old_logps = torch.tensor([[0.5, 0.012]]).log(), torch.tensor([[0.2, 0.01]]).log()
        >>> policy_loss(logps, old_logps, torch.ones(1), torch.ones(1, 2), rule=Band(0.05)).metrics["clip_fraction"]
        tensor(0.5000)
    """
    rule = Band() if rule is None else rule
    if dual_clip is not None and not dual_clip > 1:
        raise ValueError(f"dual_clip is {dual_clip!r}; allowed: None or a number > 1")
    _check_aggregation(aggregation, horizon)
    if advantages.dim() == 1 and logps.dim() == 2:
        advantages = advantages.unsqueeze(1)
    given = {
        "old_logps": old_logps, "advantages": advantages, "mask": mask, "old_entropy": old_entropy,
        "sampling_logps": sampling_logps, "positions": positions, "groups": groups, "disagreement": disagreement,
    }  # fmt: skip
    for name, tensor in (given | {"weights": weights, "entropy": entropy}).items():
        if tensor is not None:
            check_broadcast(name, tensor, "logps", logps)
    for tensor in (logps, old_logps):
        if not tensor.dtype.is_floating_point:
            as_work_dtype(tensor)  # raises the error that names what is allowed
    context = Tokens(**{name: x if x is None else x.detach() for name, x in given.items()})  # type: ignore[arg-type]
    tokens = Tokens.of(context, rule.needs, type(rule).__name__)

    chosen, forced = backends.pick_backend(backend, logps, rule)
    options = (aggregation, dual_clip, horizon)
    if chosen == "triton":
        if can_look(logps):
            _check_values(logps, tokens)
        return PolicyLoss(*backends.triton_kernels().fused_loss(logps, tokens, weights, entropy, rule, *options))
    # If counting is free, only the clipped tokens are solved, typically a few in ten thousand.
    sparse = can_look(logps)
    found = None
    if chosen == "compile":
        found = _compiled(logps, tokens, weights, entropy, rule.traced(logps), *options, sparse, forced=forced)
    if found is None:
        found = _surrogate(logps, tokens, weights, entropy, rule, *options, sparse)
    loss = found.loss + _held_loss(found, logps, tokens, weights, rule) if sparse else found.loss
    return PolicyLoss(loss, found.metrics)


class _Surrogate(NamedTuple):
    loss: Tensor
    metrics: dict[str, Tensor]
    bad: Tensor  # whether a value is not allowed
    old_logps: Tensor  # clean, (B, T)
    token_weights: Tensor  # weight of each token's loss, broadcasts to (B, T)
    unsolved: Tensor  # clipped tokens whose constant value is not yet in the loss, (B, T)


def _compiled(logps: Tensor, tokens: Tokens, *arguments: Any, forced: bool) -> _Surrogate | None:
    """The loss through torch.compile; None if compiling fails and the backend was not forced."""
    try:
        # One graph per rule, aggregation and set of options, whose numbers except radii are constants in it.
        with torch._dynamo.config.patch(recompile_limit=256, specialize_float=True):
            found = _Surrogate(*backends.compiled(_surrogate)(logps, tokens, *arguments))
    except Exception as error:
        if forced:
            raise
        backends.note_compile_failure(error)
        return None
    if can_look(logps) and bool(found.bad):
        _check_values(logps, tokens)
    return found


def _surrogate(
    logps: Tensor,
    given: Tokens,
    weights: Tensor | None,
    entropy: Tensor | None,
    rule: ClipRule,
    aggregation: str,
    dual_clip: float | None,
    horizon: int | None,
    sparse: bool,
) -> _Surrogate:
    """The PyTorch operations behind "eager" and "compile"."""
    assert given.mask is not None
    keep = given.mask.bool().expand_as(logps)
    work = as_work_dtype(logps)
    zero = torch.zeros((), dtype=work.dtype, device=work.device)
    work = torch.where(keep, work, zero)
    tokens = given.clean(keep)
    assert tokens.advantages is not None
    old, advantages = tokens.old_logps.to(work.dtype), tokens.advantages.to(work.dtype)
    tokens = replace(tokens, old_logps=old, advantages=advantages)
    new = work.detach()
    log_ratio = new - old  # NaN where both are -inf
    fine = (new <= POSITIVE_TOLERANCE) & (old <= POSITIVE_TOLERANCE)
    # For a compiled graph the caller checks this afterwards, if checking is free.
    bad = ~(fine & (advantages == advantages) & (log_ratio == log_ratio)).all()
    if can_look(bad) and bool(bad):
        _check_values(logps, given)

    with torch.no_grad():
        measured = rule.judge(new, tokens, (logps.dtype, given.old_logps.dtype))
        unsolved = constant = rule.clipped(measured[1], log_ratio, advantages)
        held = zero if sparse else rule.held(tokens, log_ratio > 0)
        dual = torch.zeros_like(constant)
        if dual_clip is not None:
            dual = (advantages < 0) & (log_ratio.exp() > dual_clip)
            held = torch.where(dual, dual_clip, held)
            constant, unsolved = constant | dual, unsolved & ~dual
        held = torch.where(constant, held, zero)
    # A token held at a bound leaves the graph before exp(): an overflowing ratio times zero would be NaN.
    moving = keep & ~constant & (advantages != 0)
    ratio = torch.where(moving, work - old, zero).exp()
    token_loss = -advantages * torch.where(moving, ratio, held)
    if weights is not None:
        token_loss = token_loss * torch.where(keep, weights.detach().to(work.dtype), zero)
    counts = token_weights(keep, aggregation, horizon, work.dtype)

    statistics = clip_statistics(new, tokens, rule, entropy=entropy, measured=measured)
    metrics = statistics.metrics()
    if dual_clip is not None:
        metrics["dual_clip_fraction"] = dual.sum() / statistics.tokens.clamp(min=1)
    return _Surrogate((token_loss * counts).sum(), metrics, bad, old, counts, unsolved)


@torch.no_grad()
def _held_loss(found: _Surrogate, logps: Tensor, tokens: Tokens, weights: Tensor | None, rule: ClipRule) -> Tensor:
    """The loss of the clipped tokens, held at the bounds that they have crossed."""
    where = found.unsolved.nonzero(as_tuple=True)
    old = found.old_logps
    if rule.needs:
        assert tokens.mask is not None
        tokens = tokens.clean(tokens.mask.bool().expand_as(logps))
    held = rule.held(replace(tokens, old_logps=old), logps.detach()[where].to(old.dtype) > old[where], where)
    for factor in (-tokens.advantages, found.token_weights, weights):  # type: ignore[operator]
        if factor is not None:
            held = held * factor.detach().expand(old.shape)[where].to(old.dtype)
    return held.sum()


def _check_values(logps: Tensor, tokens: Tokens) -> None:
    """Raise ValueError naming the tensor, if an unmasked value is not allowed; reads the values."""
    assert tokens.mask is not None
    assert tokens.advantages is not None
    keep = tokens.mask.bool().expand_as(logps)
    dtype = as_work_dtype(logps.detach()).dtype
    named = {"logps": logps, "old_logps": tokens.old_logps, "advantages": tokens.advantages}
    kept = {name: torch.where(keep, tensor.detach().to(dtype), 0.0) for name, tensor in named.items()}
    for name, tensor in kept.items():
        if count := int(torch.isnan(tensor).sum()):
            raise ValueError(f"{name} holds {count} NaN among its unmasked values; allowed: numbers")
    for name in ("logps", "old_logps"):
        check_logps(kept[name], name)
    if count := int(torch.isnan(kept["logps"] - kept["old_logps"]).sum()):
        raise ValueError(
            f"logps and old_logps are both -inf at {count} unmasked tokens, which have no ratio; allowed: -inf in "
            "only one of them, or a mask of 0"
        )


def _check_aggregation(aggregation: str, horizon: int | None) -> None:
    if horizon is not None and not horizon > 0:
        raise ValueError(f"horizon is {horizon!r}; allowed: None or a number > 0")
    if aggregation not in AGGREGATIONS:
        raise ValueError(
            f"unknown aggregation {aggregation!r}{nearest(aggregation, AGGREGATIONS)}; "
            f"known: {', '.join(AGGREGATIONS)}"
        )


def token_weights(mask: Tensor, aggregation: str, horizon: int | None, dtype: torch.dtype) -> Tensor:
    """Weight of each token in the mean, in verl's modes (and under verl's names); broadcasts to (B, T).

    token-mean: mean over all tokens. seq-mean-token-sum: sum over each sequence, mean over sequences.
    seq-mean-token-mean: mean over each sequence, mean over sequences. seq-mean-token-sum-norm:
    seq-mean-token-sum divided by `horizon` (T if None). Sequences without a token do not count.
    """
    _check_aggregation(aggregation, horizon)
    per_sequence = mask.to(dtype).sum(-1, keepdim=True)
    if aggregation == "token-mean":
        return 1 / per_sequence.sum().clamp(min=1)
    sequences = (per_sequence > 0).to(dtype).sum().clamp(min=1)
    if aggregation == "seq-mean-token-mean":
        return 1 / (sequences * per_sequence.clamp(min=1))
    length = mask.shape[-1] if horizon is None else horizon
    return 1 / (sequences * (length if aggregation == "seq-mean-token-sum-norm" else 1))
