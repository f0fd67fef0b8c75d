"""bandpo explore"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def explore(
    export: Annotated[Path, typer.Option(help="The HTML file to write; an existing one is not overwritten.")],
) -> None:
    """Write the explorer: one page to move clip rules, see their bounds and watch them train, without a network."""
    from bandpo.explore.page import export as write

    write(export)
    typer.echo(f"wrote {export}")
