"""BandPO in verl: the registered policy loss `bandpo` and the configuration that carries its clip rule.

verl finds this module through the entry point `verl.plugins`, and imports it wherever a configuration names
`BandPolicyLossConfig` as the target of `actor_rollout_ref.actor.policy_loss` (docs/integrations/verl.md).
"""

from __future__ import annotations

import copy
import functools
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from torch import Tensor
from verl.trainer.ppo.core_algos import get_policy_loss_fn, register_policy_loss
from verl.utils import config as verl_config
from verl.workers.config import PolicyLossConfig

from bandpo.core.checks import as_work_dtype
from bandpo.core.frameworks import clip_range
from bandpo.core.rollouts import RESHAPING, check_sampling, outlook
from bandpo.core.tokens import Tokens
from bandpo.integrations.common import clip_metrics, read_rule

LOSS_MODE = "bandpo"
METRIC_PREFIX = "actor/band/"


@dataclass
class BandPolicyLossConfig(PolicyLossConfig):
    """verl's PolicyLossConfig plus the clip rule.

    verl builds it on the driver before any worker starts, and again in every worker, so a wrong option ends
    the run immediately.

    Args:
        loss_mode: "bandpo"; verl's own configuration says "vanilla", so it must be set.
        rule: `name` of a rule, or module:Class, and that rule's options, e.g. {name: band, radius: 0.05}.

    Raises:
        ValueError: For another loss mode, which would ignore the rule, or a rule or option that does not exist.
    """

    loss_mode: str = LOSS_MODE
    rule: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.loss_mode != LOSS_MODE:
            raise ValueError(
                f"policy_loss.loss_mode is {self.loss_mode!r}, so the clip rule of {type(self).__name__} would be "
                f"ignored; set policy_loss.loss_mode={LOSS_MODE}"
            )
        read_rule(self.rule, "verl")


class Outlook(NamedTuple):
    """What to know before training: the updates per rollout as a sentence, whether a rule can act on them, and what
    truncates sampling, if anything does."""

    updates: str
    can_act: bool
    advice: str | None


def outlook_of(config: Any) -> Outlook:
    """What verl's full configuration implies for the updates per rollout and for sampling.

    Raises:
        ValueError: If the trust region is around the rollout engine's log-probs and sampling is truncated.
    """
    actor, rollout = config.actor_rollout_ref.actor, config.actor_rollout_ref.rollout
    updates = config.data.train_batch_size / actor.ppo_mini_batch_size * actor.ppo_epochs
    bypass = bool((config.algorithm.get("rollout_correction") or {}).get("bypass_mode", False))
    sampling = {name: rollout.get(name) for name in RESHAPING if name != "temperature"}
    advice = check_sampling(sampling, by_sampler=bypass)
    return Outlook(outlook(updates, updates > 1, by_sampler=bypass), bypass or updates > 1, advice)


def _say_on_the_driver() -> None:
    """Make verl's validation, which runs on the driver before Ray starts, print what a rule can do in this run."""
    validate = verl_config.validate_config
    if hasattr(validate, "__wrapped__"):
        return

    @functools.wraps(validate)
    def validate_config(config: Any, *args: Any, **kwargs: Any) -> Any:
        result = validate(config, *args, **kwargs)
        if config.actor_rollout_ref.actor.policy_loss.get("loss_mode") == LOSS_MODE:
            updates, _, advice = outlook_of(config)
            for sentence in filter(None, (updates, advice)):
                print(f"bandpo: {sentence}", flush=True)
        return result

    verl_config.validate_config = validate_config


_say_on_the_driver()


@register_policy_loss(LOSS_MODE)  # type: ignore[untyped-decorator, unused-ignore]
def compute_policy_loss_bandpo(
    old_log_prob: Tensor,
    log_prob: Tensor,
    advantages: Tensor,
    response_mask: Tensor,
    loss_agg_mode: str = "token-mean",
    config: Any = None,
    rollout_is_weights: Tensor | None = None,
) -> tuple[Tensor, dict[str, Any]]:
    """verl's vanilla (PPO) loss with each token's clip range set by the rule.

    Everything but the clip range is verl's: dual clip (`clip_ratio_c`), rollout importance weights, aggregation
    over the global batch, metrics. The trust region is centered on `old_log_prob`: the trainer's recomputed policy,
    or the rollout's with algorithm.rollout_correction.bypass_mode=True. Source: arXiv 2603.04918.

    Args:
        old_log_prob: Log-probs under the policy that the trust region is centered on, shape (B, T).
        log_prob: Log-probs under the policy being trained, shape (B, T).
        advantages: Shape (B, T).
        response_mask: 1 for tokens that count, shape (B, T).
        loss_agg_mode: verl's aggregation mode.
        config: verl's ActorConfig; `policy_loss.rule` is the rule, Band with its defaults if absent.
        rollout_is_weights: Importance weights of verl's rollout correction, shape (B, T).

    Returns:
        Loss, and verl's metrics with those of docs/metrics.md under actor/band/.
    """
    if config is None:
        raise ValueError("config is None; allowed: verl's ActorConfig")
    rule = read_rule(config.policy_loss.get("rule"), "verl")
    # The rule sees the original dtypes of the log-probs, which determine what a log-prob of 0 means.
    tokens, given = Tokens(old_log_prob, advantages, response_mask), log_prob
    low, high = clip_range(rule, tokens, given)
    old_log_prob, log_prob = as_work_dtype(old_log_prob), as_work_dtype(log_prob)
    # A shallow copy: verl fills `global_batch_info`, which both share, and freezes the other fields.
    config = copy.copy(config)
    object.__setattr__(config, "clip_ratio_low", low)
    object.__setattr__(config, "clip_ratio_high", high)
    loss, metrics = get_policy_loss_fn("vanilla")(
        old_log_prob=old_log_prob,
        log_prob=log_prob,
        advantages=advantages,
        response_mask=response_mask,
        loss_agg_mode=loss_agg_mode,
        config=config,
        rollout_is_weights=rollout_is_weights,
    )
    return loss, metrics | clip_metrics(given, tokens, rule, METRIC_PREFIX)
