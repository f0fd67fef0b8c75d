"""The final tables of a study, on the terminal."""

from __future__ import annotations

from rich.console import Console

from bandpo.lab.comparison import compare
from bandpo.lab.metrics import StudyResult
from bandpo.lab.study import Run
from bandpo.lab.tables import LEGEND, study_tables


def print_study(result: StudyResult, console: Console) -> None:
    """Two tables for each point of the sweep, and the runs that failed."""
    for comparison in compare(result):
        console.print(*(table.terminal() for table in study_tables(comparison)))
    console.print(LEGEND.format(reference=result.study.reference), highlight=False, markup=False)
    for run in result.failed:
        title = Run(run.method, run.point, run.seed).title
        console.print(f"{title} failed: {run.error}", style="red", markup=False, highlight=False)
