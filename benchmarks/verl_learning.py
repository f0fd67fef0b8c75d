"""The runs of two_trainers.yaml in verl: `bandpo launch verl --cluster cpu` from the same weights, on the same sums.

    bandpo compare benchmarks/two_trainers.yaml --output DIR/trl                in the project's environment
    python benchmarks/verl_learning.py DIR/trl --output DIR/verl                in that of `make test-verl-loop`

A run takes minutes. METHOD-SEED.jsonl, verl's own metrics of each rollout, appears once it is complete; the same
command resumes with the runs that are missing.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
from importlib import resources
from pathlib import Path

import yaml
from transformers import AutoTokenizer

from bandpo.integrations.verl_data import write_parquet
from bandpo.tasks.arithmetic import Arithmetic

METHODS = {"GRPO": "grpo", "BandKL": "band-kl"}
SEEDS = (0, 1, 2)
# Not by bandpo.runs.config, which imports TRL.
RECIPE = resources.files("bandpo") / "recipes" / "scratch.yaml"
TASK = Arithmetic.model_validate(yaml.safe_load(RECIPE.read_text(encoding="utf-8"))["task"])
ACTOR, ROLLOUT = "actor_rollout_ref.actor", "actor_rollout_ref.rollout"
# As that recipe: 64 prompts of 8 completions in 16 minibatches, 160 updates in 10 rollouts.
SETTINGS = [
    "data.train_batch_size=64",
    "data.max_prompt_length=16",
    "data.max_response_length=32",
    f"{ACTOR}.ppo_mini_batch_size=4",
    f"{ACTOR}.ppo_micro_batch_size_per_gpu=32",
    f"{ACTOR}.loss_agg_mode=token-mean",
    f"{ACTOR}.use_kl_loss=false",
    f"{ACTOR}.optim.lr=3e-4",
    f"{ACTOR}.optim.weight_decay=0",
    f"{ROLLOUT}.log_prob_micro_batch_size_per_gpu=32",
    f"{ROLLOUT}.n=8",
    f"{ROLLOUT}.max_model_len=64",
    f"{ROLLOUT}.max_num_seqs=256",
    f"{ROLLOUT}.max_num_batched_tokens=4096",
    f"{ROLLOUT}.val_kwargs.n=4",
    "trainer.total_training_steps=10",
    "trainer.test_freq=1000",  # before and after training
    "trainer.save_freq=-1",
    "trainer.logger=[file]",
]
REWARD = """from bandpo.tasks.rewards import last_integer_reward


def compute_score(data_source, solution_str, ground_truth, extra_info=None, **_):
    return last_integer_reward(solution_str, ground_truth)
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("trl", type=Path, help="the directory of TRL's runs, for the weights that they start from")
    parser.add_argument("--output", type=Path, required=True)
    options = parser.parse_args()
    output = options.output.resolve()
    output.mkdir(parents=True, exist_ok=True)
    for name, problems in zip(("train", "heldout"), TASK.problems(), strict=True):
        rows = [
            {
                "data_source": "sums",
                "prompt": TASK.messages(problem),
                "reward_model": {"style": "rule", "ground_truth": problem.answer},
                "extra_info": {"index": index},
            }
            for index, problem in enumerate(problems)
        ]
        write_parquet(rows, output / f"{name}.parquet")
    (output / "reward.py").write_text(REWARD)
    failed = []
    for seed in SEEDS:
        model = chat_model(options.trl, seed, output)
        for method in METHODS:
            target = output / f"{method}-{seed}.jsonl"
            if not target.exists() and not run(method, seed, model, target):
                failed.append(target.with_suffix(".log").name)
    if failed:
        sys.exit(f"{len(failed)} runs failed: {', '.join(failed)} in {output}")


def chat_model(trl: Path, seed: int, output: Path) -> Path:
    """The weights of a seed beside a tokenizer whose chat template leaves the prompt as it is."""
    found = list(trl.glob(f"initial/{seed}-*"))
    if len(found) != 1:
        sys.exit(
            f"{trl} holds {len(found)} models of seed {seed}; run bandpo compare benchmarks/two_trainers.yaml first"
        )
    folder = output / f"model-{seed}"
    folder.mkdir(exist_ok=True)
    for path in found[0].iterdir():
        (folder / path.name).write_bytes(path.read_bytes())
    tokenizer = AutoTokenizer.from_pretrained(found[0])
    tokenizer.chat_template = "{% for message in messages %}{{ message['content'] }}{% endfor %}"
    tokenizer.save_pretrained(folder)
    return folder


def run(method: str, seed: int, model: Path, target: Path) -> bool:
    """One launch; whether it succeeded."""
    folder, partial = target.parent, target.with_suffix(".partial")
    settings = [
        *SETTINGS,
        f"actor_rollout_ref.model.path={model}",
        f"data.train_files=[{folder / 'train.parquet'}]",
        f"data.val_files=[{folder / 'heldout.parquet'}]",
        f"data.seed={seed}",
        f"reward.custom_reward_function.path={folder / 'reward.py'}",
        f"trainer.default_local_dir={folder / target.stem}",
    ]
    launch = [sys.executable, "-m", "bandpo", "launch", "verl", f"qwen2.5-3b-instruct/{METHODS[method]}"]
    with target.with_suffix(".log").open("w") as log:
        print(f"{target.stem}: log in {log.name}", flush=True)
        code = subprocess.run(
            [*launch, "--cluster", "cpu", *settings],
            stdout=log,
            stderr=subprocess.STDOUT,
            cwd=folder,
            env={**os.environ, "VERL_FILE_LOGGER_PATH": str(partial)},
            check=False,
        ).returncode
    if code == 0:
        partial.rename(target)
    return code == 0


if __name__ == "__main__":
    main()
