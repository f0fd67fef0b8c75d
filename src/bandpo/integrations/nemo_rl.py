"""BandPO in NeMo-RL: its clipped loss with a clip range per token (docs/integrations/nemo-rl.md)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from nemo_rl.algorithms.loss import ClippedPGLossFn
from torch import Tensor

from bandpo.core.frameworks import clip_range
from bandpo.core.tokens import Tokens
from bandpo.integrations.common import read_rule


class BandPGLossFn(ClippedPGLossFn):
    """ClippedPGLossFn whose `ratio_clip_min` and `ratio_clip_max` are tensors while it computes the loss.

    Args:
        cfg: NeMo-RL's loss configuration.
        rule: `name` and options of the clip rule; Band's defaults if None. The trust region is centered on
            `prev_logprobs`, the trainer's recomputed policy.

    Raises:
        ValueError: For a rule or option that does not exist, or settings that have no per-token ratio to clip.
    """

    ratio_clip_min: Any
    ratio_clip_max: Any

    def __init__(self, cfg: Any, *args: Any, rule: Mapping[str, Any] | None = None, **kwargs: Any) -> None:
        super().__init__(cfg, *args, **kwargs)
        self.rule = read_rule(rule, "NeMo-RL")
        for name in ("disable_ppo_ratio", "sequence_level_importance_ratios", "force_on_policy_ratio", "use_cispo"):
            if getattr(self, name, False):
                raise ValueError(
                    f"loss_fn.{name} is true; a clip rule needs the ratio of each token, so set it to false"
                )

    def __call__(
        self, next_token_logprobs: Tensor, data: Any, *args: Any, **kwargs: Any
    ) -> tuple[Tensor, dict[str, Any]]:
        constant = self.ratio_clip_min, self.ratio_clip_max
        mask = data["token_mask"][:, 1:] * data["sample_mask"].unsqueeze(-1)
        tokens = Tokens(data["prev_logprobs"][:, 1:], mask=mask)
        self.ratio_clip_min, self.ratio_clip_max = clip_range(self.rule, tokens)
        try:
            return super().__call__(next_token_logprobs, data, *args, **kwargs)
        finally:
            self.ratio_clip_min, self.ratio_clip_max = constant
