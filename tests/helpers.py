"""What several test files share."""

import json
import subprocess
import sys
from contextlib import contextmanager
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


@contextmanager
def held_elsewhere(directory):
    """Another process that works in `directory`; it is killed in the end."""
    code = f"""
import pathlib, time
from bandpo.files import locked
with locked(pathlib.Path({str(directory)!r})):
    print("held", flush=True)
    time.sleep(600)
"""
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout.readline() == "held\n"
            yield
        finally:
            process.kill()


# Settings of a GRPOConfig for tests.
QUIET_ON_CPU = {
    "report_to": [],
    "use_cpu": True,
    "bf16": False,
    "gradient_checkpointing": False,
    "disable_tqdm": True,
}

# What differs between two runs that are the same.
TIMES = {"step_time", "train_runtime", "train_samples_per_second", "train_steps_per_second", "train_loss"}


def even_digits(completions, **_):
    """A reward: how many even digits a completion has."""
    return [float(sum(c in "02468" for c in text)) for text in completions]


def small_trainer(path, model, tokenizer, base, **changes):
    """A trainer of class `base` for 20 updates, 8 after each rollout, with a checkpoint after each; `changes` are the
    configuration's."""
    import copy

    from datasets import Dataset

    from bandpo.training import BandGRPOConfig

    settings = {
        "output_dir": str(path),
        "per_device_train_batch_size": 4,
        "generation_batch_size": 16,
        "num_generations": 4,
        "num_iterations": 2,
        "max_completion_length": 6,
        "max_steps": 20,
        "learning_rate": 1e-2,
        "logging_steps": 1,
        "save_steps": 1,
        **QUIET_ON_CPU,
        "seed": 3,
        **changes,
    }
    return base(
        model=copy.deepcopy(model),
        reward_funcs=even_digits,
        args=BandGRPOConfig(**settings),
        train_dataset=Dataset.from_list([{"prompt": f"{i}+{i}="} for i in range(8)]),
        processing_class=tokenizer,
    )


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
