"""The progress bars of the command line."""

from __future__ import annotations

from typing import Any

from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn


def make_progress(console: Any, transient: bool = False) -> Progress:
    """Bars with a count, the field `figures` of each task, and the time that is left.

    Args:
        transient: Remove the bars at the end, for a command that prints what they ended at.
    """
    return Progress(
        TextColumn("[bold]{task.description}"),
        BarColumn(bar_width=10),
        MofNCompleteColumn(),
        TextColumn("{task.fields[figures]}"),
        TimeRemainingColumn(),
        console=console,
        transient=transient,
    )
