"""A local Ray cluster: its workers know the plug-in, and verl's worker group trains with it.

On a cluster the same holds wherever bandpo is installed: `ray start --head`, then `bandpo launch verl ... --address`.
"""

from __future__ import annotations

import pytest
import ray
import torch
from omegaconf import OmegaConf
from tiny import ACTOR, for_log_probs, for_update, recipe, sequences
from verl.single_controller.ray import RayClassWithInitArgs, RayResourcePool, RayWorkerGroup
from verl.utils import tensordict_utils as tu
from verl.utils.metric import reduce_metrics
from verl.workers.engine_workers import ActorRolloutRefWorker
from verl.workers.utils.padding import no_padding_2_padding


@pytest.fixture(scope="module", autouse=True)
def cluster():
    ray.init(
        address="local",
        num_cpus=4,
        object_store_memory=200 * 2**20,
        include_dashboard=False,
        _node_ip_address="127.0.0.1",
        log_to_driver=False,
    )
    yield
    ray.shutdown()


def test_a_worker_has_the_plugin_without_any_import():
    @ray.remote(num_cpus=1)
    def lookup() -> tuple[str, bool]:
        import sys

        from verl.trainer.ppo.core_algos import get_policy_loss_fn

        return get_policy_loss_fn("bandpo").__module__, "trl" in sys.modules

    assert ray.get(lookup.remote(), timeout=120) == ("bandpo.integrations.verl", False)


class CpuWorker(ActorRolloutRefWorker):
    """Unless there is a process group, verl asks for "cpu:gloo,<device>:<its backend>", which names the CPU twice."""

    def __init__(self, *args, **kwargs) -> None:
        super().__init__(*args, **kwargs)
        torch.distributed.init_process_group("gloo")


def worker_group(config) -> RayWorkerGroup:
    OmegaConf.resolve(config.actor_rollout_ref)
    actor = RayClassWithInitArgs(cls=ray.remote(CpuWorker), config=config.actor_rollout_ref, role="actor")
    pool = RayResourcePool([1], use_gpu=False, max_colocate_count=2)
    return RayWorkerGroup(resource_pool=pool, ray_cls_with_init=actor, device_name="cpu")


def test_verls_worker_group_updates_the_actor(model_path):
    group = worker_group(recipe(model_path, f"{ACTOR}.policy_loss.rule.radius=0.001"))
    group.init_model()
    data = sequences()
    output = group.compute_log_prob(for_log_probs(data))
    logps = no_padding_2_padding(output["log_probs"], data).float()
    output = group.update_actor(for_update(data, logps))
    metrics = reduce_metrics(dict(tu.get(output, "metrics")))
    assert 0 < metrics["actor/band/clip_fraction"] < 1
    assert metrics["grad_norm"] > 0
    moved = no_padding_2_padding(group.compute_log_prob(for_log_probs(data))["log_probs"], data).float()
    assert not torch.equal(moved, logps)


def test_a_worker_refuses_a_wrong_rule_before_it_loads_a_model(model_path):
    config = recipe(model_path, f"+{ACTOR}.policy_loss.rule.raduis=0.1")
    with pytest.raises(Exception, match="has no option 'raduis'"):
        worker_group(config).init_model()
