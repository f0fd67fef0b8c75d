"""TRL's GRPOTrainer with the clip interval set per token by a clip rule.

The subclass hands tensors to TRL as `epsilon_low` and `epsilon_high` while the loss is computed; every
normaliser, correction, metric and back-end stays TRL's own.
"""

from __future__ import annotations

import math
import warnings
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from trl import GRPOConfig

from bandpo.core.checks import DEFAULT_RADIUS
from bandpo.core.diagnostics import ClipStatistics, clip_statistics, finish_maxima
from bandpo.core.registry import make_rule
from bandpo.core.rules import Clip, ClipRule
from bandpo.core.tokens import Tokens
from bandpo.training.durable import DurableGRPOTrainer, TrainingDivergedError
from bandpo.training.dynamic_sampling import check_dynamic_sampling, replace_uniform_groups
from bandpo.words import nearest

CLIPPED_LOSSES = ("grpo", "bnpo", "dr_grpo", "dapo", "luspo")
ANCHORS = ("old", "sampler")


@dataclass
class BandGRPOConfig(GRPOConfig):
    """TRL's GRPOConfig plus the clip rule.

    Args:
        clip_rule: "band", "adaptive-band", "clip" (TRL's own `epsilon` and `epsilon_high`), "dcpo" or "none".
        band_radius: Radius of the trust region in the divergence's units (nats for KL), or a pair
            [lower side, upper side].
        band_divergence: Divergence by name; "kl" is KL(old || new).
        band_cap: Largest ratio allowed, or None.
        band_floor: Smallest lower bound, or None.
        anchor: Policy on which the trust region is centred: "old" (the trainer's own log-probs at the
            time of the rollout, as in the paper) or "sampler" (the log-probs reported by vLLM, as DPPO
            does).
        dynamic_sampling: In how many rounds at most the groups whose rewards are all equal are replaced by
            groups of other prompts (DAPO); 0 leaves them in.
    """

    clip_rule: str = field(default="band", metadata={"help": "band, adaptive-band, clip, dcpo or none"})
    band_radius: float | list[float] = field(
        default=DEFAULT_RADIUS, metadata={"help": "radius of the trust region, or [lower side, upper side]"}
    )
    band_divergence: str = field(default="kl", metadata={"help": "divergence that measures the radius"})
    band_cap: float | None = field(default=None, metadata={"help": "largest ratio allowed"})
    band_floor: float | None = field(default=None, metadata={"help": "smallest lower bound"})
    anchor: str = field(default="old", metadata={"help": "old (recomputed) or sampler (vLLM's log-probs)"})
    dynamic_sampling: int = field(default=0, metadata={"help": "rounds at most to replace groups of equal reward"})

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.anchor not in ANCHORS:
            raise ValueError(
                f"unknown anchor {self.anchor!r}{nearest(self.anchor, ANCHORS)}; known: {', '.join(ANCHORS)}"
            )
        self.make_clip_rule()

    def make_clip_rule(self) -> ClipRule:
        """The rule that these settings describe.

        Raises:
            ValueError: For a setting that the chosen rule would silently ignore, or a bad value.
        """
        high = self.epsilon if self.epsilon_high is None else self.epsilon_high
        defaults = type(self).__dataclass_fields__
        if self.clip_rule == "clip":
            ignored = [n for n in defaults if n.startswith("band_") and getattr(self, n) != defaults[n].default]
            _refuse_ignored(self, ignored)
            return Clip(self.epsilon, high)
        _refuse_ignored(self, [n for n in ("epsilon", "epsilon_high") if getattr(self, n) != defaults[n].default])
        if self.clip_rule in ("band", "adaptive-band"):
            return make_rule(
                self.clip_rule,
                radius=self.band_radius,
                divergence=self.band_divergence,
                cap=self.band_cap,
                floor=self.band_floor,
            )
        return make_rule(self.clip_rule)


def _refuse_ignored(config: BandGRPOConfig, names: list[str]) -> None:
    if names:
        values = ", ".join(f"{name}={getattr(config, name)!r}" for name in names)
        raise ValueError(f"{values} would be ignored by clip_rule={config.clip_rule!r}; remove it or change the rule")


class BandGRPOTrainer(DurableGRPOTrainer):
    """GRPOTrainer whose clip interval depends on each token's old probability (arXiv 2603.04918).

    Args:
        rule: Any clip rule; if None, the one that `args` describes. All other arguments are
            GRPOTrainer's; `args` is a BandGRPOConfig.

    Raises:
        ValueError: For settings under which TRL would not use the bounds, or use them wrongly.
    """

    _tag_names = ["trl", "grpo", "bandpo"]  # noqa: RUF012 (a list in TRL)
    args: BandGRPOConfig

    def __init__(self, *args: Any, rule: ClipRule | None = None, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        if not isinstance(self.args, BandGRPOConfig):
            raise ValueError(f"args is a {type(self.args).__name__}, allowed is a BandGRPOConfig")
        self.rule = self.args.make_clip_rule() if rule is None else rule
        _check_settings(self)

    def _generate_and_score_completions(self, inputs: list[dict[str, Any]]) -> dict[str, Any]:
        batch = super()._generate_and_score_completions(inputs)
        if self.args.dynamic_sampling and self.model.training:  # type: ignore[union-attr]
            generate = super()._generate_and_score_completions
            batch = replace_uniform_groups(self, batch, generate, self.args.dynamic_sampling)
        return batch

    def _compute_loss(self, model: Any, inputs: dict[str, Any]) -> Tensor:
        if self.args.anchor == "sampler":
            inputs = {**inputs, "old_per_token_logps": _sampler_logps(inputs)}
        old_logps = inputs.get("old_per_token_logps")
        constant = self.epsilon_low, self.epsilon_high
        if old_logps is not None:
            bounds = self.rule.bounds(old_logps)
            # TRL clamps to [1 - epsilon_low, 1 + epsilon_high], which is as well defined for tensors.
            self.epsilon_low, self.epsilon_high = 1 - bounds.lower, bounds.upper - 1  # type: ignore[assignment]
        try:
            loss = super()._compute_loss(model, inputs)
        finally:
            self.epsilon_low, self.epsilon_high = constant
        self._log_clip_statistics(inputs, old_logps)
        return loss

    @torch.no_grad()
    def _log_clip_statistics(self, inputs: dict[str, Any], old_logps: Tensor | None) -> None:
        assert self.last_forward is not None
        logps = self.last_forward[0]
        mask = inputs["completion_mask"]
        if "tool_mask" in inputs:
            mask = mask * inputs["tool_mask"]
        advantages = inputs["advantages"]
        statistics = clip_statistics(
            logps,
            Tokens(
                logps if old_logps is None else old_logps,
                advantages.unsqueeze(1) if advantages.dim() == 1 else advantages,
                mask,
            ),
            self.rule,
        )
        metrics = self._reduce(statistics)
        if math.isnan(metrics["divergence"]):
            raise TrainingDivergedError(
                f"NaN log-probabilities at step {self.state.global_step}: the model or its last update "
                f"diverged.{self._last_good()}"
            )
        mode = "train" if self.model.training else "eval"  # type: ignore[union-attr]
        for name, value in metrics.items():
            self._metrics[mode][f"band/{name}"].append(value)

    def _reduce(self, statistics: ClipStatistics) -> dict[str, float]:
        """Means and extremes over all processes, with one read-back each."""
        names = list(statistics.sums)
        packed = torch.stack([statistics.tokens.to(statistics.sums[names[0]].dtype), *statistics.sums.values()])
        tokens, *sums = self.accelerator.reduce(packed, reduction="sum").tolist()
        extremes = self.accelerator.gather(torch.stack(list(statistics.maxima.values())).unsqueeze(0)).amax(0)
        maxima = finish_maxima(dict(zip(statistics.maxima, extremes.unbind(), strict=True)))
        values = torch.stack(list(maxima.values())).tolist()
        return {
            **{name: value / max(tokens, 1) for name, value in zip(names, sums, strict=True)},
            **dict(zip(maxima, values, strict=True)),
        }


def _sampler_logps(inputs: dict[str, Any]) -> Tensor:
    sampling = inputs["sampling_per_token_logps"]
    old = inputs.get("old_per_token_logps")
    # vLLM reports NaN where it has no log-prob; the trainer's own stands in where there is one.
    return sampling if old is None else torch.where(torch.isnan(sampling), old, sampling)


def _check_settings(trainer: BandGRPOTrainer) -> None:
    args = trainer.args
    check_dynamic_sampling(trainer)
    if args.loss_type not in CLIPPED_LOSSES:
        raise ValueError(
            f"loss_type {args.loss_type!r} does not clip the ratio to an interval, so a clip rule would have no "
            f"effect; allowed: {', '.join(CLIPPED_LOSSES)}"
        )
    if args.importance_sampling_level != "token":
        raise ValueError(
            f"importance_sampling_level is {args.importance_sampling_level!r}; bounds are per token, so only "
            "'token' is allowed"
        )
    if args.delta is not None:
        raise ValueError(
            f"delta is {args.delta!r}: it caps the ratio of both advantage signs before TRL's clip metrics; "
            "use band_cap instead"
        )
    if getattr(trainer, "liger_loss", None) is not None:
        raise ValueError("Liger's fused GRPO loss takes scalar bounds only; set use_liger_kernel=False")
    if args.anchor == "sampler":
        if not args.use_vllm:
            raise ValueError(
                "anchor='sampler' needs use_vllm=True: transformers' generation samples from the old policy "
                "itself, so the two anchors are the same"
            )
        if args.vllm_importance_sampling_correction:
            raise ValueError(
                "anchor='sampler' already measures the ratio against the sampler; set "
                "vllm_importance_sampling_correction=False, or the correction would count twice"
            )
    if not can_clip(args):
        warnings.warn(
            f"one update follows each rollout (gradient_accumulation_steps={args.gradient_accumulation_steps} "
            f"is a multiple of steps_per_generation={args.steps_per_generation} x "
            f"num_iterations={args.num_iterations}): every ratio is 1 and no clip rule can act. Raise "
            "steps_per_generation or num_iterations.",
            stacklevel=3,
        )


def micro_batches_per_rollout(args: GRPOConfig) -> int:
    """Forward-backward passes between one generation and the next."""
    return (args.steps_per_generation or 1) * args.num_iterations


def can_clip(args: GRPOConfig) -> bool:
    """Whether this batch layout lets a ratio leave 1 at all."""
    updates_apart = args.gradient_accumulation_steps % micro_batches_per_rollout(args) != 0
    corrected = args.use_vllm and args.vllm_importance_sampling_correction
    return updates_apart or corrected or getattr(args, "anchor", "old") == "sampler"
