"""docs/commands.md, made from what each command's --help prints: python tests/docs/commands_page.py writes it."""

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from typer.main import get_command
from typer.testing import CliRunner

from bandpo.cli.app import app

PAGE = Path(__file__).parents[2] / "docs" / "commands.md"
WIDTH = 110

# Where each command is explained.
PAGES = {
    "train": "[runs.md](runs.md), [tasks.md](tasks.md), [alarms.md](alarms.md)",
    "eval": "[evaluation.md](evaluation.md)",
    "compare": "[lab.md](lab.md)",
    "samples": "[evaluation.md](evaluation.md)",
    "simulate": "[simulator.md](simulator.md)",
    "launch verl": "[integrations/verl.md](integrations/verl.md)",
    "launch verl-data": "[integrations/verl.md](integrations/verl.md)",
    "report": "[report.md](report.md)",
    "inspect": "[inspect.md](inspect.md)",
    "bounds": "[radius.md](radius.md)",
    "explore": "[explore.md](explore.md)",
    "recipes": "[runs.md](runs.md), [scale.md](scale.md)",
    "grade": "[tasks.md](tasks.md)",
    "tasks": "[tasks.md](tasks.md)",
    "doctor": "[versions.md](versions.md)",
}

HEAD = """# Commands

The output of `bandpo COMMAND --help`, all on one page. It is generated (`python tests/docs/commands_page.py`) and
compared with the commands in the tests. `bandpo --version` prints the version, and `--debug` with any command shows a
full traceback in place of the one-line error.

In every command that trains, `KEY=VALUE` overrides one setting of a recipe: `rule.radius=0.1`,
`rule.name=clip rule.high=0.28`, `train.max_steps=20`. A misspelled key is an error that names the nearest one.
"""


def commands(group: Any, path: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    """Every command below a group, in the order of the help."""
    for name, command in group.commands.items():
        yield from commands(command, (*path, name)) if hasattr(command, "commands") else [(*path, name)]


def render() -> str:
    """The page as it should be."""
    parts = [HEAD]
    for words in commands(get_command(app)):
        shown = CliRunner().invoke(app, [*words, "--help"], terminal_width=WIDTH, prog_name="bandpo").output
        name = " ".join(words)
        text = "\n".join(line.rstrip() for line in shown.strip().splitlines())
        parts.append(f"## bandpo {name}\nMore on {PAGES[name]}.\n\n```text\n{text}\n```\n")
    return "\n".join(parts)


if __name__ == "__main__":
    sys.stdout.write(f"{PAGE}\n")
    PAGE.write_text(render(), encoding="utf-8")
