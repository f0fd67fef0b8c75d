"""What a study keeps of a finished run, read only from the files in its directory."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path

import yaml

from bandpo.evaluation.result import PART, EvaluationResult
from bandpo.evaluation.store import GREEDY, RESULT, SAMPLES, read_grades
from bandpo.files import read_lines
from bandpo.lab.metrics import BeforeAfter, Environment, HeldOut, Rollouts, Series, TrainingRecord, Updates
from bandpo.runs.run_dir import RunDirectory
from bandpo.runs.summary import RunSummary

DIGITS = 4
MOST_ENTRIES, LEAST_ENTRIES = 64, 16  # of a series
STUDY_ENTRIES = 6000  # of a series over all runs of a study, so that metrics.json stays below 1 MB

Row = Mapping[str, float | None]  # of metrics.jsonl

# Name in metrics.json -> names in metrics.jsonl; the first one that a row has counts.
ROLLOUT_SERIES = {
    "reward": ("reward",),
    "uniform": ("frac_reward_zero_std",),
    "length": ("completions/mean_length",),
    "truncated": ("completions/clipped_ratio",),
    "tokens": ("num_tokens",),
}
UPDATE_SERIES = {
    "entropy": ("entropy",),
    "clip_fraction_low": ("band/clip_fraction_low", "clip_ratio/low_mean"),
    "clip_fraction_high": ("band/clip_fraction_high", "clip_ratio/high_mean", "cispo_clip_ratio"),
    "divergence": ("band/divergence",),
    "grad_norm": ("grad_norm",),
    "ratio_max": ("band/ratio_max",),
    "ratio_min": ("band/ratio_min",),
}
SERIES = {**ROLLOUT_SERIES, **UPDATE_SERIES}
EXTREMES = {"ratio_max": max, "ratio_min": min}  # of several updates; other series keep the mean


def read_summary(run: RunDirectory) -> RunSummary | None:
    """The summary of a run; None if it did not finish."""
    return RunSummary.load(run.summary) if run.summary.exists() else None


def read_environment(run: RunDirectory) -> Environment:
    """Versions and hardware of a run."""
    data = json.loads(run.environment.read_text(encoding="utf-8"))
    keys = ("python", "packages", "commit", "platform", "gpus")
    return Environment(**{key: data[key] for key in keys}, threads=data["cpu_threads"])


def entries_per_run(runs: int) -> int:
    """Maximum number of entries per series for each run of a study with this many runs."""
    return max(LEAST_ENTRIES, min(MOST_ENTRIES, STUDY_ENTRIES // runs))


def collect_run(path: Path, entries: int = MOST_ENTRIES) -> TrainingRecord:
    """What metrics.json keeps of a finished run, with at most this many entries per series of updates."""
    run = RunDirectory.open(path)
    summary = read_summary(run)
    assert summary is not None
    config = yaml.safe_load(run.config.read_text(encoding="utf-8"))
    rows = list(read_lines(run.metrics))
    rollouts = rollouts_of(rows)
    return TrainingRecord(
        rule=config["rule"],
        seconds=summary.seconds,
        stopped_by=summary.stopped_by,
        updates_per_rollout=rollouts.step[1] - rollouts.step[0] if rollouts.step[1:] else summary.steps,
        alarms=[(event["step"], event["alarm"], event["event"]) for event in read_lines(run.alarms)],
        rollouts=rollouts,
        updates=updates_of(rows, entries),
        evaluation=BeforeAfter(
            before=_held_out(run.evaluation("before")),
            after=_held_out(run.evaluation("after")),
        )
        if config["eval"]
        else None,
    )


def rollouts_of(rows: Sequence[Mapping[str, float]]) -> Rollouts:
    """The rollouts among the rows of metrics.jsonl."""
    kept = [row for row in rows if "reward" in row]
    series = {name: [rounded(logged(row, name)) for row in kept] for name in ROLLOUT_SERIES}
    return Rollouts(step=[int(row["step"]) for row in kept], **series)


def updates_of(rows: Sequence[Mapping[str, float]], most: int) -> Updates:
    """The rows of metrics.jsonl, binned into at most this many entries of equal size."""
    size = max(1, math.ceil(len(rows) / most))
    bins = [rows[i : i + size] for i in range(0, len(rows), size)]
    elapsed, seconds = 0.0, Series()
    for members in bins:
        elapsed += sum(row.get("step_time", 0.0) for row in members)
        seconds.append(rounded(elapsed))

    def series(name: str) -> Series:
        reduce: Callable[[Iterable[float]], float] = EXTREMES.get(name, _mean)
        values = ([value for row in members if (value := logged(row, name)) is not None] for members in bins)
        return [rounded(reduce(of_bin)) if of_bin else None for of_bin in values]

    return Updates(
        bin=size,
        step=[int(members[-1]["step"]) for members in bins],
        **{name: series(name) for name in UPDATE_SERIES},
        seconds=seconds,
    )


def logged(row: Row, name: str) -> float | None:
    """The value that a row of metrics.jsonl has for a series of metrics.json; None if it has none."""
    return next((row[key] for key in SERIES[name] if row.get(key) is not None), None)


def _mean(values: Iterable[float]) -> float:
    listed = list(values)
    return sum(listed) / len(listed)


def rounded(value: float | None) -> float | None:
    """A number with 4 significant digits, whole numbers exactly; None if it is not finite."""
    if value is None or not math.isfinite(value):
        return None
    return int(value) if float(value).is_integer() else float(f"{value:.{DIGITS}g}")


def _held_out(path: Path) -> HeldOut:
    result = EvaluationResult.load(path / RESULT)
    correct, greedy = (
        [sum(reward >= 1 for reward in grade.rewards) for grade in read_grades(path / name)]
        for name in (SAMPLES, GREEDY)
    )
    means = {name: estimate.mean for name, estimate in result.metrics.items()}
    return HeldOut(
        samples=result.samples,
        temperature=result.temperature,
        correct=correct,
        greedy=greedy,
        entropy=rounded(means.get("entropy")),
        length=rounded(means.get("length")),
        truncated=rounded(means.get("truncated")),
        distinct=rounded(means.get(f"distinct@{result.samples}")),
        spread=rounded(means.get("spread")),
        parts={
            m[1]: value
            for name in means
            if (m := PART.fullmatch(name)) and (value := rounded(means[name])) is not None
        },
    )


def mean_of(path: Path, metric: str) -> float:
    """A metric of the trainer averaged over a run's updates.

    Raises:
        ValueError: If the run did not report it.
    """
    values = [row[metric] for row in read_lines(RunDirectory.open(path).metrics) if row.get(metric) is not None]
    if not values:
        raise ValueError(f"run {str(path)!r} reports no metric {metric!r}")
    return _mean(values)
