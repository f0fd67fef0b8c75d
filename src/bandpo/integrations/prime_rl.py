"""BandPO in prime-rl: a custom loss, named by its import path (docs/integrations/prime-rl.md)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from bandpo.core.losses import policy_loss
from bandpo.integrations.common import read_rule


def band_loss(inputs: Any, rule: Mapping[str, Any] | None = None, dual_clip: float | None = None) -> Any:
    """The loss of one sequence, summed over its tokens; prime-rl divides the sum over the batch.

    The trust region is centered on the inference engine's log-probs, the only ones that prime-rl keeps.

    Args:
        inputs: prime-rl's LossInputs: trainer_logprobs, inference_logprobs, advantages, loss_mask and, if
            set, loss_weights, each of shape (T,).
        rule: `name` and options of the clip rule, as in [trainer.loss.kwargs.rule]; Band's defaults if None.
        dual_clip: As `policy_loss`.

    Returns:
        prime-rl's LossOutputs, with the metrics of docs/metrics.md under band/, except extremes, because prime-rl
        averages over sequences.

    Raises:
        ValueError: For a rule or option that does not exist, or a bad value.
    """
    from prime_rl.trainer.rl.loss import LossOutputs

    weights = getattr(inputs, "loss_weights", None)
    result = policy_loss(
        inputs.trainer_logprobs.unsqueeze(0),
        inputs.inference_logprobs.unsqueeze(0),
        inputs.advantages.unsqueeze(0),
        inputs.loss_mask.unsqueeze(0),
        rule=read_rule(rule, "prime-rl"),
        aggregation="seq-mean-token-sum",
        dual_clip=dual_clip,
        weights=None if weights is None else weights.unsqueeze(0),
        sampling_logps=inputs.inference_logprobs.unsqueeze(0),
    )
    metrics = {name: value for name, value in result.metrics.items() if not name.endswith(("_max", "_min"))}
    return LossOutputs(loss=result.loss, metrics={f"band/{name}": value for name, value in metrics.items()})
