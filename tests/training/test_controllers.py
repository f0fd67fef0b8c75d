"""A controller in TRL: what it measures, that it moves the rule once a rollout, that a resumed run is the same."""

import json
import math

import pytest
import torch
from transformers import TrainerCallback

from bandpo.models import scratch_model
from bandpo.runs.build import RecipeTrainer
from bandpo.training import BandGRPOConfig, BandGRPOTrainer
from helpers import QUIET_ON_CPU, TIMES, small_trainer

ENTROPY = {"name": "band", "radius": 0.05, "control": {"metric": "entropy", "target": 4.4}}
CLIPPED = {"name": "band", "radius": 0.001, "control": {"metric": "clip_fraction", "target": 0.2, "smoothing": 0.5}}


@pytest.fixture(scope="module")
def small():
    return scratch_model(hidden_size=32, layers=2, heads=2, positions=64, seed=0)


def trainer(path, small, rule, base=RecipeTrainer, **changes):
    return small_trainer(path, *small, base, rule=rule, **changes)


def rows(done):
    return [{k: v for k, v in row.items() if k not in TIMES} for row in done.state.log_history if "loss" in row]


class Rules(TrainerCallback):
    """The rule in use at the beginning, and at each update."""

    def __init__(self):
        self.seen = []

    def on_train_begin(self, args, state, control, **_):
        self.seen.append(self.of.rule)

    def on_step_end(self, args, state, control, **_):
        self.seen.append(self.of.rule)


@pytest.mark.slow
@pytest.mark.parametrize("rule", [ENTROPY, CLIPPED])
@pytest.mark.parametrize("layout", [{}, {"num_iterations": 4, "gradient_accumulation_steps": 2}])
def test_the_rule_moves_once_a_rollout(tmp_path, small, rule, layout):
    """8 updates a rollout, of one or of two micro-batches; dynamic sampling draws up to three times for a rollout."""
    one = trainer(tmp_path, small, rule, save_strategy="no", dynamic_sampling=2, **layout)
    rules = Rules()
    rules.of = one
    one.add_callback(rules)
    one.train()
    done = rows(one)
    numbers = [getattr(r, "floor" if rule is ENTROPY else "radius") for r in rules.seen[1:]]
    for i in range(20):
        assert numbers[i] == numbers[i - i % 8]
    assert len(set(numbers)) == 3
    assert any(row.get("dynamic_sampling/rounds", 0) > 0 for row in done)
    logged = [row["band/control_value"] for row in done if "band/control_value" in row]
    assert logged == pytest.approx([numbers[i] for i in (0, 8, 16)])
    seen = [row.get("band/control_measured") for row in done[::8]]
    if rule is ENTROPY:
        # TRL logs the entropy of an update's completions; the first update of a rollout has not moved the policy yet.
        assert seen == pytest.approx([row["entropy"] for row in done[::8]], rel=0.1)
        assert one.controller.measured == seen[-1]
    else:
        assert seen[0] is None
        for k in (1, 2):
            mean = sum(row["band/clip_fraction"] for row in done[8 * k - 8 : 8 * k]) / 8
            assert seen[k] == pytest.approx(mean)


@pytest.mark.slow
@pytest.mark.parametrize("rule", [ENTROPY, CLIPPED])
def test_going_on_gives_the_run_that_was_not_interrupted(tmp_path, small, rule):
    whole = trainer(tmp_path / "whole", small, rule)
    whole.train()
    assert whole.rule != trainer(tmp_path / "other", small, rule).rule
    for step in (3, 8, 13, 20):
        resumed = trainer(tmp_path / f"resumed{step}", small, rule)
        resumed.train(resume_from_checkpoint=str(tmp_path / "whole" / f"checkpoint-{step}"))
        assert rows(resumed) == rows(whole)
        assert resumed.rule == whole.rule
        assert resumed.controller.state_dict() == whole.controller.state_dict()
        for (name, a), b in zip(whole.model.state_dict().items(), resumed.model.state_dict().values(), strict=True):
            assert torch.equal(a, b), name


@pytest.mark.slow
def test_the_drop_in_trainer_restores_the_number_too(tmp_path, small):
    """TRL's own checkpoints start a new rollout, but the controller goes on from where it was."""
    whole = trainer(tmp_path / "whole", small, CLIPPED, base=BandGRPOTrainer, max_steps=12)
    whole.train()
    saved = json.loads((tmp_path / "whole/checkpoint-12/trainer_state.json").read_text())
    state = saved["stateful_callbacks"]["bandpo_control"]
    assert state == whole.controller.state_dict()
    resumed = trainer(tmp_path / "resumed", small, CLIPPED, base=BandGRPOTrainer, max_steps=12)
    assert resumed.rule != whole.rule
    rules = Rules()
    rules.of = resumed
    resumed.add_callback(rules)
    resumed.train(resume_from_checkpoint=str(tmp_path / "whole/checkpoint-12"))
    assert rules.seen[0] == whole.rule


@pytest.mark.slow
@pytest.mark.parametrize(
    ("metric", "layout"),
    [
        ("entropy", {"num_iterations": 1, "gradient_accumulation_steps": 4}),
        ("divergence", {"num_iterations": 1, "gradient_accumulation_steps": 4}),
    ],
)
def test_a_rule_that_cannot_act_is_not_controlled(tmp_path, small, metric, layout):
    rule = {"name": "band", "control": {"metric": metric, "target": 0.1}}
    with pytest.raises(ValueError, match=f"control of '{metric}' needs several updates per rollout: gradient_accu"):
        trainer(tmp_path, small, rule, **layout)


def test_a_bad_control_is_refused_with_the_configuration(tmp_path):
    with pytest.raises(ValueError, match=r"unknown metric 'entropie' \(did you mean 'entropy'"):
        BandGRPOConfig(str(tmp_path), rule={"control": {"metric": "entropie", "target": 1}}, **QUIET_ON_CPU)
    text = '{"name": "band", "control": {"metric": "divergence", "target": 1e-3}}'
    config = BandGRPOConfig(str(tmp_path), rule=text, **QUIET_ON_CPU)
    assert config.rule["control"]["target"] == pytest.approx(1e-3)
    assert math.isfinite(config.rule["control"]["target"])
