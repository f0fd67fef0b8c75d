"""bandpo explore"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def explore(
    export: Annotated[Path, typer.Option(help="The HTML file to write; an existing one is not overwritten.")],
) -> None:
    """Write the explorer: one page to move clip rules, see their bounds and watch them train, without a network."""
    if export.exists():
        raise ValueError(f"--export is {str(export)!r}, which exists; allowed is a name that is free")
    if not export.parent.is_dir():
        raise ValueError(f"--export is {str(export)!r}, but {str(export.parent)!r} is no directory")

    from bandpo.explore.page import page
    from bandpo.files import write_atomic

    write_atomic(export, page())
    typer.echo(f"wrote {export}")
