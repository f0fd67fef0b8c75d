"""The registered policy loss against verl's own losses and against bandpo.policy_loss."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor
from verl.trainer.ppo.core_algos import get_policy_loss_fn
from verl.workers.config import ActorConfig, PolicyLossConfig

import bandpo
from bandpo.core.registry import make_rule
from bandpo.integrations.verl import BandPolicyLossConfig

BATCH, LENGTH = 6, 24
MODES = ("token-mean", "token-sum", "seq-mean-token-sum", "seq-mean-token-mean", "seq-mean-token-sum-norm")
RULES = [
    {"name": "band", "radius": 0.05},
    {"name": "band", "radius": [0.02, 0.1], "divergence": "tv"},
    {"name": "adaptive-band", "radius": 0.05, "reference": 0.5},
    {"name": "band", "radius": 0.05, "divergence": "chi2", "cap": 5.0, "floor": 0.5},
    {"name": "dcpo"},
    {"name": "none"},
]


def actor(policy_loss: PolicyLossConfig, **options) -> ActorConfig:
    settings = {"strategy": "fsdp", "rollout_n": 1, "ppo_micro_batch_size_per_gpu": 1, "ppo_mini_batch_size": 4}
    return ActorConfig(**{**settings, **options}, policy_loss=policy_loss)


def banded(rule: dict, **options) -> ActorConfig:
    return actor(BandPolicyLossConfig(rule=rule), **options)


def batch(seed: int = 0, scale: float = 0.8) -> dict[str, Tensor]:
    """Log-probs from certain to very unlikely, ratios on both sides of every bound, masked tails."""
    random = torch.Generator().manual_seed(seed)
    old = -torch.rand(BATCH, LENGTH, generator=random).pow(3) * 9
    new = (old + scale * torch.randn(BATCH, LENGTH, generator=random)).clamp(
        max=-1e-4
    )  # at 0 the KL is infinite, its bound 1/p
    lengths = torch.tensor([LENGTH, 3, 11, LENGTH, 1, 17])
    return {
        "old_log_prob": old,
        "log_prob": new.requires_grad_(),
        "advantages": torch.randn(BATCH, LENGTH, generator=random),
        "response_mask": torch.arange(LENGTH) < lengths[:, None],
    }


def run(mode: str, config: ActorConfig, data: dict[str, Tensor], **options) -> tuple[Tensor, Tensor, dict]:
    loss, metrics = get_policy_loss_fn(mode)(**data, config=config, **options)
    (gradient,) = torch.autograd.grad(loss, data["log_prob"])
    return loss.detach(), gradient, metrics


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize(("low", "high"), [(0.2, 0.2), (0.2, 0.28)])
def test_constant_bounds_are_verls_vanilla_loss_bit_for_bit(mode, low, high):
    data = batch()
    weights = torch.rand(BATCH, LENGTH, generator=torch.Generator().manual_seed(1)) * 2
    options = {"clip_ratio_c": 3.0, "loss_agg_mode": mode}
    sizes = {"dp_size": 2, "batch_num_tokens": 157, "global_batch_size": 12, "loss_scale_factor": 40}
    for info in ({}, sizes):
        ours = banded({"name": "clip", "low": low, "high": high}, **options)
        theirs = actor(PolicyLossConfig(), clip_ratio_low=low, clip_ratio_high=high, **options)
        ours.global_batch_info.update(info)
        theirs.global_batch_info.update(info)
        arguments = {"loss_agg_mode": mode, "rollout_is_weights": weights}
        loss, gradient, metrics = run("bandpo", ours, data, **arguments)
        expected_loss, expected_gradient, expected_metrics = run("vanilla", theirs, data, **arguments)
        assert torch.equal(loss, expected_loss)
        assert torch.equal(gradient, expected_gradient)
        assert {name: metrics[name] for name in expected_metrics} == expected_metrics
        assert expected_metrics["actor/pg_clipfrac"] > 0.1
        assert expected_metrics["actor/pg_clipfrac_lower"] > 0


@pytest.mark.parametrize("mode", [mode for mode in MODES if mode != "token-sum"])
@pytest.mark.parametrize("rule", RULES, ids=str)
@pytest.mark.parametrize("weighted", [False, True])
def test_any_rule_is_our_policy_loss(mode, rule, weighted):
    data = batch(2)
    weights = torch.rand(BATCH, LENGTH, generator=torch.Generator().manual_seed(3)) if weighted else None
    config = banded(rule, clip_ratio_c=6.0)
    loss, gradient, metrics = run("bandpo", config, data, loss_agg_mode=mode, rollout_is_weights=weights)
    expected = bandpo.policy_loss(
        data["log_prob"],
        data["old_log_prob"],
        data["advantages"],
        data["response_mask"],
        rule=make_rule(**rule),
        aggregation=mode,
        dual_clip=6.0,
        weights=weights,
    )
    (expected_gradient,) = torch.autograd.grad(expected.loss, data["log_prob"])
    torch.testing.assert_close(loss, expected.loss.detach(), rtol=2e-6, atol=1e-7)
    torch.testing.assert_close(gradient, expected_gradient, rtol=2e-6, atol=1e-7)
    for name, value in expected.metrics.items():
        if name != "dual_clip_fraction":
            assert metrics[f"actor/band/{name}"] == pytest.approx(value.item(), rel=1e-6), name
    if rule["name"] != "none":
        assert metrics["actor/pg_clipfrac"] == pytest.approx(expected.metrics["clip_fraction"].item(), rel=1e-6)
        assert metrics["actor/pg_clipfrac"] > 0


@pytest.mark.parametrize(("divergence", "mode"), [("kl", "dppo_kl"), ("tv", "dppo_tv")])
def test_band_masks_the_gradients_that_dppo_masks(divergence, mode):
    """Each token's own gradient: DPPO multiplies it by a mask, Band clips it; both with the same anchor."""
    data, radius = batch(4), 0.05
    ours = banded({"name": "band", "radius": radius, "divergence": divergence}, clip_ratio_c=1e6)
    radii = {"clip_ratio": radius, "clip_ratio_low": radius, "clip_ratio_high": radius}
    theirs = actor(PolicyLossConfig(), **radii, clip_ratio_c=1e6)
    _, gradient, _ = run("bandpo", ours, data)
    _, expected, _ = run(mode, theirs, data)
    mask = data["response_mask"]
    assert torch.equal(gradient != 0, expected != 0)
    assert 0 < (gradient[mask] == 0).sum() < mask.sum()
    torch.testing.assert_close(gradient, expected, rtol=1e-5, atol=1e-8)


def test_masked_tokens_may_hold_any_log_prob_and_padding_is_harmless():
    data = batch(5)
    config = banded({"radius": 0.05})
    loss, gradient, metrics = run("bandpo", config, data)
    padded = {**data, "old_log_prob": data["old_log_prob"].masked_fill(~data["response_mask"], 0.7)}
    other_loss, other_gradient, other_metrics = run("bandpo", config, padded)
    assert torch.equal(loss, other_loss)
    assert torch.equal(gradient, other_gradient)
    assert metrics == other_metrics


def test_half_precision_is_computed_in_float32():
    data = batch(6)
    half = {**data, "old_log_prob": data["old_log_prob"].bfloat16(), "log_prob": data["log_prob"].bfloat16()}
    wide = {name: half[name].detach().float() for name in ("old_log_prob", "log_prob")}
    wide["log_prob"].requires_grad_()
    half["log_prob"] = half["log_prob"].detach().requires_grad_()
    loss, _, metrics = run("bandpo", banded({}), half)
    expected_loss, _, expected_metrics = run("bandpo", banded({}), {**data, **wide})
    assert torch.equal(loss, expected_loss)
    assert metrics == expected_metrics


def test_the_actor_configuration_is_left_as_it_was():
    config = banded({"radius": 0.05}, clip_ratio_low=0.2, clip_ratio_high=0.28)
    before = copy.copy(config.__dict__)
    run("bandpo", config, batch())
    assert config.__dict__ == before


def test_without_the_configuration_class_the_rule_is_band_with_its_defaults():
    data = batch(7)
    plain = actor(PolicyLossConfig(loss_mode="bandpo"))
    loss, gradient, _ = run("bandpo", plain, data)
    expected_loss, expected_gradient, _ = run("bandpo", banded({"name": "band"}), data)
    assert torch.equal(loss, expected_loss)
    assert torch.equal(gradient, expected_gradient)


def test_every_metric_is_a_float_under_actor():
    _, _, metrics = run("bandpo", banded({"radius": 0.05, "cap": 10.0}), batch())
    assert {"actor/band/clip_fraction", "actor/band/cap_fraction", "actor/band/divergence"} <= metrics.keys()
    assert all(name.startswith("actor/") and isinstance(value, float) for name, value in metrics.items())


def test_a_missing_configuration_is_one_sentence():
    with pytest.raises(ValueError, match="config is None; allowed: verl's ActorConfig"):
        get_policy_loss_fn("bandpo")(**batch())


OWN_RULES = """
from bandpo import Band

class ByPosition(Band):
    needs = frozenset({"positions"})
    def radii(self, tokens):
        low, high = super().radii(tokens)
        return low / (1 + tokens.positions), high / (1 + tokens.positions)

class Mask(Band):
    two_sided = True

class ByEntropy(Band):
    needs = frozenset({"old_entropy"})
"""


def test_rules_of_ones_own_hold_as_in_our_loss_or_are_refused_on_the_driver(tmp_path, monkeypatch):
    (tmp_path / "own_rules.py").write_text(OWN_RULES)
    monkeypatch.syspath_prepend(str(tmp_path))
    for name in ("own_rules:ByPosition", "own_rules:Mask"):
        data = batch(6)
        _, gradient, metrics = run("bandpo", banded({"name": name, "radius": 0.05}, clip_ratio_c=1e6), data)
        ours = bandpo.policy_loss(
            data["log_prob"],
            data["old_log_prob"],
            data["advantages"],
            data["response_mask"],
            make_rule(name, radius=0.05),
        )
        torch.testing.assert_close(
            gradient, torch.autograd.grad(ours.loss, data["log_prob"])[0], rtol=1e-5, atol=1e-8
        )
        share = ours.metrics["clip_fraction"].item()
        assert metrics["actor/band/clip_fraction"] == pytest.approx(share, rel=1e-6)
        assert share > 0
    with pytest.raises(ValueError, match=r"ByEntropy needs old_entropy: verl cannot give it; .*BandGRPOTrainer"):
        BandPolicyLossConfig(rule={"name": "own_rules:ByEntropy"})
