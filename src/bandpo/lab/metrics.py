"""metrics.json: everything that the tables and figures of a study are made from (docs/lab.md)."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import yaml

from bandpo.evaluation.store import GREEDY, RESULT, SAMPLES, read_grades
from bandpo.files import read_lines, write_atomic
from bandpo.runs.run_dir import RunDirectory

METRICS = "metrics.json"
FORMAT = 1
DIGITS = 4
MOST_ENTRIES = 64

# Name in metrics.json -> names in metrics.jsonl, the first that a row has counts.
ROLLOUT_SERIES = {
    "reward": ("reward",),
    "uniform": ("frac_reward_zero_std",),
    "length": ("completions/mean_length",),
    "truncated": ("completions/clipped_ratio",),
    "tokens": ("num_tokens",),
}
UPDATE_SERIES = {
    "entropy": ("entropy",),
    "clip_low": ("band/clip_fraction_low", "clip_ratio/low_mean"),
    "clip_high": ("band/clip_fraction_high", "clip_ratio/high_mean", "cispo_clip_ratio"),
    "divergence": ("band/divergence",),
    "grad_norm": ("grad_norm",),
    "ratio_max": ("band/ratio_max",),
    "ratio_min": ("band/ratio_min",),
}
SERIES = {**ROLLOUT_SERIES, **UPDATE_SERIES}
EXTREMES = {"ratio_max": max, "ratio_min": min}  # of several updates; other series keep the mean


def collect_run(path: Path) -> dict[str, Any]:
    """What metrics.json keeps of a finished run, from the files in its directory alone."""
    run = RunDirectory.open(path)
    summary = json.loads(run.summary.read_text(encoding="utf-8"))
    config = yaml.safe_load(run.config.read_text(encoding="utf-8"))
    rows = list(read_lines(run.metrics))
    rollouts = [row for row in rows if "reward" in row]
    starts = [row["step"] for row in rollouts]
    return {
        "rule": config["rule"],
        "seconds": summary["seconds"],
        "stopped_by": summary["stopped_by"],
        "updates_per_rollout": starts[1] - starts[0] if starts[1:] else summary["steps"],
        "alarms": [[event["step"], event["alarm"], event["event"]] for event in read_lines(run.alarms)],
        "rollouts": {
            "step": starts,
            **{name: [_figure(logged(row, name)) for row in rollouts] for name in ROLLOUT_SERIES},
        },
        "updates": _updates(rows),
        "evaluation": {when: _evaluation(run.evaluation(when)) for when in ("before", "after")}
        if config["eval"]
        else None,
    }


def _updates(rows: list[dict[str, Any]]) -> dict[str, Any]:
    size = max(1, math.ceil(len(rows) / MOST_ENTRIES))
    bins = [rows[i : i + size] for i in range(0, len(rows), size)]
    elapsed, seconds = 0.0, []
    for rows_of_bin in bins:
        elapsed += sum(row.get("step_time", 0.0) for row in rows_of_bin)
        seconds.append(_figure(elapsed))

    def series(name: str) -> list[float | None]:
        reduce: Callable[[Iterable[float]], float] = EXTREMES.get(name, _mean)
        found = ([value for row in own if (value := logged(row, name)) is not None] for own in bins)
        return [_figure(reduce(values)) if values else None for values in found]

    return {
        "bin": size,
        "step": [own[-1]["step"] for own in bins],
        **{name: series(name) for name in UPDATE_SERIES},
        "seconds": seconds,
    }


def logged(row: dict[str, Any], name: str) -> float | None:
    """The value that a row of metrics.jsonl has of a series of metrics.json; None if it has none."""
    return next((row[key] for key in SERIES[name] if row.get(key) is not None), None)


def _mean(values: Iterable[float]) -> float:
    listed = list(values)
    return sum(listed) / len(listed)


def _figure(value: float | None) -> float | None:
    if value is None or not math.isfinite(value):
        return None
    return int(value) if float(value).is_integer() else float(f"{value:.{DIGITS}g}")


def _evaluation(path: Path) -> dict[str, Any]:
    result = json.loads((path / RESULT).read_text(encoding="utf-8"))
    correct, greedy = (
        [sum(reward >= 1 for reward in grade.rewards) for grade in read_grades(path / name)]
        for name in (SAMPLES, GREEDY)
    )
    means = {name: estimate["mean"] for name, estimate in result["metrics"].items()}
    return {
        "samples": result["samples"],
        "temperature": result["temperature"],
        "correct": correct,
        "greedy": greedy,
        **{name: _figure(means.get(name)) for name in ("entropy", "length", "truncated")},
    }


def mean_of(path: Path, metric: str) -> float:
    """A metric of the trainer averaged over a run's updates.

    Raises:
        ValueError: If the run did not report it.
    """
    values = [row[metric] for row in read_lines(RunDirectory.open(path).metrics) if row.get(metric) is not None]
    if not values:
        raise ValueError(f"run {str(path)!r} reports no metric {metric!r}")
    return _mean(values)


def write_metrics(path: Path, metrics: dict[str, Any]) -> None:
    """One line a run, so that versions of the file can be compared."""
    head = json.dumps({key: value for key, value in metrics.items() if key != "runs"}, indent=1)
    runs = ",\n".join(json.dumps(run, separators=(",", ":")) for run in metrics["runs"])
    write_atomic(path, f'{head[:-2]},\n "runs": [\n{runs}\n]}}\n')


def read_metrics(path: Path) -> dict[str, Any]:
    """The content of metrics.json.

    Raises:
        ValueError: If there is none, or it has another format.
    """
    try:
        metrics = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ValueError(f"{str(path)!r} does not exist; `bandpo compare STUDY --output DIR` writes it") from None
    except ValueError as error:
        raise ValueError(f"{str(path)!r} is damaged: {error}") from error
    if not isinstance(metrics, dict) or metrics.get("format") != FORMAT:
        raise ValueError(f"{str(path)!r} has another format, allowed is {FORMAT}")
    return metrics
