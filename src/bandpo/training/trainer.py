"""TRL's GRPOTrainer with the clip interval set per token by a clip rule.

The subclass hands tensors to TRL as `epsilon_low` and `epsilon_high` while the loss is computed; every
normalizer, correction, metric and backend stays TRL's own.
"""

from __future__ import annotations

import copy
import math
import warnings
from typing import Any

import torch
from torch import Tensor
from trl import GRPOTrainer

from bandpo.core.adaptive import group_disagreement
from bandpo.core.control import Controller, make_controlled
from bandpo.core.diagnostics import ClipStatistics, clip_statistics, finish_maxima
from bandpo.core.frameworks import clip_range
from bandpo.core.needs import check_needs
from bandpo.core.rollouts import RESHAPING, check_sampling
from bandpo.core.rules import ClipRule
from bandpo.core.tokens import Tokens
from bandpo.training.config import BandGRPOConfig, can_clip, clip_outlook, micro_batches_per_rollout
from bandpo.training.dynamic_sampling import DynamicSampling, check_dynamic_sampling

__all__ = ["BandGRPOConfig", "BandGRPOTrainer"]

CONTROL = "bandpo_control"
"""Key of the controller's state in the trainer_state.json of a checkpoint."""
CLIPPED_LOSSES = ("grpo", "bnpo", "dr_grpo", "dapo", "luspo")


class BandGRPOTrainer(GRPOTrainer):
    """GRPOTrainer whose clip interval depends on each token's old probability (arXiv 2603.04918).

    It replaces the bounds of TRL's loss and logs `band/*` (docs/metrics.md), nothing else: checkpoints, resuming and
    the rest of a run are TRL's. A controller (docs/control.md) moves the rule once per rollout; its state is in every
    checkpoint. A rule that needs the old policy's entropy, the prompt's group or the disagreement of its completions
    (those on this process) finds it in the rollout. A NaN is logged as is and does not end the run.

    Args:
        rule: Any clip rule; if None, the one that `args.rule` describes. A rule given here is logged by its repr, in
            the trainer's own copy of `args`. All other arguments are GRPOTrainer's; `args` is a BandGRPOConfig.

    Raises:
        ValueError: For settings under which TRL would not use the bounds, or use them wrongly.
    """

    _tag_names = ["trl", "grpo", "bandpo"]  # noqa: RUF012 (a list in TRL)
    args: BandGRPOConfig
    # From the latest forward pass over completions, (B, T), detached; then the batch on which the rule acts next.
    _logps: Tensor | None = None
    _entropy: Tensor | None = None
    _tokens: Tokens | None = None
    _recomputed: Tensor | None = None  # the trainer's log-probs at the time of the rollout; None: they are _logps
    _sampled_at: int | None = None  # updates made when the rollout in use was sampled
    _moved_at: int | None = None  # micro-batches seen when the controller last moved

    def __init__(self, *args: Any, rule: ClipRule | None = None, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        if not isinstance(self.args, BandGRPOConfig):
            raise ValueError(f"args is a {type(self.args).__name__}; allowed: a BandGRPOConfig")
        self.controller = None
        if rule is None:
            assert isinstance(self.args.rule, dict)
            rule, self.controller = make_controlled(**self.args.rule)
        else:
            self.args = copy.copy(self.args)
            self.args.rule = repr(rule)
        self.rule = rule
        supplier = "TRL's BandGRPOTrainer" + (" with use_vllm=True" if self.args.use_vllm else "")
        check_needs(rule.all_needs, supplier, type(rule).__name__)
        _check_settings(self)

    def _generate_and_score_completions(self, inputs: Any) -> dict[str, Any]:
        self._entropy = None
        if self.model.training:  # type: ignore[union-attr]
            self._sampled_at = self.state.global_step
        batch: dict[str, Any] = super()._generate_and_score_completions(inputs)
        if self.controller is not None and self.model.training:  # type: ignore[union-attr]
            self._move(self.controller, batch)
        if "old_entropy" in self.rule.needs and self._entropy is not None:
            batch["old_entropy"] = self._entropy
        if self.rule.needs & {"groups", "disagreement"}:
            rows = len(batch["completion_ids"])
            first = self.accelerator.process_index * rows
            index = torch.arange(first, first + rows, device=self.accelerator.device)
            assert self.num_generations is not None
            batch["groups"] = (index // self.num_generations).unsqueeze(1)
            # Here, because TRL shuffles the rollout before it is split into micro-batches.
            if "disagreement" in self.rule.needs:
                batch["disagreement"] = group_disagreement(
                    batch["completion_ids"], batch["groups"], batch["completion_mask"]
                )
        return batch

    def _move(self, controller: Controller, batch: dict[str, Any]) -> None:
        """Move the rule's number, by the entropy of this rollout or by the metrics of the updates on the last one."""
        if self._moved_at == self._step:  # dynamic sampling draws again, and the first draw is the policy's own
            return
        self._moved_at = self._step
        if controller.control.metric == "entropy":
            assert self._entropy is not None
            mask = _mask_of(batch)
            sums = torch.stack([(self._entropy * mask).sum(dtype=torch.float64), mask.sum(dtype=torch.float64)])
            total, tokens = self.accelerator.reduce(sums, reduction="sum").tolist()
            controller.add(total / tokens if tokens else math.nan)
        if advice := controller.move():
            self._tell(advice)
        self.rule = controller.rule
        figures = {"value": controller.value, "measured": controller.measured, "stuck": float(controller.stuck)}
        for name, value in figures.items():
            if value is not None:
                self._metrics["train"][f"band/control_{name}"].append(value)

    def _tell(self, advice: str) -> None:
        """Report that the target is out of reach."""
        warnings.warn(advice, stacklevel=2)

    def _saved_states(self) -> dict[str, Any]:
        """What trainer_state.json keeps by name, for callbacks and anything else with a state."""
        return self.state.stateful_callbacks  # type: ignore[return-value]

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        if self.controller is not None:
            self._saved_states()[CONTROL] = self.controller.state_dict()
        super()._save_checkpoint(model, trial)

    def _load_callback_state(self) -> None:  # called once the state of a checkpoint is read
        state = self._saved_states().pop(CONTROL, None)
        if self.controller is not None and state is not None:
            self.controller.load_state_dict(state)
            self.rule = self.controller.rule
        super()._load_callback_state()

    def _get_per_token_logps_and_entropies(self, *args: Any, **kwargs: Any) -> Any:
        # During generation the first pass is the old policy's, a later one the reference model's.
        controlled = self.controller is not None and self.controller.control.metric == "entropy"
        wanted = self._entropy is None and ("old_entropy" in self.rule.needs or controlled)
        result = super()._get_per_token_logps_and_entropies(
            *args, **(kwargs | {"compute_entropy": True} if wanted else kwargs)
        )
        self._logps = result[0].detach()
        if result[1] is not None:
            self._entropy = result[1].detach()
        if self._tokens is not None:
            # TRL clamps to [1 - epsilon_low, 1 + epsilon_high], which works for tensors too.
            low, high = clip_range(self.rule, self._tokens, self._logps)
            self.epsilon_low, self.epsilon_high = low, high  # type: ignore[assignment]
        return result

    def _compute_loss(self, model: Any, inputs: dict[str, Any]) -> Tensor:
        self._recomputed = inputs.get("old_per_token_logps")
        if self.args.anchor == "sampler":
            inputs = {**inputs, "old_per_token_logps": _sampler_logps(inputs)}
        old_logps = inputs.get("old_per_token_logps")
        constant = self.epsilon_low, self.epsilon_high
        self._tokens = None if old_logps is None else self._context(inputs, old_logps)
        try:
            loss = super()._compute_loss(model, inputs)
            assert self._logps is not None
            # Without old log-probs every ratio is 1: the policy is its own anchor.
            tokens = self._tokens or self._context({"old_entropy": self._entropy, **inputs}, self._logps)
            self._log_clip_statistics(self._logps, tokens)
        finally:
            self.epsilon_low, self.epsilon_high = constant
            self._tokens = None
        return loss

    def _context(self, inputs: dict[str, Any], old_logps: Tensor) -> Tokens:
        """A micro-batch as the rule sees it, (B, T); `old_logps` are those of the anchor policy."""
        advantages = inputs["advantages"]
        return Tokens(
            old_logps,
            advantages.unsqueeze(1) if advantages.dim() == 1 else advantages,
            _mask_of(inputs),
            old_entropy=inputs.get("old_entropy"),
            sampling_logps=inputs.get("sampling_per_token_logps"),
            groups=inputs.get("groups"),
            disagreement=inputs.get("disagreement"),
        )

    @torch.no_grad()
    def _log_clip_statistics(self, logps: Tensor, tokens: Tokens) -> dict[str, float]:
        """Log `band/*` of this micro-batch over all processes, and return it without the prefix."""
        statistics = clip_statistics(logps, tokens, self.rule)
        statistics.sums.update(_distances(logps, tokens, self._recomputed, statistics.sums["ratio"].dtype))
        if self._sampled_at == self.state.global_step:
            # No update has moved the weights since the rollout, so any distance is noise (docs/alarms.md).
            assert tokens.mask is not None
            distance = (logps - tokens.old_logps).abs().masked_fill(tokens.mask == 0, 0).sum()
            statistics.sums["first_distance"] = distance.to(statistics.sums["ratio"].dtype)
        metrics = self._reduce(statistics)
        mode = "train" if self.model.training else "eval"  # type: ignore[union-attr]
        for name, value in metrics.items():
            self._metrics[mode][f"band/{name}"].append(value)
        if self.controller is not None and mode == "train" and self.controller.control.metric in metrics:
            self.controller.add(metrics[self.controller.control.metric])
        return metrics

    def _reduce(self, statistics: ClipStatistics) -> dict[str, float]:
        """Means and extremes over all processes, with one read-back each."""
        names = list(statistics.sums)
        packed = torch.stack([statistics.tokens.to(statistics.sums[names[0]].dtype), *statistics.sums.values()])
        tokens, *sums = self.accelerator.reduce(packed, reduction="sum").tolist()
        extremes = self.accelerator.gather(torch.stack(list(statistics.maxima.values())).unsqueeze(0)).amax(0)
        maxima = finish_maxima(dict(zip(statistics.maxima, extremes.unbind(), strict=True)), tokens)
        values = torch.stack(list(maxima.values())).tolist()
        return {
            **{name: value / max(tokens, 1) for name, value in zip(names, sums, strict=True)},
            **dict(zip(maxima, values, strict=True)),
        }


def _distances(logps: Tensor, tokens: Tokens, recomputed: Tensor | None, dtype: torch.dtype) -> dict[str, Tensor]:
    """Sums of |log ratio| along the three edges between sampler, recomputed and current policy (docs/anchors.md)."""
    sampler, old = tokens.sampling_logps, logps if recomputed is None else recomputed
    if sampler is None:
        return {}
    assert tokens.mask is not None
    counts = tokens.mask != 0
    edges = {"sampler_distance": (old, sampler), "update_distance": (logps, old), "total_distance": (logps, sampler)}
    return {
        # vLLM reports NaN where it has no log-prob.
        name: (a - b).abs().nan_to_num(nan=0.0).where(counts, 0.0).sum(dtype=dtype)
        for name, (a, b) in edges.items()
    }


def _mask_of(inputs: dict[str, Any]) -> Tensor:
    """Tokens that count, (B, T)."""
    mask: Tensor = inputs["completion_mask"]
    return mask * inputs["tool_mask"] if "tool_mask" in inputs else mask


def _sampler_logps(inputs: dict[str, Any]) -> Tensor:
    sampling = inputs["sampling_per_token_logps"]
    old = inputs.get("old_per_token_logps")
    # vLLM reports NaN where it has no log-prob; the trainer's own replaces it if there is one.
    return sampling if old is None else torch.where(torch.isnan(sampling), old, sampling)


def _check_settings(trainer: BandGRPOTrainer) -> None:
    args = trainer.args
    check_dynamic_sampling(args)
    if args.dynamic_sampling and not isinstance(trainer, DynamicSampling):
        raise ValueError(
            f"dynamic_sampling={args.dynamic_sampling} needs a trainer that resamples: "
            "class MyTrainer(DynamicSampling, BandGRPOTrainer), see bandpo.training.dynamic_sampling"
        )
    if trainer.controller is not None:
        _check_control(args, trainer.controller.control.metric)
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
            f'use rule={{"cap": {args.delta!r}}} instead'
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
                "vllm_importance_sampling_correction=False, or the correction would be applied twice"
            )
    sampling = {name: getattr(args, name) for name in RESHAPING if hasattr(args, name)}
    sampling |= dict(args.generation_kwargs or {})  # type: ignore[arg-type]
    if sampling["temperature"] == args.temperature:  # of the log-probs too
        del sampling["temperature"]
    if advice := check_sampling(sampling, args.anchor == "sampler"):
        warnings.warn(advice, stacklevel=3)
    if not can_clip(args):
        warnings.warn(f"{clip_outlook(args)}. {_layout(args)}", stacklevel=3)


def _layout(args: BandGRPOConfig) -> str:
    """Why there is only one update per rollout, and what to change."""
    return (
        f"gradient_accumulation_steps={args.gradient_accumulation_steps} is a multiple of "
        f"steps_per_generation={args.steps_per_generation} x num_iterations={args.num_iterations}; raise one of "
        "these two."
    )


def _check_control(args: BandGRPOConfig, metric: str) -> None:
    """Refuse a controller whose rule cannot act, or whose entropy TRL does not compute for a rollout."""
    together = args.gradient_accumulation_steps % micro_batches_per_rollout(args) == 0
    if not can_clip(args) or (metric == "entropy" and together):
        raise ValueError(f"control of {metric!r} needs several updates per rollout: {_layout(args)}")
