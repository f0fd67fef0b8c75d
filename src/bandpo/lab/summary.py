"""The final tables of a study, on the terminal."""

from __future__ import annotations

from typing import Any

from rich import box
from rich.console import Console
from rich.table import Column, Table

from bandpo.lab.statistics import Comparison, Interval, MethodResult, Target, compare

LEGEND = (
    "±: 95% interval over seeds. difference: to {reference}, paired by seed. p: corrected for the number of methods "
    "(Holm). target: the reward that the run of the same seed of the reference ended at; medians, 'never' where half "
    "of the runs or more did not get there. clipped: share of the tokens. entropy in nats a token; half-way: between "
    "its first and last reward."
)


def print_study(metrics: dict[str, Any], console: Console) -> None:
    """Two tables for each place of the sweep, and the runs that failed."""
    runs = metrics["runs"]
    evaluated = [run for run in runs if run["status"] == "finished" and run["evaluation"]]
    samples = {run["evaluation"]["after"]["samples"] for run in evaluated}
    for comparison in compare(metrics):
        metric = comparison.metric
        if metric == "mean" and len(samples) == 1:
            metric = f"mean@{min(samples)}"
        place = ", ".join(f"{name} {label}" for name, label in comparison.point.items())
        console.print(_scores(comparison, metric, place), _learning(comparison, place))
    console.print(LEGEND.format(reference=metrics["study"]["reference"]), highlight=False, markup=False)
    for run in runs:
        if run["status"] == "failed":
            where = [f"{name}={label}" for name, label in run["point"].items()]
            title = " ".join([run["method"], *where, f"seed {run['seed']}"])
            console.print(f"{title} failed: {run['error']}", style="red", markup=False, highlight=False)


def _table(place: str, *columns: str) -> Table:
    table = Table(
        Column("method", overflow="fold"),
        title=place or None,
        box=box.SIMPLE_HEAD,
        pad_edge=False,
        collapse_padding=True,
    )
    for title in columns:
        table.add_column(title, justify="right")
    return table


def _scores(comparison: Comparison, metric: str, place: str) -> Table:
    k = max((k for result in comparison.results for k in result.pass_at or {}), default=None)
    passing = [] if k is None or comparison.metric == f"pass@{k}" else [k]
    table = _table(place, "seeds", metric, *(f"pass@{k}" for k in passing), "difference", "p", "P(better)")
    for result in comparison.results:
        table.add_row(
            result.method,
            f"{len(result.seeds)}{f' ({result.failed} failed)' if result.failed else ''}",
            show(result.final),
            *(show((result.pass_at or {}).get(k)) for k in passing),
            show(result.difference, "+.3f"),
            "" if result.p_corrected is None else f"{result.p_corrected:.3f}",
            "" if result.improvement is None else f"{result.improvement:.2f}",
        )
    return table


def _learning(comparison: Comparison, place: str) -> Table:
    table = _table(
        place,
        "mean reward",
        "clipped",
        "entropy, end",
        "half-way",
        "target",
        "updates",
        "seconds",
    )
    for result in comparison.results:
        table.add_row(
            result.method,
            show(result.area),
            show(result.clipped),
            show(result.end_entropy),
            show(result.matched_entropy),
            *_compute(result),
        )
    return table


def _compute(result: MethodResult) -> list[str]:
    target = result.target
    if target is None:
        return [""] * 3
    return [
        f"{target.reached} of {target.runs}",
        *(_median(target, kind) for kind in ("updates", "seconds")),
    ]


def _median(target: Target, kind: str) -> str:
    median = target.medians[kind]
    return "never" if median is None else f"{median:,.0f}"


def show(value: Interval | None, form: str = ".3f") -> str:
    """Mean and interval; nothing where there is none."""
    if value is None:
        return ""
    if value.low is None or value.high is None:
        return f"{value.mean:{form}}"
    return f"{value.mean:{form}} ±{(value.high - value.low) / 2:.3f}"
