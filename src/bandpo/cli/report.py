"""bandpo report"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def report(
    paths: Annotated[
        list[Path],
        typer.Argument(
            metavar="RUN_OR_STUDY...",
            help="Directories written by `bandpo train` or `bandpo compare`, or a study's metrics.json.",
        ),
    ],
    output: Annotated[
        Path | None,
        typer.Option(
            help="Directory of the report; needed for several paths.", show_default="the run or study itself"
        ),
    ] = None,
) -> None:
    """Write a report: one HTML page that works offline, its pictures as PNG, and tables in Markdown."""
    for path in paths:
        if not path.exists():
            raise ValueError(f"{str(path)!r} does not exist; allowed: directories of runs and studies")

    from bandpo.report.pages import write_report

    typer.echo(write_report(paths, output))
