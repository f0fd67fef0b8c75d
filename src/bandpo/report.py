"""Pictures and a short report from what a run left on disk (needs the `report` extra)."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from itertools import islice
from pathlib import Path
from typing import Any

import yaml

from bandpo.evaluation.store import SAMPLES, read_grades
from bandpo.files import read_lines, write_atomic
from bandpo.training.run_dir import RunDirectory
from bandpo.training.summary import metric_rows

# Colour-blind safe (Okabe-Ito).
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")

# One panel each: title, then (metric, legend) pairs.
PANELS: tuple[tuple[str, tuple[tuple[str, str], ...]], ...] = (
    ("Mean reward of the rollout", (("reward", "reward"),)),
    ("Entropy (nats a token)", (("entropy", "entropy"),)),
    (
        "Share of tokens clipped",
        (("band/clip_fraction_high", "A > 0, above upper"), ("band/clip_fraction_low", "A < 0, below lower")),
    ),
    ("Largest and smallest ratio", (("band/ratio_max", "largest"), ("band/ratio_min", "smallest"))),
)


def _pyplot() -> Any:
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    pyplot.rcParams.update(
        {
            "figure.dpi": 150,
            "axes.spines.top": False,
            "axes.spines.right": False,
            "axes.grid": True,
            "grid.alpha": 0.3,
            "axes.prop_cycle": pyplot.cycler(color=COLOURS),
            "legend.frameon": False,
        }
    )
    return pyplot


def write_run_report(path: Path) -> Path:
    """Write report.md and curves.png into a run directory, from the files in it alone.

    Returns:
        The path of report.md.
    """
    run = RunDirectory.open(path)
    rows = list(read_lines(run.metrics))
    config = yaml.safe_load(run.config.read_text(encoding="utf-8"))
    environment = json.loads(run.environment.read_text(encoding="utf-8"))
    lines = [f"# {run.path.name}", "", config.get("description") or "", ""]
    if run.summary.exists():
        lines += _summary_lines(json.loads(run.summary.read_text(encoding="utf-8")))
    else:
        lines += ["The run has no summary: it did not finish.", ""]
    if rows:
        plot_curves(rows, run.path / "curves.png")
        lines += ["![Reward, entropy, clipped share and ratio extremes over updates](curves.png)", ""]
    lines += _sample_lines(run)
    lines += [
        "## How to repeat it",
        "",
        "```",
        " ".join(_portable(environment["command"])),
        "```",
        "",
        f"Commit {environment['commit'] or 'unknown'}; Python {environment['python']}; "
        + ", ".join(f"{name} {version}" for name, version in environment["packages"].items())
        + f"; {', '.join(environment['gpus']) or str(environment['cpu_threads']) + ' CPU threads'}.",
        "",
        f"Rule: `{json.dumps(config['rule'])}`. The whole configuration is in config.yaml.",
        "",
    ]
    write_atomic(run.report, "\n".join(lines))
    return run.report


def _portable(command: list[str]) -> list[str]:
    return ["bandpo", *command[1:]]


def _summary_lines(summary: dict[str, Any]) -> list[str]:
    before, after = summary["before"], summary["after"]
    steps = f"{summary['steps']} updates from {summary['rollouts']} rollouts, {summary['seconds']:.0f} s in all."
    if not (before and after):
        return [steps, ""]
    return [
        f"{steps} {before['prompts']} held-out problems, {before['samples']} samples each; "
        "95% intervals over problems.",
        "",
        "| | before | after |",
        "|---|---|---|",
        *(f"| {' | '.join(row)} |" for row in metric_rows([before, after])),
        "",
    ]


def _sample_lines(run: RunDirectory, count: int = 5) -> list[str]:
    lines = []
    for when in ("before", "after"):
        grades = list(islice(read_grades(run.evaluation(when) / SAMPLES), count))
        if grades:
            lines += [f"## Held-out completions {when} training", "", "| question | answer | completion | reward |"]
            lines.append("|---|---|---|---|")
            for grade in grades:
                cells = map(_cell, (grade.problem.question, grade.problem.answer, grade.completions[0].text))
                lines.append(f"| {' | '.join(cells)} | {grade.rewards[0]:g} |")
            lines.append("")
    return lines


def _cell(text: str, width: int = 300) -> str:
    short = text if len(text) <= width else text[: width - 1] + "…"
    return short.replace("\n", "⏎").replace("|", "\\|").replace("`", "'")


def plot_curves(rows: list[dict[str, Any]], path: Path) -> None:
    """The four curves of a run against the update number."""
    pyplot = _pyplot()
    figure, axes = pyplot.subplots(2, 2, figsize=(9, 6), layout="constrained")
    for axis, (title, series) in zip(axes.flat, PANELS, strict=True):
        for key, legend in series:
            points = [(row["step"], row[key]) for row in rows if _finite(row.get(key))]
            if points:
                steps, values = zip(*points, strict=True)
                axis.plot(steps, values, label=legend, marker="." if len(points) < 60 else None)
        axis.set_title(title, fontsize=10)
        axis.set_xlabel("update")
        if len(series) > 1:
            axis.legend(fontsize=8)
    axes.flat[0].set_ylim(-0.02, max(1.02, axes.flat[0].get_ylim()[1]))
    axes.flat[1].set_ylim(bottom=0)
    axes.flat[2].set_ylim(bottom=0)
    axes.flat[2].yaxis.set_major_formatter(_percent())
    axes.flat[3].set_yscale("log")
    _save(figure, path)
    pyplot.close(figure)


def _percent() -> Any:
    from matplotlib.ticker import PercentFormatter

    return PercentFormatter(1.0, decimals=None)


def _finite(value: Any) -> bool:
    return isinstance(value, (int, float)) and math.isfinite(value)


def _save(figure: Any, path: Path) -> None:
    partial = path.with_name(f".{path.name}.partial")
    figure.savefig(partial, format=path.suffix.removeprefix("."))
    partial.replace(path)


def plot_bounds(rules: Sequence[tuple[str, Any]], path: Path) -> None:
    """Ratio bounds, and the probability they allow, against the old probability, for each (name, rule)."""
    import torch

    pyplot = _pyplot()
    logps = torch.linspace(math.log(1e-4), math.log(0.999), 400, dtype=torch.float64)
    p = logps.exp()
    figure, (left, right) = pyplot.subplots(1, 2, figsize=(10, 4), layout="constrained")
    left.plot(p, 1 / p, color="grey", linestyle=":", label="simplex edge, r = 1/p")
    right.plot(p, p, color="grey", linestyle=":", label="no change")
    for i, (name, rule) in enumerate(rules):
        bounds = rule.bounds(logps)
        colour = COLOURS[i % len(COLOURS)]
        for axis, scale in ((left, torch.ones_like(p)), (right, p)):
            axis.plot(p, bounds.upper * scale, color=colour, label=name)
            axis.plot(p, bounds.lower * scale, color=colour, linestyle="--")
    left.set(xscale="log", yscale="log", ylim=(0.02, 200), xlabel="old probability p", ylabel="ratio bounds")
    right.set(
        xscale="log",
        yscale="log",
        ylim=(1e-5, 1.3),
        xlabel="old probability p",
        ylabel="probability after one update",
    )
    left.set_title("How far the ratio may move (solid: upper, dashed: lower)", fontsize=10)
    right.set_title("Where the token's probability may go", fontsize=10)
    left.legend(fontsize=8)
    right.legend(fontsize=8)
    _save(figure, path)
    pyplot.close(figure)
