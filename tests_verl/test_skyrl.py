"""The policy loss in SkyRL's own registry, against bandpo.policy_loss and SkyRL's own loss.

SkyRL shares this environment because its loss, like verl's, needs neither a GPU nor an inference engine.
"""

from __future__ import annotations

import copy
import typing

import cloudpickle
import pytest
import torch
import typing_extensions

# SkyRL is released for Python 3.12; before it, pydantic asks for this TypedDict.
typing.TypedDict = typing_extensions.TypedDict
from skyrl.backends.skyrl_train.utils.ppo_utils import PolicyLossRegistry  # noqa: E402
from skyrl.train.config import AlgorithmConfig  # noqa: E402

import bandpo  # noqa: E402
from bandpo.integrations.skyrl import register  # noqa: E402

BATCH, LENGTH = 5, 16


@pytest.fixture(autouse=True)
def clean_registry():
    yield
    if "bandpo" in PolicyLossRegistry.list_available():
        PolicyLossRegistry.unregister("bandpo")


def batch() -> dict[str, torch.Tensor]:
    random = torch.Generator().manual_seed(0)
    old = -torch.rand(BATCH, LENGTH, generator=random).pow(3) * 8
    new = (old + 0.8 * torch.randn(BATCH, LENGTH, generator=random)).clamp(max=-1e-4)
    return {
        "log_probs": new.requires_grad_(),
        "old_log_probs": old,
        "advantages": torch.randn(BATCH, LENGTH, generator=random),
        "loss_mask": (torch.arange(LENGTH) < torch.tensor([LENGTH, 2, 9, LENGTH, 5])[:, None]).float(),
        "rollout_logprobs": old - 0.3,
    }


def run(data: dict[str, torch.Tensor], config: AlgorithmConfig, name: str = "bandpo"):
    loss, metrics = PolicyLossRegistry.get(name)(**data, config=config)
    (gradient,) = torch.autograd.grad(loss, data["log_probs"])
    return loss.detach(), gradient, metrics


@pytest.mark.parametrize("anchor", ["old", "rollout"])
@pytest.mark.parametrize("dual_clip", [None, 5.0])
def test_it_is_our_policy_loss(anchor, dual_clip):
    register({"radius": 0.05}, dual_clip=dual_clip is not None, anchor=anchor)
    data = batch()
    config = AlgorithmConfig(clip_ratio_c=dual_clip or 3.0)
    loss, gradient, metrics = run(data, config)
    want = bandpo.policy_loss(
        data["log_probs"],
        data["old_log_probs" if anchor == "old" else "rollout_logprobs"],
        data["advantages"],
        data["loss_mask"],
        bandpo.Band(0.05),
        "seq-mean-token-sum",
        dual_clip=dual_clip,
    )
    (want_gradient,) = torch.autograd.grad(want.loss, data["log_probs"])
    torch.testing.assert_close(loss, want.loss.detach() * BATCH, rtol=3e-6, atol=1e-7)
    torch.testing.assert_close(gradient, want_gradient * BATCH, rtol=3e-6, atol=1e-7)
    assert metrics["band/clip_fraction"] == pytest.approx(want.metrics["clip_fraction"].item())
    assert metrics["band/clip_fraction"] == pytest.approx(metrics["clip_ratio"])
    assert metrics["clip_ratio"] > 0


def test_constant_bounds_are_skyrls_loss_bit_for_bit():
    register({"name": "clip", "low": 0.2, "high": 0.28})
    data = batch()
    config = AlgorithmConfig(eps_clip_low=0.2, eps_clip_high=0.28)
    ours, theirs = run(data, config), run(data, config, "regular")
    assert torch.equal(ours[0], theirs[0])
    assert torch.equal(ours[1], theirs[1])
    assert theirs[2]["clip_ratio"] > 0


def test_the_configuration_is_left_as_it_was_and_the_function_travels():
    register({"radius": 0.05})
    config = AlgorithmConfig()
    before = copy.deepcopy(config)
    loss, _, _ = run(batch(), config)
    assert config == before
    function = cloudpickle.loads(cloudpickle.dumps(PolicyLossRegistry.get("bandpo")))
    assert torch.equal(function(**batch(), config=config)[0].detach(), loss)


def test_what_is_wrong_is_one_sentence():
    with pytest.raises(ValueError, match="has no option 'raduis'"):
        register({"raduis": 0.1})
    with pytest.raises(ValueError, match="anchor is 'sampler'; allowed: old, rollout"):
        register(anchor="sampler")
    register(anchor="rollout")
    with pytest.raises(ValueError, match="needs rollout_logprobs"):
        run({**batch(), "rollout_logprobs": None}, AlgorithmConfig())
