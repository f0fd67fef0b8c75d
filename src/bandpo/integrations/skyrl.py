"""BandPO in SkyRL: a policy loss for its registry (docs/integrations/skyrl.md)."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

from torch import Tensor

from bandpo.core.frameworks import clip_range
from bandpo.core.tokens import Tokens
from bandpo.integrations.common import clip_metrics, read_rule

LOSS_TYPE = "bandpo"
ANCHORS = ("old", "rollout")


def register(rule: Mapping[str, Any] | None = None, dual_clip: bool = False, anchor: str = "old") -> None:
    """Register the policy loss `bandpo`; call it on the driver before SkyRL validates its configuration.

    SkyRL's registry carries the function, with the rule, to its workers.

    Args:
        rule: `name` and options of the clip rule; Band's defaults if None.
        dual_clip: Also clip negative advantages at `clip_ratio_c`, as SkyRL's own "dual_clip" does.
        anchor: Center of the trust region: "old" (the trainer's recomputed log-probs) or "rollout" (the
            inference engine's; off_policy_correction then has nothing left to correct).

    Raises:
        ValueError: For a rule or option that does not exist, a bad value, or another anchor.
    """
    from skyrl.backends.skyrl_train.utils.ppo_utils import PolicyLossRegistry, ppo_policy_loss

    if anchor not in ANCHORS:
        raise ValueError(f"anchor is {anchor!r}; allowed: {', '.join(ANCHORS)}")
    clip_rule = read_rule(rule, "SkyRL")

    def band_policy_loss(
        log_probs: Tensor,
        old_log_probs: Tensor,
        advantages: Tensor,
        config: Any,
        loss_mask: Tensor | None = None,
        rollout_logprobs: Tensor | None = None,
        **_: Any,
    ) -> tuple[Tensor, dict[str, float]]:
        if anchor == "rollout":
            if rollout_logprobs is None:
                raise ValueError("anchor='rollout' needs rollout_logprobs; set generator.sampling_params.logprobs=0")
            old_log_probs = rollout_logprobs
        config = copy.copy(config)
        mask = old_log_probs.new_ones(old_log_probs.shape) if loss_mask is None else loss_mask
        tokens = Tokens(old_log_probs, advantages, mask)
        config.eps_clip_low, config.eps_clip_high = clip_range(clip_rule, tokens, log_probs)
        config.policy_loss_type = "dual_clip" if dual_clip else "regular"
        loss, metrics = ppo_policy_loss(log_probs, old_log_probs, advantages, config, loss_mask, rollout_logprobs)
        return loss, metrics | clip_metrics(log_probs, tokens, clip_rule, "band/")

    PolicyLossRegistry.register(LOSS_TYPE, band_policy_loss)
