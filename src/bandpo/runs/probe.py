"""Memory and time of a run, measured: one rollout and one micro-batch at the largest shape that the run will meet."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Any

from bandpo.runs.config import RunConfig
from bandpo.runs.memory import ADAM_STATES, Memory, peak_memory, reset_peak_memory
from bandpo.runs.steps import Steps
from bandpo.training.durable import Durable


@dataclass(frozen=True)
class Seconds:
    """The first two are measured, the others derived from them.

    Attributes:
        rollout: One rollout with its old log-probs and rewards.
        micro_batch: One forward-backward pass.
        evaluation: Both evaluations on the held-out problems.
        warmup: The supervised warm-up.
        total: The whole run.
    """

    rollout: float
    micro_batch: float
    evaluation: float
    warmup: float
    total: float


@dataclass(frozen=True)
class Probed:
    """Measurements of a probe: seconds, and peak bytes at each stage.

    Attributes:
        rollout, micro_batch: Seconds of each.
        generation: Seconds of the rollout that the model spent on sampling.
        loading, rollout_peak, update_peak: Peak bytes after loading, of the rollout, of the forward-backward passes.
    """

    rollout: float
    micro_batch: float
    generation: float
    loading: int
    rollout_peak: int
    update_peak: int


def probe(trainer: Durable, rows: list[dict[str, Any]], completion_tokens: int) -> Probed:
    """One rollout of `rows`, and two micro-batches, the second on top of the first one's gradients.

    Args:
        trainer: A trainer that is not used for anything else.
        rows: Rows of the training set, one per completion.
        completion_tokens: The length to which every completion runs.
    """
    args: Any = trainer.args
    # Every completion runs to the limit and none may be masked for that, to get the largest shape.
    trainer.generation_config.min_new_tokens = completion_tokens
    trainer.mask_truncated_completions = False
    args.dynamic_sampling = 0  # it draws more rollouts, but not larger ones
    trainer.current_gradient_accumulation_steps = args.gradient_accumulation_steps
    model = trainer.model
    assert model is not None
    model.train()
    loading = peak_memory()
    reset_peak_memory()
    generate, generating = trainer._generate_single_turn, [0.0]

    def timed(*arguments: Any, **options: Any) -> Any:
        begun = time.perf_counter()
        try:
            return generate(*arguments, **options)
        finally:
            generating[0] = time.perf_counter() - begun

    trainer._generate_single_turn = timed  # type: ignore[method-assign]
    started = time.perf_counter()
    batch = trainer._prepare_inputs(rows)
    rollout = time.perf_counter() - started
    rollout_peak = peak_memory()
    for _ in range(2):
        begun = time.perf_counter()
        with trainer.compute_loss_context_manager():
            loss = trainer.compute_loss(model, batch)
        trainer.accelerator.backward(loss)
        micro_batch = time.perf_counter() - begun
        if args.gradient_accumulation_steps == 1:
            model.zero_grad()
    update_peak = peak_memory()
    model.zero_grad()
    return Probed(rollout, micro_batch, generating[0], loading, rollout_peak, update_peak)


def measured_memory(probed: Probed, trainer: Durable, estimate: Memory, libraries: int) -> Memory:
    """The probe's peak by purpose; only the optimizer's state is added by its formula.

    Args:
        estimate: Memory of the same shapes by formula, for parts that a measurement cannot separate.
        libraries: Bytes that the process held before it loaded anything; 0 on a GPU.
    """
    assert trainer.model is not None
    sizes = {p: p.numel() * p.element_size() for p in trainer.model.parameters()}
    gradients = sum(size for p, size in sizes.items() if p.requires_grad)
    optimizer = ADAM_STATES * gradients
    reference = estimate.reference if trainer.ref_model is not None else 0
    peak = max(probed.loading, max(probed.rollout_peak, probed.update_peak) + optimizer)
    weights = sum(sizes.values())
    known = libraries + weights + reference + gradients + optimizer + estimate.logits
    return Memory(
        libraries=libraries,
        weights=weights,
        reference=reference,
        gradients=gradients,
        optimizer=optimizer,
        working=max(peak - known, 0),
        logits=estimate.logits,
        cache=estimate.cache,
        peak=peak,
        measured=True,
    )


def derived_seconds(probed: Probed, steps: Steps, config: RunConfig, heldout: int) -> Seconds:
    """The time of the whole run if every completion runs to its limit.

    Args:
        heldout: Number of held-out problems.
    """
    assert steps.updates is not None
    assert steps.rollouts is not None
    rollout, micro_batch = probed.rollout, probed.micro_batch
    graded = 0 if config.eval is None else heldout * (config.eval.samples + config.eval.greedy)
    evaluation = 2 * graded * probed.generation / steps.completions
    warmup = (
        config.warmup.steps * config.warmup.batch_size / steps.micro_batch * micro_batch if config.warmup else 0.0
    )
    training = steps.rollouts * rollout + steps.updates * steps.accumulation * micro_batch
    return Seconds(rollout, micro_batch, evaluation, warmup, training + evaluation + warmup)
