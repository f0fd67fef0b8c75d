"""The explorer's page on 127.0.0.1, with the data of what was opened (needs the `explore` extra)."""

from __future__ import annotations

import socket
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import quote

from bandpo.explore.data import data_of
from bandpo.explore.page import page
from bandpo.explore.sources import Source, find_sources
from bandpo.files import to_json

if TYPE_CHECKING:
    from starlette.applications import Starlette
    from starlette.requests import Request
    from starlette.responses import Response

HOST = "127.0.0.1"
NAMES = [HOST, "localhost"]  # against DNS rebinding: another site's name that resolves here gets nothing
HEADERS = {
    "Cache-Control": "no-store",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
}


class Library:
    """What the server may send: the sources below some paths, by id. No path comes from a request."""

    def __init__(self, paths: Sequence[Path]) -> None:
        self.paths = list(paths)
        self.sources: Mapping[str, Source] = {}
        self.problems: list[str] = []
        self.look()

    def look(self) -> None:
        """Rescan the paths.

        Raises:
            ValueError: If there is nothing.
        """
        found, self.problems = find_sources(self.paths)
        self.sources = {source.id: source for source in found}

    def page(self) -> str:
        """The page with everything found by now."""
        self.look()
        listed = [
            {"id": one.id, "kind": one.kind, "name": one.name, "url": f"data/{quote(one.id, safe='')}"}
            for one in self.sources.values()
        ]
        return page(listed, self.problems, served=True)


def make_app(paths: Sequence[Path]) -> Starlette:
    """The application: GET / is the page, GET /data/ID a source as JSON, with ?since=VERSION only what is new in a
    run.

    Raises:
        ValueError: If a path contains nothing to show.
    """
    from starlette.applications import Starlette
    from starlette.middleware import Middleware
    from starlette.middleware.trustedhost import TrustedHostMiddleware
    from starlette.responses import HTMLResponse, PlainTextResponse
    from starlette.responses import Response as Answer
    from starlette.routing import Route

    library = Library(paths)

    def answered(make: Callable[[], Response]) -> Response:
        try:
            answer = make()
        except (ValueError, OSError) as error:
            answer = PlainTextResponse(str(error), 422)
        answer.headers.update(HEADERS)
        return answer

    def index(request: Request) -> Response:
        return answered(lambda: HTMLResponse(library.page()))

    def data(request: Request) -> Response:
        source = library.sources.get(request.path_params["id"])
        if source is None:
            return answered(lambda: PlainTextResponse("No such run, study or token log was opened.", 404))
        since = request.query_params.get("since", "")
        return answered(lambda: Answer(to_json(data_of(source, since)), media_type="application/json"))

    routes = [Route("/", index, methods=["GET"]), Route("/data/{id:path}", data, methods=["GET"])]
    return Starlette(routes=routes, middleware=[Middleware(TrustedHostMiddleware, allowed_hosts=NAMES)])


def serve(paths: Sequence[Path], port: int, tell: Callable[[str], None]) -> None:
    """Serve until a Ctrl-C or SIGTERM.

    Args:
        port: Port; 0 for a free one.
        tell: Called with the address once the port is bound.

    Raises:
        ValueError: If a path contains nothing to show, or the port is taken.
    """
    import uvicorn

    app = make_app(paths)
    try:
        listening = socket.create_server((HOST, port))
    except (OSError, OverflowError) as error:
        raise ValueError(
            f"port is {port}, which is not available ({error}); allowed: a free port, or 0 for any"
        ) from None
    with listening:
        server = uvicorn.Server(uvicorn.Config(app, log_level="warning", access_log=False))
        tell(f"http://{HOST}:{listening.getsockname()[1]}/")
        try:
            server.run(sockets=[listening])
        except KeyboardInterrupt:  # before uvicorn handles signals; some versions also raise it after they ended
            return
