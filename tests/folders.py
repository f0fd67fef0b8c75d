"""Run directories and studies as the explorer opens them, made without training."""

import json

import numpy as np
import yaml

from bandpo.runs.config import load_config
from bandpo.training.batches import TokenBatch


def make_run(path, updates=24, seed=0, rule="band", per_rollout=4, status="finished", batches=(), alarms=()):
    """A run of the recipe scratch with made-up numbers; its metrics are functions of the update."""
    path.mkdir(parents=True)
    config = load_config("scratch", [f"rule.name={rule}", f"seed={seed}"]).model_dump(mode="json")
    (path / "config.yaml").write_text(yaml.safe_dump(config))
    (path / "status.json").write_text(json.dumps({"status": status}))
    with (path / "metrics.jsonl").open("w") as stream:
        stream.writelines(metric_line(step, seed, per_rollout) for step in range(1, updates + 1))
    (path / "alarms.jsonl").write_text("".join(
        json.dumps({"step": step, "alarm": name, "event": event}) + "\n" for step, name, event in alarms
    ))  # fmt: skip
    for step in batches:
        make_batch(step).save(path / "batches")
    return path


def metric_line(step, seed=0, per_rollout=4):
    row = {
        "step": step,
        "entropy": 2 / (1 + step / 16) + 0.02 * seed,
        "band/clip_fraction_high": 0.02 * (step % 4),
        "band/clip_fraction_low": 0.01 * (step % 4),
        "band/divergence": 0.004 * (step % 4),
        "band/ratio_max": 1 + 3.0 * (step % 4),
        "band/ratio_min": 1 / (1 + 3.0 * (step % 4)),
        "grad_norm": 0.5,
    }
    if step % per_rollout == 1:
        row |= {"reward": 1 - 1 / (1 + step / 8) - 0.03 * seed, "frac_reward_zero_std": 0.25}
    return json.dumps(row) + "\n"


def make_batch(step, texts=("a", "b", "c"), rows=4, length=6):
    """A recorded batch; every number follows from `step`."""
    random = np.random.default_rng(step)
    shape = (rows, length)
    old = np.log(random.uniform(0.02, 0.98, shape)).astype(np.float32)
    logps = np.minimum(old + random.normal(0, 0.4, shape), -1e-4).astype(np.float32)
    return TokenBatch(
        step=step,
        texts=np.array(texts, np.str_),
        tokens=random.integers(0, len(texts), shape).astype(np.int32),
        logps=logps,
        old_logps=old,
        entropy=np.full(shape, 0.8, np.float32),
        advantages=np.where(np.arange(rows)[:, None] % 2 == 0, 1.0, -1.0).repeat(length, 1).astype(np.float32),
        mask=np.ones(shape, bool),
        mean_slope=np.full(shape, 0.05, np.float32),
    )
