"""bandpo report"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def report(run: Annotated[Path, typer.Argument(help="Run directory written by `bandpo train`.")]) -> None:
    """Write the report of a run again: report.md and its pictures."""
    from bandpo.report import write_run_report
    from bandpo.training.run_dir import RunDirectory

    RunDirectory.open(run)
    typer.echo(write_run_report(run))
