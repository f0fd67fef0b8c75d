"""Time of whole training steps: BandGRPOTrainer against TRL's GRPOTrainer, and Band against the fixed clip.

    python benchmarks/step_time.py                     a small random model, a minute or two on one thread
    python benchmarks/step_time.py --model PATH        a model of your own
    python benchmarks/step_time.py --repeats 40 --json FILE

One repeat is one rollout with its updates under each trainer, from the same weights, prompts and random numbers,
so that all sample the same completions (the benchmark checks it). The trainers take turns in one process and in
random order, and only ratios within a repeat are compared; a slow spell of the machine then strikes all of them.
Wall time is what users feel, CPU time (of CPU runs) what other processes on the machine disturb least.
A row with the ratios, hardware, versions and commit is appended to benchmarks/results/step_time.jsonl.
"""

from __future__ import annotations

import argparse
import random
import time
import warnings
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy
import torch
from machine import RESULTS, environment
from scipy.stats import bootstrap
from transformers import TrainerCallback
from transformers.trainer_callback import PrinterCallback
from trl import GRPOConfig, GRPOTrainer

from bandpo.files import append_line, write_json
from bandpo.models import load_model, scratch_model
from bandpo.training import BandGRPOConfig, BandGRPOTrainer

ARMS = ("stock", "clip", "band")
RATIOS = (("clip", "stock"), ("band", "clip"), ("band", "stock"))
CLOCKS = ("wall", "cpu")


class Stopwatch(TrainerCallback):
    """Wall and CPU seconds from the first update of a `train()` to the log line of its last."""

    def on_step_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        if state.global_step == 0:
            self.begin = self._now()

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, Any] | None = None, **_: Any) -> None:
        if logs and "entropy" in logs:
            now = self._now()
            self.seconds = {clock: now[clock] - self.begin[clock] for clock in CLOCKS}
            if "completions/mean_length" in logs:
                self.length = logs["completions/mean_length"]

    @staticmethod
    def _now() -> dict[str, float]:
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        return {"wall": time.perf_counter(), "cpu": time.process_time()}


class Arm:
    """One trainer that can run the same rollout again and again."""

    def __init__(self, name: str, options: argparse.Namespace, directory: Path) -> None:
        from datasets import Dataset

        model, tokenizer = _load(options)
        sums = [f"{10 + i % 90} + {10 + 7 * i % 90} = " for i in range(4 * options.completions // options.group)]
        settings = _settings(options, directory / name)
        config = {
            "stock": lambda: GRPOConfig(**settings),
            "clip": lambda: BandGRPOConfig(rule={"name": "clip"}, **settings),
            "band": lambda: BandGRPOConfig(rule={"name": "band"}, **settings),
        }[name]()
        self.trainer = (GRPOTrainer if name == "stock" else BandGRPOTrainer)(
            model=model,
            reward_funcs=_reward,
            args=config,
            train_dataset=Dataset.from_list([{"prompt": text} for text in sums]),
            processing_class=tokenizer,
        )
        self.trainer.remove_callback(PrinterCallback)
        self.stopwatch = Stopwatch()
        self.trainer.add_callback(self.stopwatch)
        self._weights = {key: value.clone() for key, value in model.state_dict().items()}
        self._model = model

    def rollout(self, seed: int) -> tuple[dict[str, float], float]:
        """(seconds by clock, mean length of the completions) of one rollout and its updates."""
        self._model.load_state_dict(self._weights)
        self.trainer.optimizer = self.trainer.lr_scheduler = None
        torch.manual_seed(seed)
        self.trainer.train()
        return self.stopwatch.seconds, self.stopwatch.length


def _reward(completions: list[str], **_: Any) -> list[float]:
    """Differs within a group whatever the model writes, so that every update has a gradient."""
    return [sum(map(ord, text)) % 7 / 6 for text in completions]


def _load(options: argparse.Namespace) -> tuple[Any, Any]:
    if options.model != "scratch":
        return load_model(options.model)
    return scratch_model(hidden_size=128, layers=4, heads=4, positions=64 + options.length, seed=0)


def _settings(options: argparse.Namespace, directory: Path) -> dict[str, Any]:
    on_cpu = not torch.cuda.is_available()
    return {
        "output_dir": str(directory),
        "max_steps": options.updates,
        "generation_batch_size": options.completions,
        "per_device_train_batch_size": options.completions // options.updates,
        "num_generations": options.group,
        "max_completion_length": options.length,
        "learning_rate": 1e-4,
        "lr_scheduler_type": "constant",
        "temperature": 1.0,
        "logging_steps": 1,
        "save_strategy": "no",
        "report_to": [],
        "disable_tqdm": True,
        "seed": 0,
        "use_cpu": on_cpu,
        "bf16": not on_cpu,
        "gradient_checkpointing": False,
        "dataloader_pin_memory": not on_cpu,
    }


def measure(options: argparse.Namespace) -> list[dict[str, dict[str, float]]]:
    """For each repeat: arm -> clock -> seconds. The first, discarded repeat warms everything up."""
    order = random.Random(0)
    repeats: list[dict[str, dict[str, float]]] = []
    began = time.perf_counter()
    with TemporaryDirectory() as directory:
        arms = {name: Arm(name, options, Path(directory)) for name in ARMS}
        for repeat in range(options.repeats + 1):
            if len(repeats) >= 2 and time.perf_counter() - began > options.max_seconds:
                break
            seconds, lengths = {}, {}
            for name in order.sample(ARMS, len(ARMS)):
                seconds[name], lengths[name] = arms[name].rollout(seed=repeat)
            if len(set(lengths.values())) > 1:
                raise RuntimeError(f"the trainers sampled different completions: mean lengths {lengths}")
            if repeat:
                repeats.append(seconds)
                times = "  ".join(f"{name} {seconds[name]['wall']:.3f} s" for name in ARMS)
                print(f"repeat {repeat:3}/{options.repeats}  {times}", flush=True)
    return repeats


def compare(repeats: list[dict[str, dict[str, float]]]) -> dict[str, dict[str, float]]:
    """'a/b clock' -> median ratio over the repeats, with its 95% bootstrap interval."""
    found = {}
    for above, below in RATIOS:
        for clock in CLOCKS:
            ratios = numpy.array([r[above][clock] / r[below][clock] for r in repeats])
            interval = bootstrap((ratios,), numpy.median, method="percentile", rng=0).confidence_interval
            found[f"{above}/{below} {clock}"] = {
                "median": float(numpy.median(ratios)),
                "low": float(interval.low),
                "high": float(interval.high),
            }
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="scratch", help="scratch, or what bandpo train takes as model.path")
    parser.add_argument("--repeats", type=int, default=20)
    parser.add_argument("--max-seconds", type=float, default=500.0, help="start no repeat after this time")
    parser.add_argument("--completions", type=int, default=256, help="of a rollout")
    parser.add_argument("--updates", type=int, default=4, help="of a rollout")
    parser.add_argument("--group", type=int, default=8, help="completions of a prompt")
    parser.add_argument("--length", type=int, default=32, help="tokens of a completion at most")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--json", type=Path, help="also write the times of every repeat there")
    options = parser.parse_args()
    if options.repeats < 2:
        parser.error(f"--repeats is {options.repeats}; allowed: 2 or more")
    if options.completions % (options.updates * options.group):
        parser.error(
            f"--completions is {options.completions}; allowed: multiples of --updates x --group = "
            f"{options.updates * options.group}"
        )
    torch.set_num_threads(options.threads)
    warnings.simplefilter("ignore")
    repeats = measure(options)
    ratios = compare(repeats)
    row = {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "model": "scratch" if options.model == "scratch" else Path(options.model).name,
        "repeats": len(repeats),
        **{key: getattr(options, key) for key in ("completions", "updates", "group", "length")},
        "seconds": {n: float(numpy.median([r[n]["wall"] for r in repeats])) for n in ARMS},
        "ratios": ratios,
        **environment("cuda" if torch.cuda.is_available() else "cpu"),
        **{package: metadata.version(package) for package in ("trl", "transformers")},
    }
    RESULTS.mkdir(parents=True, exist_ok=True)
    append_line(RESULTS / "step_time.jsonl", row)
    if options.json:
        write_json(options.json, {**row, "times": repeats})
    for name, ratio in ratios.items():
        print(f"{name:16} {ratio['median']:.4f}  [{ratio['low']:.4f}, {ratio['high']:.4f}]")


if __name__ == "__main__":
    main()
