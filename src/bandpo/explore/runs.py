"""Runs and studies as data of the explorer's page: curves, alarms, clipped shares by probability, entropy ledger."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from bandpo.core.rules import ClipRule
from bandpo.explore.sources import check_run, kept_within
from bandpo.files import read_lines
from bandpo.lab.collect import ROLLOUT_SERIES, SERIES, UPDATE_SERIES, rollouts_of, rounded, updates_of
from bandpo.lab.comparison import COMPUTE, compare
from bandpo.lab.metrics import FinishedRun, Rollouts, StudyResult, Updates
from bandpo.lab.schema import described_in
from bandpo.lab.tables import point_text
from bandpo.report import ledger, why
from bandpo.report.curves import CURVES, finite
from bandpo.report.ledger_tables import NET, UNIT
from bandpo.report.run_page import describe_run
from bandpo.runs.run_dir import RunDirectory
from bandpo.training.batches import TokenBatch, list_batches
from bandpo.words import first_line

UNDRAWN = ("tokens",)  # they just grow with the updates
START = ""  # the version before anything was read

Data = dict[str, Any]  # JSON


def metrics() -> list[Data]:
    """The curves that a run can have: name, title, what it means, grid ("rollouts" or "updates"), and its axis."""
    titles = {name: (title, share, log) for title, name, share, log in CURVES}
    meanings = described_in(Rollouts)[1] | described_in(Updates)[1]
    names = [*titles, *(name for name in SERIES if name not in titles and name not in UNDRAWN)]
    found = []
    for name in names:
        title, share, log = titles.get(name, (name.replace("_", " ").capitalize(), False, False))
        grid = "rollouts" if name in ROLLOUT_SERIES else "updates"
        found.append({"name": name, "title": title, "text": meanings[name], "grid": grid, "share": share, "log": log})
    return found


def run_data(path: Path, name: str, version: str = START, root: Path | None = None) -> Data:
    """A run directory as the page reads it.

    Args:
        path: The run directory.
        name: Display name.
        version: Version of an earlier answer, to get only the updates since then. If the file has been replaced,
            as after a resume, everything is sent, with "whole": true.
        root: Nothing outside of it is read; by default the run directory.

    Raises:
        ValueError: If there is no run directory, or one of its files points outside of `root`.
    """
    run = RunDirectory.open(path)
    root = path.resolve() if root is None else root
    check_run(run, root)
    problems: list[str] = []
    label, seed, rule, settings = path.name, 0, None, str(path)
    try:
        record = describe_run(run)
        label, seed, rule, settings = record.label, record.seed, record.rule, record.settings
    except Exception as error:  # damaged YAML raises arbitrary errors, and so does anything but a mapping
        problems.append(f"{str(run.config)!r} is not the configuration of a run: {first_line(error)}")
    rows, version, whole = _rows_since(run.metrics, version, problems)
    curves = {
        "name": name,
        "label": label,
        "group": hashlib.sha256(settings.encode()).hexdigest()[:12],
        "seed": seed,
        "point": "",
        "state": _state(run),
        "alarms": _alarms(run, problems),
        **_curves(rollouts_of(rows), updates_of(rows, max(1, len(rows)))),
    }
    recorded = _recorded(run, rule, root, problems)
    return {"runs": [curves], "recorded": recorded, "version": version, "whole": whole, "problems": problems}


def study_data(path: Path, name: str) -> Data:
    """A study's metrics.json as the page reads it: its finished runs, and the compute of its methods to the target.

    Raises:
        ValueError: If the file is damaged.
    """
    study = StudyResult.load(path)
    waiting = sum(run.status == "waiting" for run in study.runs)
    problems = [f"{name}: {waiting} of {len(study.runs)} runs are missing."] if waiting else []
    problems += [
        f"{name}: {run.method} {point_text(run.point)} seed {run.seed} failed: {run.error}" for run in study.failed
    ]
    return {
        "runs": [_study_run(run, name) for run in study.finished],
        "methods": list(study.study.methods),
        "reference": study.study.reference,
        "saving": _savings(study),
        "problems": problems,
    }


def _study_run(run: FinishedRun, study: str) -> Data:
    point = point_text(run.point)
    return {
        "name": f"{study}, {point}" if point else study,
        "label": run.method,
        "group": f"{study}/{run.method}/{point}",
        "seed": run.seed,
        "point": point,
        "state": run.status,
        "alarms": run.alarms,
        **_curves(run.rollouts, run.updates),
    }


def _curves(rollouts: Rollouts, updates: Updates) -> Data:
    """The steps of rollouts and updates, and each series that has a number."""
    series = {name: getattr(rollouts, name) for name in ROLLOUT_SERIES if name not in UNDRAWN}
    series |= {name: getattr(updates, name) for name in UPDATE_SERIES}
    return {
        "bin": updates.bin,
        "steps": {"rollouts": rollouts.step, "updates": updates.step},
        "series": {name: values for name, values in series.items() if any(v is not None for v in values)},
    }


def _rows_since(path: Path, version: str, problems: list[str]) -> tuple[list[dict[str, float]], str, bool]:
    """The rows of metrics.jsonl after a version, the version now, and whether these are all rows."""
    if not path.is_file():
        return [], START, True
    with path.open("rb") as stream:
        number = str(path.stat().st_ino)
        before, _, offset = version.partition("-")
        start = int(offset) if before == number and offset.isdigit() and int(offset) <= path.stat().st_size else 0
        stream.seek(start)
        text = stream.read()
    end = text.rfind(b"\n") + 1  # an incomplete last line waits for the next call
    rows = list(_numbers(path, text[:end].splitlines(), problems if start == 0 else []))
    return rows, f"{number}-{start + end}", start == 0


def _numbers(path: Path, lines: Iterable[bytes], problems: list[str]) -> Iterable[dict[str, float]]:
    """Rows reduced to their finite numbers; a bad line becomes a problem."""
    for number, line in enumerate(lines, 1):
        try:
            row = json.loads(line)
            if not isinstance(row, dict) or not isinstance(row.get("step"), int):
                raise ValueError("not an object with a step")
        except (ValueError, RecursionError) as error:
            if line.strip():
                problems.append(
                    f'{path}:{number}: is not a log line ({first_line(error)}), expected {{"step": 1, ...}}'
                )
            continue
        yield {key: value for key, value in row.items() if finite(value) and not isinstance(value, bool)}


def _state(run: RunDirectory) -> str:
    try:
        return run.state()
    except (ValueError, KeyError, TypeError):
        return "unknown"


def _alarms(run: RunDirectory, problems: list[str]) -> list[tuple[int, str, str]]:
    try:
        return [(int(event["step"]), str(event["alarm"]), str(event["event"])) for event in read_lines(run.alarms)]
    except (ValueError, KeyError, TypeError) as error:
        problems.append(f"{str(run.alarms)!r} is damaged: {first_line(error)}")
        return []


def _recorded(run: RunDirectory, rule: ClipRule | None, root: Path, problems: list[str]) -> Data | None:
    """What the recorded batches show about the run's own rule; None without batches or without such a rule."""
    files = list(kept_within(list_batches(run.batches), root, problems))
    if not files:
        return None
    if rule is None or not rule.needs <= why.RECORDED:
        problems.append("The recorded batches lack what this run's rule reads, so there are no clipped shares.")
        return None
    try:
        return _recorded_of(tuple((file, file.stat().st_mtime_ns, file.stat().st_size) for file in files), rule)
    except (ValueError, OSError) as error:
        problems.append(first_line(error))
        return None


@lru_cache(maxsize=64)
def _recorded_of(files: tuple[tuple[Path, int, int], ...], rule: ClipRule) -> Data:
    batches = [TokenBatch.load(file) for file, _, _ in files]
    return {"rule": why.name_rule(rule), "clipped": _clipped(rule, batches), "ledger": _ledger(rule, batches)}


def _clipped(rule: ClipRule, batches: Sequence[TokenBatch]) -> Data:
    """Clipped tokens by recorded update and bin of the old probability, among tokens with an advantage."""
    steps: list[int] = []
    tokens, above, below = [], [], []
    labels: list[str] = []
    for batch in batches:
        counts = why.count_clipped({"own": rule}, [batch])
        outside = counts.outside[0]  # bin, side, sign
        steps.append(batch.step)
        tokens.append(counts.tokens.sum(1).tolist())
        above.append((outside[:, 1].sum(1) if rule.two_sided else outside[:, 1, 1]).tolist())
        below.append((outside[:, 0].sum(1) if rule.two_sided else outside[:, 0, 0]).tolist())
        labels = why.bin_labels(counts.edges)
    return {"steps": steps, "bins": labels, "tokens": tokens, "above": above, "below": below}


def _ledger(rule: ClipRule, batches: Sequence[TokenBatch]) -> Data | None:
    """The entropy ledger by recorded update, in `UNIT`."""
    seen = [batch for batch in batches if ledger.has_slopes(batch)]
    if not seen:
        return None
    rows = []
    for batch in seen:
        whole = ledger.whole(rule, [batch])
        values = 1000 * np.append(whole.entries[0], whole.net) / max(1, int(whole.tokens[0]))
        rows.append([rounded(value) for value in values])
    return {"unit": UNIT, "steps": [b.step for b in seen], "columns": [*ledger.COLUMNS, NET], "rows": rows}


def _savings(study: StudyResult) -> list[Mapping[str, object]]:
    """Each method's compute to reach the reference's reward, as a ratio to the reference's own."""
    found: list[Mapping[str, object]] = []
    for comparison in compare(study):
        for result in comparison.results:
            if result.target is None or result.method == comparison.reference:
                continue
            ratios = {kind: None if (r := result.target.ratios[kind]) is None else asdict(r) for kind in COMPUTE}
            found.append({
                "point": point_text(comparison.point), "method": result.method, "reached": result.target.reached,
                "runs": result.target.runs, "ratios": ratios,
            })  # fmt: skip
    return found
