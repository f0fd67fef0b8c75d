"""A PPO update by verl's own worker, engine and optimizer, on the CPU with a tiny Llama.

FSDP2 runs on the CPU; FSDP1 does not (verl asks for sync_module_states=True, which torch refuses there).
"""

from __future__ import annotations

import os
from functools import partial
from pathlib import Path

import pytest
import torch
from tensordict import TensorDict
from tiny import ACTOR, SEQUENCES, for_log_probs, for_update, recipe, sequences
from torch import Tensor
from torch.distributed.tensor import DTensor
from verl.utils import tensordict_utils as tu
from verl.utils.config import omega_conf_to_dataclass
from verl.utils.metric import reduce_metrics
from verl.workers.config import TrainingWorkerConfig
from verl.workers.engine.fsdp.transformer_impl import FSDPEngineWithLMHead
from verl.workers.engine_workers import TrainingWorker
from verl.workers.utils.losses import ppo_loss
from verl.workers.utils.padding import no_padding_2_padding

import bandpo


@pytest.fixture(scope="module", autouse=True)
def process_group():
    environment = {"RANK": "0", "WORLD_SIZE": "1", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "0"}
    os.environ.update(environment)
    torch.distributed.init_process_group("gloo", store=torch.distributed.HashStore(), rank=0, world_size=1)
    yield
    torch.distributed.destroy_process_group()
    for name in environment:
        del os.environ[name]


def make_worker(model_path: Path, *overrides: str) -> TrainingWorker:
    """verl's worker as its ActorRolloutRefWorker builds it, from a recipe."""
    config = recipe(model_path, *overrides)
    actor = omega_conf_to_dataclass(config.actor_rollout_ref.actor)
    engine = actor.engine
    engine.use_dynamic_bsz = False
    engine.micro_batch_size_per_gpu = engine.infer_micro_batch_size_per_gpu = 2
    worker = TrainingWorker(
        TrainingWorkerConfig(
            model_type="language_model",
            model_config=omega_conf_to_dataclass(config.actor_rollout_ref.model),
            engine_config=engine,
            optimizer_config=actor.optim,
            checkpoint_config=actor.checkpoint,
        )
    )
    worker.reset()
    worker.set_loss_fn(partial(ppo_loss, config=actor))
    assert isinstance(worker.engine, FSDPEngineWithLMHead)
    return worker


def log_probs(worker: TrainingWorker, data: TensorDict) -> Tensor:
    output = worker.infer_batch(for_log_probs(data))
    return no_padding_2_padding(output["log_probs"], data).float()


def update(worker: TrainingWorker, data: TensorDict) -> dict[str, float]:
    return reduce_metrics(dict(tu.get(worker.train_mini_batch(data), "metrics")))


def weights(worker: TrainingWorker) -> dict[str, Tensor]:
    return {
        name: (p.full_tensor() if isinstance(p, DTensor) else p).detach().clone()
        for name, p in worker.engine.module.named_parameters()
    }


def test_an_update_moves_the_weights_and_logs_the_band(model_path):
    worker = make_worker(model_path, f"{ACTOR}.policy_loss.rule.radius=0.001")
    data = sequences()
    before = weights(worker)
    metrics = update(worker, for_update(data, log_probs(worker, data)))
    after = weights(worker)
    assert all(not torch.equal(before[name], after[name]) for name in before)
    assert metrics["grad_norm"] > 0
    assert 0 < metrics["actor/band/clip_fraction"] < 1
    assert metrics["actor/band/clip_fraction"] == pytest.approx(metrics["actor/pg_clipfrac"], rel=1e-6)
    assert metrics["actor/band/ratio_max"] > 1 > metrics["actor/band/ratio_min"]


def test_a_minibatch_has_the_loss_of_policy_loss(model_path):
    """verl's engine with micro-batches of two sequences against policy_loss on the whole minibatch."""
    worker = make_worker(model_path, f"{ACTOR}.use_kl_loss=false", f"{ACTOR}.policy_loss.rule.radius=0.02")
    data = sequences()
    logps = log_probs(worker, data)
    # An old policy some way off, so that there is something to clip.
    noise = torch.randn(logps.shape, generator=torch.Generator().manual_seed(2))
    old_logps = (logps + 1.5 * noise).clamp(max=-1e-3)
    expected = bandpo.policy_loss(
        logps,
        old_logps,
        data["advantages"],
        data["response_mask"],
        rule=bandpo.Band(radius=0.02, cap=10.0),
        aggregation="seq-mean-token-mean",
        dual_clip=10.0,
    )
    metrics = update(worker, for_update(data, old_logps, epochs=1, size=SEQUENCES))
    assert metrics["loss"] == pytest.approx(expected.loss.item(), rel=1e-5)
    assert metrics["actor/pg_loss"] == pytest.approx(expected.loss.item(), rel=1e-5)
    assert expected.metrics["clip_fraction"] > 0.1


def test_the_rule_changes_the_update_and_constant_bounds_change_nothing(model_path):
    def final(*overrides: str) -> dict[str, Tensor]:
        worker = make_worker(model_path, *overrides)
        data = sequences()
        update(worker, for_update(data, log_probs(worker, data)))
        return weights(worker)

    def same(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
        return all(torch.equal(one[name], other[name]) for name in one)

    vanilla = final(
        f"{ACTOR}.policy_loss._target_=verl.workers.config.PolicyLossConfig",
        f"{ACTOR}.policy_loss.loss_mode=vanilla",
        f"~{ACTOR}.policy_loss.rule",
    )
    assert same(final("method=grpo"), vanilla)
    assert not same(final(f"{ACTOR}.policy_loss.rule.radius=0.001"), vanilla)
