"""NeMo-RL's own loss, configuration and batch on the CPU; nothing of it is replaced."""

from __future__ import annotations

import pickle

import pytest
import torch

from conftest import BATCH, CLIP, RULE, agree, batch, use_checkout

use_checkout("nemo_rl")
pytest.importorskip("ray", reason="what NeMo-RL imports is not installed: run make test-frameworks")
from nemo_rl.algorithms.loss import ClippedPGLossConfig, ClippedPGLossFn  # noqa: E402
from nemo_rl.distributed.batched_data_dict import BatchedDataDict  # noqa: E402

from bandpo.integrations.nemo_rl import BandPGLossFn  # noqa: E402

SAMPLES = torch.tensor([1.0, 1.0, 0.0, 1.0, 1.0])


def config(**changes) -> ClippedPGLossConfig:
    return ClippedPGLossConfig(**{"reference_policy_kl_penalty": 0.0, **changes})


def given(data) -> BatchedDataDict:
    """NeMo-RL's batch, one token longer than the ratios; SAMPLES are the sequences that count."""

    def shifted(tensor: torch.Tensor) -> torch.Tensor:
        return torch.cat([tensor.new_ones(BATCH, 1), tensor], 1)

    return BatchedDataDict(
        {
            "input_ids": torch.zeros(BATCH, data.old.shape[1] + 1, dtype=torch.long),
            "prev_logprobs": shifted(data.old),
            "generation_logprobs": shifted(data.old - 0.3),
            "reference_policy_logprobs": shifted(data.old + 0.1),
            "advantages": shifted(data.advantages),
            "token_mask": shifted(data.mask.float()),
            "sample_mask": SAMPLES,
        }
    )


def run(loss_fn, data):
    fields = given(data)
    valid = data.mask & SAMPLES.bool()[:, None]
    # By name, as its wrapper for packed sequences calls it.
    return loss_fn(
        next_token_logprobs=data.new,
        data=fields,
        global_valid_seqs=SAMPLES.sum(),
        global_valid_toks=valid.sum(),
    )


def counted(data):
    """The batch without the sequences that do not count."""
    data.mask = data.mask & SAMPLES.bool()[:, None]
    return data


@pytest.mark.parametrize("dual_clip", [None, 4.0])
def test_it_is_our_policy_loss(dual_clip):
    loss_fn = pickle.loads(pickle.dumps(BandPGLossFn(config(ratio_clip_c=dual_clip), rule=RULE)))
    data = batch(3)
    loss, metrics = run(loss_fn, data)
    agree(loss, counted(data), dual_clip=dual_clip)
    assert (loss_fn.ratio_clip_min, loss_fn.ratio_clip_max) == (0.2, 0.2)
    assert metrics["probs_ratio_clamped_max"] > 1.2


def test_sequence_means_are_ours_too():
    data = batch(3)
    loss, _ = run(BandPGLossFn(config(token_level_loss=False), rule=RULE), data)
    data.mask, data.new_all = data.mask[SAMPLES.bool()], data.new
    keep = SAMPLES.bool()
    data.old, data.advantages, data.new = data.old[keep], data.advantages[keep], data.new[keep]
    agree(loss, data, aggregation="seq-mean-token-mean", by=data.new_all)


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"ratio_clip_c": 3.0},
        {"reference_policy_kl_penalty": 0.01},
        {"use_importance_sampling_correction": True},
        {
            "use_importance_sampling_correction": True,
            "truncated_importance_sampling_type": "icepop",
            "truncated_importance_sampling_ratio": 5.0,
            "truncated_importance_sampling_ratio_min": 0.5,
        },
    ],
    ids=["plain", "dual clip", "KL", "importance sampling", "icepop"],
)
def test_a_fixed_clip_is_nemo_rls_own(changes):
    data = batch(4)
    cfg = config(ratio_clip_min=CLIP["low"], ratio_clip_max=CLIP["high"], **changes)
    theirs, their_metrics = run(ClippedPGLossFn(cfg), data)
    ours, our_metrics = run(BandPGLossFn(cfg, rule=CLIP), data)
    assert torch.equal(ours, theirs)
    assert torch.equal(torch.autograd.grad(ours, data.new)[0], torch.autograd.grad(theirs, data.new)[0])
    assert our_metrics == their_metrics
    assert their_metrics["probs_ratio_clamped_max"] == pytest.approx(1.28)


@pytest.mark.parametrize(
    "changes",
    [
        {"disable_ppo_ratio": True},
        {"force_on_policy_ratio": True},
        {"use_cispo": True},
        {"sequence_level_importance_ratios": True, "token_level_loss": False},
    ],
    ids=lambda changes: next(iter(changes)),
)
def test_settings_without_a_clipped_ratio_per_token_are_refused(changes):
    with pytest.raises(ValueError, match=f"loss_fn.{next(iter(changes))} is true"):
        BandPGLossFn(config(**changes), rule=RULE)


def test_an_invalid_rule_is_one_sentence():
    with pytest.raises(ValueError, match="has no option 'raduis'"):
        BandPGLossFn(config(), rule={"raduis": 0.1})
