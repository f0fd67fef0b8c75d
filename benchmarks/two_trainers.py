"""TRL beside verl: the table of the runs of two_trainers.yaml and verl_learning.py.

    python benchmarks/two_trainers.py DIR/trl DIR/verl

Writes a row per run to benchmarks/results/two_trainers.jsonl, and prints the means over seeds with 95% intervals and
differences paired by seed. The numbers are each trainer's own metrics.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator
from pathlib import Path
from statistics import fmean
from typing import Any

from machine import RESULTS, environment

from bandpo.files import read_lines, to_line, write_atomic
from bandpo.lab.metrics import StudyResult
from bandpo.lab.scores import success
from bandpo.lab.statistics import difference_p, mean_interval
from bandpo.lab.tables import brackets

COLUMNS: dict[str, Callable[[dict[str, Any]], float]] = {
    "reward, first rollout": lambda row: row["reward"][0],
    "reward, last rollout": lambda row: row["reward"][-1],
    "mean reward": lambda row: fmean(row["reward"]),
    "mean@4 after": lambda row: row["after"],
    "entropy, last rollout": lambda row: row["entropy"][-1],
    "clipped": lambda row: fmean(row["clipped"]),
}
# What differences are to.
TRAINER, METHOD = "TRL", "GRPO"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("trl", type=Path, help="directory of bandpo compare benchmarks/two_trainers.yaml")
    parser.add_argument("verl", type=Path, help="directory of verl_learning.py")
    options = parser.parse_args()
    rows = [*trl_rows(options.trl), *verl_rows(options.verl)]
    where = environment("cpu")
    write_atomic(RESULTS / "two_trainers.jsonl", "".join(to_line(row | where) for row in rows))
    print(table(rows))


def trl_rows(directory: Path) -> Iterator[dict[str, Any]]:
    for run in StudyResult.load(directory / "metrics.json").finished:
        every = run.updates_per_rollout
        sides = zip(run.updates.clip_fraction_low, run.updates.clip_fraction_high, strict=True)
        clipped = [low + high for low, high in sides]
        yield {
            "trainer": "TRL",
            "method": run.method,
            "seed": run.seed,
            "reward": run.rollouts.reward,
            "entropy": per_rollout(run.updates.step, run.updates.entropy, every),
            "clipped": per_rollout(run.updates.step, clipped, every),
            "before": success(run.evaluation.before),
            "after": success(run.evaluation.after),
        }


def per_rollout(steps: list[int], values: list[Any], every: int) -> list[float]:
    """Means over the updates of each rollout."""
    count = -(-steps[-1] // every)
    return [fmean(v for s, v in zip(steps, values, strict=True) if (s - 1) // every == i) for i in range(count)]


def verl_rows(directory: Path) -> Iterator[dict[str, Any]]:
    for path in sorted(directory.glob("*-*.jsonl"), key=lambda path: (not path.stem.startswith(METHOD), path.stem)):
        method, seed = path.stem.split("-")
        lines = {line["step"]: line["data"] for line in read_lines(path)}
        steps = [lines[step] for step in sorted(lines) if step]
        yield {
            "trainer": "verl",
            "method": method,
            "seed": int(seed),
            "reward": [step["critic/score/mean"] for step in steps],
            "entropy": [step["actor/entropy_loss"] for step in steps],
            "clipped": [step["actor/band/clip_fraction"] for step in steps],
            "before": lines[0]["val-core/sums/acc/mean@4"],
            "after": steps[-1]["val-core/sums/acc/mean@4"],
        }


def table(rows: list[dict[str, Any]]) -> str:
    """A row per trainer and method, then differences paired by seed: between methods, and between trainers."""
    of: dict[tuple[str, str], dict[int, dict[str, Any]]] = {}
    for row in rows:
        of.setdefault((row["trainer"], row["method"]), {})[row["seed"]] = row
    lines = ["| trainer | method | " + " | ".join(COLUMNS) + " |", "|---|---|" + "---:|" * len(COLUMNS)]
    for (trainer, method), runs in of.items():
        cells = [brackets(mean_interval([column(run) for run in runs.values()])) for column in COLUMNS.values()]
        lines.append(f"| {trainer} | {method} | {' | '.join(cells)} |")
    for trainer, method in of:
        if method != METHOD:
            cells = differences(of[trainer, method], of[trainer, METHOD])
            lines.append(f"| {trainer} | {method} - {METHOD} | {' | '.join(cells)} |")
    for trainer, method in of:
        if trainer != TRAINER:
            cells = differences(of[trainer, method], of[TRAINER, method])
            lines.append(f"| {trainer} - {TRAINER} | {method} | {' | '.join(cells)} |")
    return "\n".join(lines)


def differences(runs: dict[int, dict[str, Any]], reference: dict[int, dict[str, Any]]) -> Iterator[str]:
    seeds = sorted(runs.keys() & reference.keys())
    for column in COLUMNS.values():
        ours, theirs = [[column(found[seed]) for seed in seeds] for found in (runs, reference)]
        p = difference_p(ours, theirs)
        difference = mean_interval([a - b for a, b in zip(ours, theirs, strict=True)])
        yield brackets(difference) if p is None else f"{brackets(difference)}, p = {p:.3f}"


if __name__ == "__main__":
    main()
