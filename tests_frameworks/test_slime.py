"""slime's own loss under its own dispatcher on the CPU, with the real megatron-core over one gloo process.

Nothing of it is replaced. slime's losses run under torch.compile, so the tests need a C++ compiler.
"""

from __future__ import annotations

import copy
from argparse import Namespace
from types import SimpleNamespace

import pytest
import torch
import torch.distributed as dist
import torch.nn.functional as F

from conftest import BATCH, CLIP, LENGTH, RULE, agree, batch, use_checkout

use_checkout("slime")
pytest.importorskip("megatron.core", reason="megatron-core is not installed: run make test-frameworks")
from megatron.core import mpu  # noqa: E402
from slime.backends.megatron_utils.loss import loss_function  # noqa: E402

PROMPT, VOCABULARY = 3, 11
CUSTOM = {
    "loss_type": "custom_loss",
    "custom_loss_function_path": "bandpo.integrations.slime.band_loss_function",
}


@pytest.fixture(scope="module", autouse=True)
def one_process(tmp_path_factory):
    store = tmp_path_factory.mktemp("gloo") / "store"
    dist.init_process_group("gloo", init_method=f"file://{store}", rank=0, world_size=1)
    mpu.initialize_model_parallel()
    yield
    mpu.destroy_model_parallel()
    dist.destroy_process_group()


def arguments(**changes) -> Namespace:
    """What the loss reads of slime's arguments, at their defaults but for the clip range."""
    defaults = {
        "loss_type": "policy_loss",
        "advantage_estimator": "grpo",
        "eps_clip": CLIP["low"],
        "eps_clip_high": CLIP["high"],
        "eps_clip_c": None,
        "use_rollout_logprobs": False,
        "rollout_top_p": 1.0,
        "rollout_temperature": 1.0,
        "log_probs_chunk_size": -1,
        "use_opsm": False,
        "use_tis": False,
        "get_mismatch_metrics": False,
        "custom_tis_function_path": None,
        "tis_clip": 2.0,
        "tis_clip_low": 0.0,
        "calculate_per_token_loss": True,
        "entropy_coef": 0.0,
        "use_kl_loss": False,
        "recompute_loss_function": False,
        "allgather_cp": False,
        "qkv_format": "thd",
    }
    return Namespace(**{**defaults, **changes})


def response_logps(logits: torch.Tensor, tokens: list[torch.Tensor], lengths: list[int]) -> torch.Tensor:
    """Log-probs of the responses, shape (B, T), from logits packed as slime packs them; padding is -1."""
    rows = []
    for part, chosen, length in zip(logits[0].split([len(one) for one in tokens]), tokens, lengths, strict=True):
        row = part.log_softmax(-1)[PROMPT - 1 : -1].gather(-1, chosen[PROMPT:, None]).squeeze(-1)
        rows.append(F.pad(row, (0, LENGTH - length), value=-1.0))
    return torch.stack(rows)


def rollout(seed: int = 0) -> tuple[SimpleNamespace, dict]:
    """A batch with tensors of shape (B, T), whose new log-probs come from `logits`, and the same as slime's batch."""
    data = batch(seed)
    random = torch.Generator().manual_seed(seed)
    tokens = [torch.randint(VOCABULARY, (PROMPT + length,), generator=random) for length in data.lengths]
    data.logits = 2 * torch.randn(1, sum(map(len, tokens)), VOCABULARY, generator=random)
    data.logits.requires_grad_()
    data.new = response_logps(data.logits, tokens, data.lengths)
    noise = 0.8 * torch.randn(data.new.shape, generator=random)
    data.old = (data.new.detach() + noise).clamp(max=-1e-4)
    data.mask[0, 5:8] = False  # such as a tool's answer

    def packed(tensor: torch.Tensor) -> list[torch.Tensor]:
        return [row[:length] for row, length in zip(tensor, data.lengths, strict=True)]

    masks = packed(data.mask.float())
    return data, {
        "unconcat_tokens": tokens,
        "total_lengths": [len(one) for one in tokens],
        "response_lengths": data.lengths,
        "loss_masks": masks,
        "rollout_mask_sums": [mask.sum() for mask in masks],
        "advantages": packed(data.advantages),
        "log_probs": packed(data.old),
        "rollout_log_probs": packed(data.old - 0.3),
    }


def run(args: Namespace, data: SimpleNamespace, given: dict) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    """slime's loss, a sum over the batch, and its metrics, sums as well."""
    loss, _, log = loss_function(args, given, 1, 1, data.logits)
    return loss, dict(zip(log["keys"], log["values"][1:], strict=True))


def gradient(loss: torch.Tensor, data: SimpleNamespace) -> torch.Tensor:
    return torch.autograd.grad(loss, data.logits)[0]


@pytest.mark.parametrize("per_token", [True, False], ids=["token", "sequence mean"])
@pytest.mark.parametrize("anchor", ["log_probs", "rollout_log_probs"])
def test_it_is_our_policy_loss(anchor, per_token):
    data, given = rollout()
    args = arguments(
        **CUSTOM,
        bandpo_rule=RULE,
        use_rollout_logprobs=anchor == "rollout_log_probs",
        calculate_per_token_loss=per_token,
    )
    before = copy.copy(args)
    loss, metrics = run(args, data, given)
    assert args == before
    if args.use_rollout_logprobs:
        data.old = data.old - 0.3
    aggregation, scale = ("token-mean", data.mask.sum()) if per_token else ("seq-mean-token-mean", BATCH)
    agree(loss, data, aggregation=aggregation, scale=scale, by=data.logits)
    assert metrics["pg_clipfrac"] > 0


@pytest.mark.parametrize(
    "changes",
    [{}, {"use_tis": True}, {"use_opsm": True, "opsm_delta": 0.1}, {"entropy_coef": 0.01}],
    ids=["plain", "truncated importance sampling", "sequence mask", "entropy"],
)
def test_a_fixed_clip_is_slimes_own(changes):
    data, given = rollout(1)
    theirs, their_metrics = run(arguments(**changes), data, given)
    ours, our_metrics = run(arguments(**CUSTOM, bandpo_rule=CLIP, **changes), data, given)
    assert torch.equal(ours, theirs)
    assert torch.equal(gradient(ours, data), gradient(theirs, data))
    assert our_metrics == their_metrics
    assert their_metrics["pg_clipfrac"] > 0


def test_without_old_log_probs_the_ratio_is_one_and_nothing_is_clipped():
    data, given = rollout(2)
    del given["log_probs"]
    theirs, _ = run(arguments(), data, given)
    ours, metrics = run(arguments(**CUSTOM, bandpo_rule=RULE), data, given)
    assert torch.equal(ours, theirs)
    assert torch.equal(gradient(ours, data), gradient(theirs, data))
    assert metrics["pg_clipfrac"] == 0


@pytest.mark.parametrize("estimator", ["gspo", "cispo"])
def test_an_estimator_with_a_loss_of_its_own_is_refused(estimator):
    data, given = rollout()
    with pytest.raises(ValueError, match=f"advantage_estimator is '{estimator}'"):
        run(arguments(**CUSTOM, advantage_estimator=estimator), data, given)


def test_an_invalid_rule_is_one_sentence():
    data, given = rollout()
    with pytest.raises(ValueError, match="has no option 'raduis'"):
        run(arguments(**CUSTOM, bandpo_rule={"raduis": 0.1}), data, given)
