"""BandPO in ms-swift: its GRPO trainer with a clip range per token (docs/integrations/ms-swift.md)."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any

from swift.rlhf_trainers import GRPOTrainer
from swift.trainers import TrainerFactory
from swift.utils import get_logger

from bandpo.core.frameworks import clip_range
from bandpo.core.rollouts import outlook
from bandpo.core.rules import ClipRule
from bandpo.core.tokens import Tokens
from bandpo.integrations.common import read_rule

CLIPPED_LOSSES = ("grpo", "bnpo", "dr_grpo", "dapo")


class BandGRPOTrainer(GRPOTrainer):
    """swift's GRPOTrainer, whose epsilons are tensors while it computes the loss.

    Raises:
        ValueError: For settings under which swift would not use the bounds, or use them wrongly.
    """

    rule: ClipRule = read_rule(None, "ms-swift")
    epsilon_low: Any
    epsilon_high: Any

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        wrong = {
            "use_liger_kernel": self.use_liger_loss,
            "loss_type": self.loss_type not in CLIPPED_LOSSES,
            "importance_sampling_level": self.importance_sampling_level != "token",
            "delta": self.args.delta is not None,
        }
        for name in (name for name, is_wrong in wrong.items() if is_wrong):
            raise ValueError(
                f"{name} is {getattr(self.args, name)!r}; a clip rule needs use_liger_kernel=false, no delta, "
                f"importance_sampling_level=token and a loss_type of {', '.join(CLIPPED_LOSSES)}"
            )
        updates = self.num_iterations * self.args.steps_per_generation / self.args.gradient_accumulation_steps
        get_logger().info(f"bandpo: {self.rule}; {outlook(updates, updates > 1)}")

    def _compute_loss_and_metrics(self, model: Any, model_inputs: Any, grpo_batch: Any) -> Any:
        constant = self.epsilon_low, self.epsilon_high
        tokens = Tokens(grpo_batch.old_per_token_logps, mask=grpo_batch.completion_mask)
        self.epsilon_low, self.epsilon_high = clip_range(self.rule, tokens)
        try:
            return super()._compute_loss_and_metrics(model, model_inputs, grpo_batch)
        finally:
            self.epsilon_low, self.epsilon_high = constant


def install(rule: Mapping[str, Any] | None = None) -> None:
    """Make `swift rlhf --rlhf_type grpo` train with this clip rule; call it in a file given to --external_plugins.

    Args:
        rule: `name` and options of the clip rule; Band's defaults if None.

    Raises:
        ValueError: For a rule or option that does not exist, a bad value, or a release of ms-swift before 4.4.
    """
    if "grpo_batch" not in inspect.signature(GRPOTrainer._compute_loss_and_metrics).parameters:
        raise ValueError("this ms-swift passes its batch to the loss as one mapping; allowed: 4.4 or newer")
    BandGRPOTrainer.rule = read_rule(rule, "ms-swift")
    TrainerFactory.TRAINER_MAPPING["grpo"] = f"{__name__}.{BandGRPOTrainer.__name__}"
