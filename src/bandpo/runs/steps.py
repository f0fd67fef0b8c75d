"""The batch arithmetic of a run: how many prompts, updates and rollouts it has."""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import islice
from typing import Any

from trl import GRPOConfig


@dataclass(frozen=True)
class Steps:
    """The counts of a run.

    Attributes:
        prompts, completions: Per rollout, over all processes.
        micro_batch: Completions per forward-backward pass, on each process.
        micro_batches: Forward-backward passes per rollout, on each process.
        accumulation: Micro-batches per update.
        updates_per_rollout: Optimizer steps between one rollout and the next.
        updates, rollouts: Over the whole run; None if the length of an epoch is unknown.
        epochs: Passes over the training problems; None if unknown.
    """

    prompts: int
    completions: int
    micro_batch: int
    micro_batches: int
    accumulation: int
    updates_per_rollout: float
    updates: int | None
    rollouts: int | None
    epochs: float | None


def plan_steps(args: GRPOConfig, problems: int | None, processes: int | None = None) -> Steps:
    """The batch arithmetic of TRL and transformers.

    Args:
        problems: Number of training problems; None if unknown, and then so is the length of an epoch.
        processes: Number of processes, instead of those of `args`.

    Raises:
        ValueError: If a rollout cannot be split over this many processes, or the data set is smaller than one
        rollout.
    """
    assert args.generation_batch_size is not None
    completions = args.generation_batch_size
    processes = processes or args.world_size
    rows_per_pass = args.per_device_train_batch_size * processes
    if completions % rows_per_pass:
        raise ValueError(
            f"generation_batch_size is {completions}; allowed: a multiple of per_device_train_batch_size "
            f"{args.per_device_train_batch_size} x {processes} processes = {rows_per_pass}"
        )
    assert args.num_generations is not None
    prompts = completions // args.num_generations
    micro_batches = completions // rows_per_pass * args.num_iterations
    accumulation = args.gradient_accumulation_steps
    rollouts_per_epoch = None
    if problems is not None:
        rollouts_per_epoch = problems // prompts
        if not rollouts_per_epoch:
            raise ValueError(f"a rollout takes {prompts} prompts, but there are only {problems} training problems")
    updates = args.max_steps if args.max_steps > 0 else None
    rollouts = None if updates is None else math.ceil(updates * accumulation / micro_batches)
    if rollouts_per_epoch is not None:
        updates_per_epoch = math.ceil(rollouts_per_epoch * micro_batches / accumulation)  # the last may be smaller
        if updates is None:
            updates = math.ceil(args.num_train_epochs * updates_per_epoch)
        whole, rest = divmod(updates, updates_per_epoch)
        rollouts = whole * rollouts_per_epoch + math.ceil(rest * accumulation / micro_batches)
    return Steps(
        prompts=prompts,
        completions=completions,
        micro_batch=args.per_device_train_batch_size,
        micro_batches=micro_batches,
        accumulation=accumulation,
        updates_per_rollout=micro_batches / accumulation,
        updates=updates,
        rollouts=rollouts,
        epochs=None if rollouts is None or rollouts_per_epoch is None else rollouts / rollouts_per_epoch,
    )


def planned_rollouts(trainer: Any, steps: Steps) -> list[list[int]]:
    """Rows of the data set by rollout, in the run's own order; a short run sees only part of the data."""
    stride = steps.completions * steps.micro_batches  # the sampler repeats a rollout for each micro-batch
    order = list(islice(trainer._get_train_sampler(), (steps.rollouts or 1) * stride))
    return [order[i : i + steps.completions] for i in range(0, len(order), stride)]
