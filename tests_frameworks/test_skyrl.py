"""The policy loss in SkyRL's own registry, against bandpo.policy_loss and SkyRL's own loss; SkyRL comes from PyPI."""

from __future__ import annotations

import copy

import pytest
import torch

from conftest import BATCH, CLIP, RULE, agree, batch

pytest.importorskip("skyrl", reason="SkyRL is not installed: run make test-frameworks")
import cloudpickle
from skyrl.backends.skyrl_train.utils.ppo_utils import (
    LOSSES_WITH_OLD_LOGPROBS,
    LOSSES_WITHOUT_OLD_LOGPROBS,
    PolicyLossRegistry,
)
from skyrl.train.config import AlgorithmConfig

from bandpo.integrations.skyrl import LOSS_TYPE, register


@pytest.fixture(autouse=True)
def clean_registry():
    yield
    if LOSS_TYPE in PolicyLossRegistry.list_available():
        PolicyLossRegistry.unregister(LOSS_TYPE)


def run(data, config=None, name=LOSS_TYPE, rollout_shift=-0.3):
    """The loss as SkyRL's workers call it; the rollout's log-probs are the old ones plus rollout_shift."""
    return PolicyLossRegistry.get(name)(
        data.new,
        data.old,
        data.advantages,
        config=config or AlgorithmConfig(),
        loss_mask=data.mask.float(),
        rollout_logprobs=None if rollout_shift is None else data.old + rollout_shift,
    )


def gradient(loss, data):
    return torch.autograd.grad(loss, data.new)[0]


@pytest.mark.parametrize("anchor", ["old", "rollout"])
@pytest.mark.parametrize("dual_clip", [None, 5.0])
def test_it_is_our_policy_loss(anchor, dual_clip):
    register(RULE, dual_clip=dual_clip is not None, anchor=anchor)
    data = batch()
    loss, metrics = run(data, AlgorithmConfig(clip_ratio_c=dual_clip or 3.0))
    if anchor == "rollout":
        data.old = data.old - 0.3
    agree(loss, data, aggregation="seq-mean-token-sum", scale=BATCH, dual_clip=dual_clip)
    assert metrics["band/clip_fraction"] == pytest.approx(metrics["clip_ratio"])


@pytest.mark.parametrize("changes", [{}, {"tis_ratio_type": "token"}], ids=["plain", "truncated importance sampling"])
def test_constant_bounds_are_skyrls_loss_bit_for_bit(changes):
    register(CLIP)
    data = batch()
    config = AlgorithmConfig(eps_clip_low=CLIP["low"], eps_clip_high=CLIP["high"])
    for name, value in changes.items():
        setattr(config.off_policy_correction, name, value)
    (ours, _), (theirs, metrics) = run(data, config), run(data, config, "regular")
    assert torch.equal(ours, theirs)
    assert torch.equal(gradient(ours, data), gradient(theirs, data))
    assert metrics["clip_ratio"] > 0


def test_with_the_rollout_as_anchor_there_is_nothing_to_correct():
    register(RULE, anchor="rollout")
    data = batch()
    corrected = AlgorithmConfig()
    corrected.off_policy_correction.tis_ratio_type = "token"
    assert torch.equal(run(data, corrected)[0], run(data)[0])


def test_skyrl_keeps_the_forward_pass_for_old_log_probs_and_allows_fully_asynchronous_training():
    assert LOSS_TYPE not in LOSSES_WITHOUT_OLD_LOGPROBS
    assert LOSS_TYPE not in LOSSES_WITH_OLD_LOGPROBS


def test_the_configuration_is_left_as_it_was_and_the_function_travels():
    register(RULE)
    config = AlgorithmConfig()
    before = copy.deepcopy(config)
    loss, _ = run(batch(), config)
    assert config == before
    function = cloudpickle.loads(cloudpickle.dumps(PolicyLossRegistry.get(LOSS_TYPE)))
    data = batch()
    assert torch.equal(function(data.new, data.old, data.advantages, config, data.mask.float())[0], loss)


def test_what_is_wrong_is_one_sentence():
    with pytest.raises(ValueError, match="has no option 'raduis'"):
        register({"raduis": 0.1})
    with pytest.raises(ValueError, match="anchor is 'sampler'; allowed: old, rollout"):
        register(anchor="sampler")
    register(anchor="rollout")
    with pytest.raises(ValueError, match="needs rollout_logprobs"):
        run(batch(), rollout_shift=None)
