"""E_pi[S] of recorded batches: against the logits themselves, in float64, and through everything TRL puts between."""

import copy

import numpy as np
import pytest
import torch

from bandpo.models import scratch_model
from bandpo.runs.build import RecipeTrainer
from bandpo.training import BandGRPOConfig
from bandpo.training.batches import TokenBatch
from bandpo.training.slope import mean_slopes
from helpers import QUIET_ON_CPU, TINY


def entropy(z):
    """H of a softmax, plainly."""
    p = z.softmax(-1)
    return -(p * p.log()).sum(-1)


def expected_slope(logits):
    """sum_k pi_k S_k in float64, S_k = -dH/dz_k by central differences, one logit after the other."""
    z, h, total = logits.double(), 1e-5, 0.0
    for k in range(z.shape[-1]):
        step = torch.zeros(z.shape[-1], dtype=z.dtype)
        step[k] = h
        total = total - z.softmax(-1)[..., k] * (entropy(z + step) - entropy(z - step)) / (2 * h)
    return total


@pytest.fixture(scope="module")
def sharp():
    """A small model whose distributions are neither flat nor one token."""
    model, tokenizer = scratch_model(hidden_size=32, layers=2, heads=2, positions=64, seed=0)
    with torch.no_grad():
        model.get_output_embeddings().weight.mul_(8)
    return model.eval(), tokenizer


@pytest.mark.parametrize(("temperature", "softcap"), [(1.0, None), (0.7, None), (0.6, 5.0)])
def test_it_is_the_mean_slope_of_the_entropy_by_finite_differences(sharp, temperature, softcap):
    from trl.trainer.utils import add_fused_lm_head

    model = copy.deepcopy(sharp[0])
    model.config.final_logit_softcapping = softcap
    ids = torch.arange(3 * 9).view(3, 9) % model.config.vocab_size
    logits = model(input_ids=ids).logits.detach()
    if softcap is not None:
        logits = softcap * (logits / softcap).tanh()
    add_fused_lm_head(model, temperature=temperature, outputs=("log_probs", "entropy"))
    plain = model(input_ids=ids, labels=ids, fused_lm_head=True)
    with mean_slopes(model) as seen:
        output = model(input_ids=ids, labels=ids, fused_lm_head=True)
    (slope,) = seen
    expected = expected_slope(logits[:, :-1] / temperature)
    assert expected.min() < 0.02 < 0.05 < expected.max()
    torch.testing.assert_close(slope.double(), expected, rtol=1e-4, atol=1e-5)
    assert torch.equal(output.log_probs, plain.log_probs)
    assert torch.equal(output.entropy, plain.entropy)
    assert not slope.requires_grad
    assert model(input_ids=ids, labels=ids, fused_lm_head=True).mean_logits is None, "all is as it was"


def trainer(path, model, tokenizer, **changes):
    from datasets import Dataset

    peft = changes.pop("peft_config", None)
    settings = {
        "output_dir": str(path), "per_device_train_batch_size": 4, "generation_batch_size": 16, "num_generations": 4,
        "num_iterations": 2, "max_completion_length": 6, "max_steps": 4, "learning_rate": 1e-2, "temperature": 0.8,
        **QUIET_ON_CPU, **changes,
    }  # fmt: skip
    return RecipeTrainer(
        model=copy.deepcopy(model),
        reward_funcs=lambda completions, **_: [float(len(set(text))) for text in completions],
        args=BandGRPOConfig(**settings),
        train_dataset=Dataset.from_list([{"prompt": f"{i}+{i}="} for i in range(8)]),
        processing_class=tokenizer,
        peft_config=peft,
    )


@pytest.mark.slow
@pytest.mark.parametrize("how", ["plain", "chunks", "peft", "checkpointing"])
def test_it_is_seen_through_what_trl_puts_between(tmp_path, sharp, how):
    changes = {}
    if how == "peft":
        from peft import LoraConfig

        changes["peft_config"] = LoraConfig(r=2, target_modules=["q_proj"], init_lora_weights=False)
    if how == "checkpointing":
        changes["gradient_checkpointing"] = True
    made = trainer(tmp_path, *sharp, **changes)
    made.model.train()
    ids = torch.arange(5 * 9).view(5, 9) % sharp[0].config.vocab_size
    mask = torch.ones_like(ids)
    mask[1, :2] = 0  # padded on the left
    arguments = (made.model, ids, mask, 4, 2 if how == "chunks" else None)
    made._get_per_token_logps_and_entropies(*arguments, compute_entropy=True)
    assert made.last_forward[2] is None, "nobody records"
    made.recording = True
    logps, entropies, _ = made._get_per_token_logps_and_entropies(*arguments, compute_entropy=True)
    slope = made.last_forward[2]
    logits = made.model(input_ids=ids, attention_mask=mask).logits[:, -5:-1].detach() / 0.8
    torch.testing.assert_close(entropies.detach().double(), entropy(logits.double()), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(slope.double(), expected_slope(logits), rtol=1e-4, atol=1e-5)
    logps.sum().backward()
    with torch.no_grad():
        made._get_per_token_logps_and_entropies(*arguments)
    assert made.last_forward[2] is None, "a rollout's pass"


@pytest.mark.slow
def test_recording_leaves_the_run_as_it_was(tmp_path, sharp):
    ends = []
    for recording in (False, True):
        made = trainer(tmp_path / str(recording), *sharp)
        made.recording = recording
        made.train()
        assert (made.last_forward[2] is not None) == recording
        ends.append(made.model.state_dict())
    assert all(torch.equal(ends[0][name], ends[1][name]) for name in ends[0])


def test_logits_that_were_not_seen_are_said_to_be_unknown(monkeypatch, sharp):
    from trl.trainer import utils

    monkeypatch.delattr(utils, "_ChunkedLogProbFunction")
    with mean_slopes(sharp[0]) as seen:
        sharp[0](input_ids=torch.zeros(1, 3, dtype=torch.long))
    assert seen == []
    assert not hasattr(utils, "_ChunkedLogProbFunction")


@pytest.mark.slow
def test_a_run_records_what_its_checkpoint_gives_in_float64(tmp_path, monkeypatch):
    from rich.console import Console
    from transformers import AutoModelForCausalLM

    from bandpo.runs.config import load_config
    from bandpo.runs.job import run_training
    from bandpo.training.batches import read_batches

    inputs = {}
    of_trainer = TokenBatch.of_trainer

    def noted(trainer, step, limit):
        inputs[step] = trainer.last_inputs
        return of_trainer(trainer, step, limit)

    monkeypatch.setattr(TokenBatch, "of_trainer", noted)
    overrides = [
        *TINY, "train.max_steps=4", "train.gradient_accumulation_steps=2", "train.save_steps=1",
        "train.save_total_limit=9", "train.learning_rate=1e-3", "train.temperature=0.9", "train.report_to=[]",
        "eval=null", "record.batches=2",
    ]  # fmt: skip
    run_training(load_config("scratch", overrides), tmp_path / "run", Console(quiet=True), command=["bandpo"])
    batches = read_batches(tmp_path / "run" / "batches")
    assert [batch.step for batch in batches] == sorted(inputs) == [2, 4]
    for batch in batches:
        (folder,) = (tmp_path / "run").rglob(f"checkpoint-{batch.step - 1}")
        model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float64)
        told = inputs[batch.step]
        ids, mask = (
            torch.cat([told[f"prompt_{kind}"], told[f"completion_{kind}"]], 1).cpu() for kind in ("ids", "mask")
        )
        length = told["completion_ids"].shape[1]
        log_pi = (model(input_ids=ids, attention_mask=mask).logits[:, -length - 1 : -1] / 0.9).log_softmax(-1)
        of_entropy = -(log_pi.exp() * log_pi).sum(-1, keepdim=True)
        exact = (log_pi.exp().square() * (log_pi + of_entropy)).sum(-1).detach().numpy()
        rows, width = batch.mask.shape
        exact = np.where(batch.mask, exact[:rows, :width], 0)
        assert exact.max() > 0.01
        np.testing.assert_allclose(batch.mean_slope, exact, rtol=1e-4, atol=1e-5)
        same = (told["prompt_ids"][:rows, None] == told["prompt_ids"][None, :rows]).all(-1).cpu().numpy()
        assert ((batch.groups[:, None] == batch.groups[None]) == same).all()
        assert len(batch.prompts) == batch.groups.max() + 1
