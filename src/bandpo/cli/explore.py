"""bandpo explore"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def explore(
    paths: Annotated[
        list[Path] | None,
        typer.Argument(
            metavar="[RUN_OR_STUDY_OR_TOKEN_LOG]...",
            help="Directories of runs and studies, a study's metrics.json, token logs of any framework "
            "(`bandpo inspect --help`), or directories of these.",
            show_default="none",
        ),
    ] = None,
    export: Annotated[
        Path | None,
        typer.Option(
            help="Write one self-contained HTML file; an existing one is not overwritten.",
            show_default="serve the page",
        ),
    ] = None,
    port: Annotated[int, typer.Option(min=0, max=65535, help="Port on 127.0.0.1; 0 takes a free one.")] = 0,
    open_browser: Annotated[bool, typer.Option("--open", help="Open a browser on the page.")] = False,
) -> None:
    """Adjust clip rules and watch them train; look into runs, studies and tokens; in a browser, without a network.

    Without --export the page is served only on this machine until Ctrl-C, and follows runs in progress.
    """
    if export is None:
        _serve(paths or [], port, open_browser)
        return
    if port or open_browser:
        raise ValueError("--port and --open are for the server; --export writes a file instead")
    if export.exists():
        raise ValueError(f"--export is {str(export)!r}, which exists; allowed: the name of a new file")
    if not export.parent.is_dir():
        raise ValueError(f"--export is {str(export)!r}, but {str(export.parent)!r} is not a directory")

    from bandpo.explore.data import exported_page
    from bandpo.files import write_atomic

    write_atomic(export, exported_page(paths or []))
    typer.echo(f"wrote {export}")


def _serve(paths: list[Path], port: int, open_browser: bool) -> None:
    try:
        import starlette  # noqa: F401
        import uvicorn  # noqa: F401
    except ImportError as error:
        raise ValueError(
            f"the server needs an extra: pip install 'bandpo[explore]' ({error}); --export writes a file without it"
        ) from error
    from bandpo.explore.server import serve

    def tell(address: str) -> None:
        typer.echo(f"{address}  (Ctrl-C to stop)")
        if open_browser:
            import webbrowser

            webbrowser.open(address)

    serve(paths, port, tell)
