"""bandpo tasks"""

from __future__ import annotations


def tasks() -> None:
    """List the tasks and their settings."""
    from rich.console import Console
    from rich.table import Table

    from bandpo.tasks import TASKS

    console = Console()
    for name, task in TASKS.items():
        console.print(f"[bold]{name}[/bold]  {(task.__doc__ or '').strip().splitlines()[0]}")
        table = Table("setting", "default", box=None, padding=(0, 2))
        for key, field in task.model_fields.items():
            if key != "name":
                table.add_row(f"task.{key}", "required" if field.is_required() else repr(field.default))
        console.print(table)
