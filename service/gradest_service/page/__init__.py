"""The web page at /: files that it loads from the service itself, under a policy that lets it load nothing else.

It consists of plain HTML, CSS and ES modules, and of the libraries in `vendor`. It uses only the service's public routes.
"""

from __future__ import annotations

import json
from collections.abc import Collection
from importlib.resources import files

from fastapi import FastAPI
from starlette.requests import Request
from starlette.responses import Response

from gradest.analysis.leaderboard import board_to_dict, kept_results, read_boards
from gradest_service.static_files import MadeFile, StaticFile, StaticFiles, find_files

__all__ = ["PATHS", "add_page"]

_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; font-src 'self'; img-src 'self'; connect-src 'self'; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)


def _rank() -> bytes:
    """Return the kept results of `gradest benchmark`, ranked, in JSON."""
    boards = [board_to_dict(board) for board in read_boards(kept_results())]
    return json.dumps(boards, allow_nan=False, separators=(",", ":")).encode()


_FOUND: dict[str, StaticFile] = {
    **find_files(files(__name__), "/page"),
    **find_files(files("gradest.analysis.charts"), "/page/charts"),
    "/page/leaderboard.json": MadeFile("leaderboard.json", _rank),
}
_FOUND["/"] = _FOUND.pop("/page/index.html")
_GUIDE = "/page/guide.json"
PATHS = frozenset({*_FOUND, _GUIDE})
"""The paths of the page. They need no API key, because the key is typed into the page."""


def add_page(app: FastAPI, guide: Collection[str]) -> None:
    """Serve the page at /, and its files.

    guide: the paths of the site of the documents, as `guide_paths` returns them. The page links to those alone.
    """
    pages = sorted(path.removeprefix("/guide/") for path in guide if path.endswith(".html"))
    known = MadeFile("guide.json", lambda: json.dumps(pages, separators=(",", ":")).encode())
    files = StaticFiles({**_FOUND, _GUIDE: known}, _POLICY)

    async def show(request: Request) -> Response:
        """Serve a file of the page."""
        name = request.path_params.get("name")
        return await files.answer(request, "/" if name is None else f"/page/{name}")

    for path in ("/", "/page/{name:path}"):
        app.add_api_route(path, show, include_in_schema=False)
