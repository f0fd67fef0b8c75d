"""DAPO's dynamic sampling (arXiv 2503.14476, section 3.2): groups without a signal are replaced."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import pad
from trl import GRPOTrainer

Batch = dict[str, Any]

# Padding value of each field of TRL's rollout, and the side that is padded.
FILLED_LEFT = {"prompt_ids": None, "prompt_mask": 0}
FILLED_RIGHT = {
    "completion_ids": None,
    "completion_mask": 0,
    "old_per_token_logps": 0.0,
    "old_entropy": 0.0,
    "disagreement": 0.0,
    "ref_per_token_logps": 0.0,
    "sampling_per_token_logps": 0.0,
    "importance_sampling_ratio": 1.0,
    "tool_mask": 1,
}


class DynamicSampling(GRPOTrainer):
    """Mixin that resamples the groups without a signal, in up to `args.dynamic_sampling` rounds.

    class MyTrainer(DynamicSampling, BandGRPOTrainer): ...

    It is not part of BandGRPOTrainer, because it replaces the rollout and not the loss.
    """

    def _generate_and_score_completions(self, inputs: list[dict[str, Any]]) -> Batch:
        generate = super()._generate_and_score_completions
        batch = generate(inputs)
        rounds = self.args.dynamic_sampling  # type: ignore[attr-defined]
        if rounds and self.model.training:  # type: ignore[union-attr]
            batch = replace_uniform_groups(self, batch, generate, rounds)
        return batch


def replace_uniform_groups(
    trainer: Any, batch: Batch, generate: Callable[[list[dict[str, Any]]], Batch], rounds: int
) -> Batch:
    """Replace the groups whose completions all have the same reward, as they have no gradient.

    Each round draws as many new prompts as groups are missing and keeps those of their groups that carry a
    signal. Groups that are still uniform after the last round stay; their advantage is 0. TRL's metrics keep
    describing the first draw, which is the policy's performance on the data; `dynamic_sampling/*` describes the rest.

    Args:
        trainer: The GRPOTrainer.
        batch: This process's rollout, groups of `num_generations` consecutive rows.
        generate: Rolls out and scores rows of the training set.
        rounds: Maximum number of draws.

    Returns:
        The rollout with its uniform groups replaced, as far as the rounds allowed.

    Raises:
        ValueError: For a rollout that holds more than texts (images, say).
    """
    size = trainer.num_generations
    metrics = trainer._metrics["train"]
    lengths = {name: len(values) for name, values in metrics.items()}
    logs = copy.deepcopy(trainer._logs)
    uniform = _uniform(batch, size)
    before = _share(trainer, uniform)
    used = drawn = 0
    for round_ in range(rounds):
        missing = int(trainer.accelerator.gather(uniform.sum()).max())
        if missing == 0:
            break
        used += 1
        drawn += missing * size * trainer.accelerator.num_processes
        fresh = generate(_draw(trainer, missing, round_))
        good = (~_uniform(fresh, size)).nonzero().flatten()
        bad = uniform.nonzero().flatten()
        count = min(len(good), len(bad))
        batch = _replace(batch, fresh, bad[:count], good[:count], size, trainer._tokenizer.pad_token_id)
        uniform[bad[:count]] = False
    for name, values in metrics.items():
        if name != "num_tokens":  # a running total, not a list of draws
            del values[lengths.get(name, 0) :]
    trainer._logs = logs
    if used:
        mask = batch["completion_mask"]
        if "tool_mask" in batch:
            mask = mask * batch["tool_mask"]
        batch["num_items_in_batch"] = trainer.accelerator.gather(mask.sum()).sum()
    metrics["dynamic_sampling/uniform_before"].append(before)
    metrics["dynamic_sampling/uniform_after"].append(_share(trainer, uniform))
    metrics["dynamic_sampling/rounds"].append(float(used))
    metrics["dynamic_sampling/extra_completions"].append(float(drawn))
    return batch


def check_dynamic_sampling(args: Any) -> None:
    """Raise ValueError if a process would not hold whole groups."""
    if args.dynamic_sampling < 0:
        raise ValueError(f"dynamic_sampling is {args.dynamic_sampling}; allowed: a number of rounds >= 0")
    rows = args.per_device_train_batch_size * args.steps_per_generation
    if args.dynamic_sampling and rows % args.num_generations != 0:
        raise ValueError(
            f"dynamic_sampling needs whole groups on each process, but its {rows} completions per rollout are not a "
            f"multiple of num_generations={args.num_generations}"
        )


def _uniform(batch: Batch, size: int) -> Tensor:
    return (batch["advantages"].view(-1, size) == 0).all(1)


def _share(trainer: Any, uniform: Tensor) -> float:
    return trainer.accelerator.gather(uniform.float()).mean().item()


def _draw(trainer: Any, groups: int, round_: int) -> list[dict[str, Any]]:
    """Rows of the training set, the same whenever this point of the run is reached again."""
    seed = [trainer.args.seed, trainer._step, round_, trainer.accelerator.process_index]
    chosen = np.random.default_rng(seed).integers(len(trainer.train_dataset), size=groups)
    return [trainer.train_dataset[int(i)] for i in chosen for _ in range(trainer.num_generations)]


def _replace(batch: Batch, fresh: Batch, bad: Tensor, good: Tensor, size: int, pad_id: int) -> Batch:
    """`batch` with its groups `bad` taken from the groups `good` of `fresh`."""
    to, source = (
        (groups.unsqueeze(1) * size + torch.arange(size, device=groups.device)).flatten() for groups in (bad, good)
    )
    result = {}
    for name, values in batch.items():
        if name == "num_items_in_batch":
            continue
        if name == "groups":  # numbered by position, which a replaced group keeps
            result[name] = values
            continue
        other = fresh[name]
        if name in FILLED_LEFT or name in FILLED_RIGHT:
            fill = {**FILLED_LEFT, **FILLED_RIGHT}[name]
            width = max(values.size(1), other.size(1))
            values, other = (
                _fill(x, width, pad_id if fill is None else fill, name in FILLED_LEFT) for x in (values, other)
            )
        elif name != "advantages":
            raise ValueError(f"dynamic_sampling cannot handle rollouts with {name!r}; allowed: texts")
        result[name] = values.index_copy(0, to, other[source])
    return result


def _fill(values: Tensor, width: int, fill: float, left: bool) -> Tensor:
    if values.size(1) == 1 and values.is_floating_point():  # one ratio per sequence
        return values
    missing = width - values.size(1)
    return pad(values, (missing, 0) if left else (0, missing), value=fill)
