"""TRL's colocate mode with Band: the sampler's log-probs as anchor, and weights that arrive in the engine."""

from __future__ import annotations

import pytest
from datasets import Dataset

from bandpo.training import BandGRPOConfig, BandGRPOTrainer
from helpers import QUIET_ON_CPU, even_digits

UPDATES = 4  # per rollout


@pytest.fixture(scope="module")
def logs(model_path, tmp_path_factory):
    """The log lines of a run of three rollouts with a radius so small that tokens are clipped."""
    args = BandGRPOConfig(
        output_dir=str(tmp_path_factory.mktemp("out")),
        rule={"name": "band", "radius": 1e-3},
        anchor="sampler",
        use_vllm=True,
        vllm_mode="colocate",
        vllm_importance_sampling_correction=False,
        vllm_max_model_length=64,
        per_device_train_batch_size=8,
        generation_batch_size=8 * UPDATES,
        num_generations=8,
        max_completion_length=12,
        max_steps=3 * UPDATES,
        learning_rate=3e-3,
        lr_scheduler_type="constant",
        logging_steps=1,
        seed=0,
        **QUIET_ON_CPU,
    )
    problems = Dataset.from_list([{"prompt": f"{a} + {b} = "} for a in range(8) for b in range(8)])
    trainer = BandGRPOTrainer(model=str(model_path), reward_funcs=even_digits, args=args, train_dataset=problems)
    engine = trainer.vllm_generation.llm.llm_engine.model_executor.driver_worker.model_runner.model
    if not all(weight.numel() for weight in engine.parameters()):
        pytest.skip("vLLM packs its weights on this machine and then cannot take new ones")
    trainer.train()
    return [row for row in trainer.state.log_history if "band/ratio" in row]


def test_the_first_ratio_is_the_mismatch_of_the_two_engines(logs):
    first = logs[0]
    assert first["band/ratio"] == pytest.approx(1, abs=0.02)
    assert 0.9 < first["band/ratio_min"] < 1 < first["band/ratio_max"] < 1.1
    assert first["band/update_distance"] < 1e-5
    assert first["band/sampler_distance"] == pytest.approx(first["band/total_distance"])
    assert 0 < first["band/sampler_distance"] < 0.02


def test_weights_arrive_in_the_engine(logs):
    """If the engine were left behind, it would be as far away after a rollout as the updates on it have moved."""
    assert len(logs) == 3 * UPDATES
    for i in (UPDATES, 2 * UPDATES):
        moved, mismatch = logs[i - 1]["band/update_distance"], logs[i]["band/sampler_distance"]
        assert moved > 0.1
        assert mismatch < moved / 5
        assert logs[i]["band/update_distance"] < 1e-5


def test_tokens_are_clipped_around_the_sampler(logs):
    assert max(row["band/clip_fraction"] for row in logs) > 0
