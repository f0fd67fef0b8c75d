"""BandPO in slime: a custom loss, slime's own with a clip range per token (docs/integrations/slime.md)."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from bandpo.core.frameworks import clip_range
from bandpo.core.tokens import Tokens
from bandpo.integrations.common import read_rule

OTHER_LOSSES = {
    "gspo": "has one ratio per sequence",
    "cispo": "weights every token by a ratio without a gradient",
}


def band_loss_function(
    args: Any, batch: dict[str, Any], logits: Tensor, sum_of_sample_mean: Callable[[Tensor], Tensor]
) -> tuple[Tensor, dict[str, Tensor]]:
    """slime's policy loss with `eps_clip` and `eps_clip_high` set per token by the rule in `args.bandpo_rule`.

    The trust region is centered on the policy that slime measures the ratio against: the trainer's recomputed
    log-probs, or the rollout engine's with --use-rollout-logprobs. In a batch without either, slime's ratio is 1 and
    nothing is clipped.

    Args:
        args: slime's arguments; `bandpo_rule` comes from --custom-config-path.
        batch: Log-probs as a list of tensors, one per response, packed in that order.
        logits, sum_of_sample_mean: Passed through.

    Raises:
        ValueError: For a rule or option that does not exist, or an estimator whose loss clips no ratio per token.
    """
    from slime.backends.megatron_utils.loss import policy_loss_function

    if args.advantage_estimator in OTHER_LOSSES:
        raise ValueError(
            f"advantage_estimator is {args.advantage_estimator!r}, which {OTHER_LOSSES[args.advantage_estimator]}; a "
            "clip rule needs an estimator with slime's clipped loss, such as 'grpo'"
        )
    rule = read_rule(getattr(args, "bandpo_rule", None), "slime")
    responses = batch.get("rollout_log_probs" if args.use_rollout_logprobs else "log_probs")
    if not responses:
        return policy_loss_function(args, batch, logits, sum_of_sample_mean)
    positions = torch.cat([torch.arange(len(one), device=one.device) for one in responses])
    args = copy.copy(args)
    args.eps_clip, args.eps_clip_high = clip_range(rule, Tokens(torch.cat(responses), positions=positions))
    return policy_loss_function(args, batch, logits, sum_of_sample_mean)
