"""bandpo tasks"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from pydantic.fields import FieldInfo


def tasks(
    name: Annotated[str | None, typer.Argument(help="Show the settings of one task.", show_default="all")] = None,
) -> None:
    """List tasks with their settings, data sets, prompt templates and rewards."""
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    from bandpo.tasks import DATASETS, REWARDS, SHAPING, TASKS, TEMPLATES
    from bandpo.tasks.base import Task
    from bandpo.tasks.shaping import shaping_options
    from bandpo.words import nearest

    if name is not None and name not in TASKS:
        raise ValueError(f"unknown task {name!r}{nearest(name, TASKS)}; known tasks: {', '.join(TASKS)}")
    console = Console()

    def section(title: str, rows: list[tuple[str, ...]]) -> None:
        console.print(f"\n{title}", style="bold", markup=False, highlight=False)
        table = Table(box=None, padding=(0, 2), show_header=False)
        for row in rows:
            table.add_row(*map(Text, row))
        console.print(table)

    def settings(fields: dict[str, FieldInfo]) -> list[tuple[str, ...]]:
        return [(f"task.{k}", "required" if f.is_required() else _yaml(_default(f))) for k, f in fields.items()]

    every = {k: f for k, f in Task.model_fields.items() if k != "name"}
    for key, task in TASKS.items():
        if name in (None, key):
            own = {
                k: f
                for k, f in task.model_fields.items()
                if k != "name" and (k not in every or _default(f) != _default(every[k]))
            }
            section(f"{key}: {_first_line(task)}", settings(own))
    section("every task, unless noted otherwise", settings(every))
    if name is not None:
        return
    section(
        "data sets (task.data, task.heldout_data, bandpo eval)",
        [
            (key, d.about, d.repository, "/".join(k for k, v in (("train", d.train), ("test", d.test)) if v))
            for key, d in DATASETS.items()
        ],
    )
    section(
        "prompt templates (task.template), or a string with {question}", [(k, _yaml(v)) for k, v in TEMPLATES.items()]
    )
    section("rewards (task.reward), or module:function", [(k, _first_line(v)) for k, v in REWARDS.items()])
    section(
        "shaping rewards (shaping: [{name: ..., weight: 1.0}]), or module:function",
        [
            (k, ", ".join(f"{o}={d}" for o, d in shaping_options(k).items()), _first_line(v))
            for k, v in SHAPING.items()
        ],
    )


def _first_line(thing: object) -> str:
    return (thing.__doc__ or "").strip().splitlines()[0]


def _default(field: FieldInfo) -> object:
    return field.get_default(call_default_factory=True)


def _yaml(value: object) -> str:
    return json.dumps(value, ensure_ascii=False)
