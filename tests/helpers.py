"""What several test files share."""

import json
from pathlib import Path

from bandpo.core.divergences import DIVERGENCE_NAMES

ROOT = Path(__file__).parent.parent

# Every named divergence, and members of the alpha family on both sides of its special cases.
ALPHAS = ["alpha:-1", "alpha:0.5", "alpha:1.01", "alpha:0.99", "alpha:2", "alpha:3"]
NAMES = [name for name in DIVERGENCE_NAMES if name != "alpha:<a>"] + ALPHAS


def strict_json(path):
    """The objects of a .json or .jsonl file, by a parser that knows no Infinity and no NaN."""

    def refuse(constant):
        raise ValueError(f"{path} holds {constant}, which is not JSON")

    text = path.read_text(encoding="utf-8")
    return [json.loads(x, parse_constant=refuse) for x in (text.splitlines() if path.suffix == ".jsonl" else [text])]


# Settings of a GRPOConfig for tests.
QUIET_ON_CPU = {
    "report_to": [],
    "use_cpu": True,
    "bf16": False,
    "gradient_checkpointing": False,
    "disable_tqdm": True,
}

# Settings of the recipe scratch that make a run of seconds; a test adds what it is about.
TINY = [
    "model.scratch={hidden_size: 32, layers: 2, heads: 2, positions: 64}",
    "warmup.steps=60",
    "task.low=0",
    "task.high=4",
    "task.heldout=5",
    "train.max_steps=4",
    "train.generation_batch_size=16",
    "train.per_device_train_batch_size=4",
    "train.num_generations=4",
    "train.max_completion_length=4",
    "eval.samples=2",
]

# A run of several rollouts and checkpoints, for `bandpo train`.
TINY_RUN = [
    "scratch",
    *TINY,
    "train.max_steps=24",
    "train.save_steps=3",
    "train.learning_rate=1e-3",
    "train.dynamic_sampling=1",
]
