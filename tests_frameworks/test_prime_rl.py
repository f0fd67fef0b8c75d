"""prime-rl's own configuration, loss set-up and packed loss on the CPU; nothing of it is replaced."""

from __future__ import annotations

import re
import tomllib

import pytest
import torch

from conftest import BATCH, LENGTH, ROOT, RULE, agree, batch, use_checkout

use_checkout("prime_rl", "src", "packages/prime-rl-configs/src")
from prime_rl.configs.trainer import CustomLossConfig, IPOLossConfig  # noqa: E402
from prime_rl.trainer.rl.loss import compute_loss, setup_rl_loss_fn  # noqa: E402

import bandpo  # noqa: E402

PATH = "bandpo.integrations.prime_rl.band_loss"


def custom(**kwargs):
    return setup_rl_loss_fn(CustomLossConfig(import_path=PATH, kwargs=kwargs))


def packed(data, loss_fn, scale, weights=None):
    """prime-rl's loss over all sequences, as its trainer calls it."""
    return compute_loss(
        trainer_logprobs=list(data.new),
        inference_logprobs=list(data.old),
        ref_logprobs=None,
        advantages=list(data.advantages),
        loss_mask=list(data.mask),
        rl_weights=None if weights is None else list(weights),
        ce_weights=None,
        ref_kl_weights=None,
        rl_loss_fn=loss_fn,
        rl_scale=scale,
        ce_scale=1,
        ref_kl_scale=1,
    )


@pytest.mark.parametrize("dual_clip", [None, 4.0])
def test_it_is_our_policy_loss(dual_clip):
    data = batch(1)
    loss, metrics = packed(data, custom(rule=RULE, dual_clip=dual_clip), data.mask.sum())
    agree(loss, data, dual_clip=dual_clip)
    assert metrics["band/clip_fraction"].shape == (BATCH,)
    assert metrics["band/clip_fraction"].mean() > 0


def test_loss_weights_multiply_and_a_weight_of_zero_leaves_the_token_out():
    data = batch(1)
    weights = torch.rand(data.mask.shape, generator=torch.Generator().manual_seed(0)) * (torch.arange(LENGTH) % 3 > 0)
    loss, _ = packed(data, custom(rule=RULE), data.mask.sum(), weights)
    agree(loss, data, weights=weights)


def test_a_fixed_region_is_prime_rls_ipo():
    """prime-rl has no clipped loss; its IPO without the KL term is our rule of that name."""
    data, eps = batch(2), 0.1
    name = "eps" if "eps" in IPOLossConfig.model_fields else "ipo_threshold"
    theirs, their_metrics = packed(data, setup_rl_loss_fn(IPOLossConfig(kl_tau=0.0, **{name: eps})), 1)
    ours, our_metrics = packed(data, custom(rule={"name": "ipo", "radius": eps}), 1)
    (want,) = torch.autograd.grad(theirs, data.new)
    (gradient,) = torch.autograd.grad(ours, data.new)
    torch.testing.assert_close(gradient, want, rtol=3e-6, atol=1e-7)
    torch.testing.assert_close(our_metrics["band/clip_fraction"], their_metrics["is_masked"])
    assert 0 < their_metrics["is_masked"].mean() < 1


def test_the_page_is_a_configuration_that_prime_rl_accepts():
    page = (ROOT / "docs/integrations/prime-rl.md").read_text(encoding="utf-8")
    settings = tomllib.loads(re.search(r"```toml\n(.*?)```", page, re.S)[1])["trainer"]["loss"]
    config = CustomLossConfig.model_validate(settings)
    data = batch(3)
    loss, _ = packed(data, setup_rl_loss_fn(config), data.mask.sum())
    agree(loss, data, bandpo.Band(radius=0.05), dual_clip=10.0)


def test_an_invalid_rule_is_one_sentence():
    with pytest.raises(ValueError, match="has no option 'raduis'"):
        packed(batch(), custom(rule={"raduis": 0.1}), 1)
