"""The web page at /: its files, each at its own path, under a content security policy that lets it load nothing else.

It consists of plain HTML, CSS and ES modules, and of the libraries in `vendor`. It uses only the service's public routes.
"""

from __future__ import annotations

import gzip
import hashlib
from functools import cache
from importlib.resources import files
from importlib.resources.abc import Traversable

from fastapi import FastAPI
from starlette.requests import Request
from starlette.responses import Response

from gradest_service.problems import Problem

__all__ = ["PATHS", "add_page"]

_TYPES = {
    "html": "text/html; charset=utf-8",
    "css": "text/css; charset=utf-8",
    "js": "text/javascript; charset=utf-8",
    "json": "application/json",
    "svg": "image/svg+xml",
    "woff2": "font/woff2",
}
_HEADERS = {
    "Cache-Control": "no-cache",  # a browser keeps the file but asks each time, so that a new version shows at once
    "Vary": "Accept-Encoding",
    "Content-Security-Policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; font-src 'self'; img-src 'self'; connect-src 'self'; "
        "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    ),
}


def _find(folder: Traversable, path: str) -> dict[str, Traversable]:
    """Return the files in a folder and below it, by path, if the page has files of their type."""
    found: dict[str, Traversable] = {}
    for item in folder.iterdir():
        below = f"{path}/{item.name}"
        if item.is_dir():
            found |= _find(item, below)
        elif item.name.rpartition(".")[2] in _TYPES:
            found[below] = item
    return found


_FILES = _find(files(__name__), "/page") | _find(files("gradest.analysis.charts"), "/page/charts")
_FILES["/"] = _FILES.pop("/page/index.html")
PATHS = frozenset(_FILES)
"""The paths of the page. They need no API key, because the key is typed into the page."""


def add_page(app: FastAPI) -> None:
    """Serve the page at /, and its files."""

    async def show(request: Request) -> Response:
        """Serve a file of the page."""
        path = "/" if "name" not in request.path_params else f"/page/{request.path_params['name']}"
        if path not in PATHS:
            raise Problem(404, "The page has no such file.")
        content, packed, tag = _load(path)
        headers = {**_HEADERS, "ETag": tag}
        if request.headers.get("if-none-match") == tag:
            return Response(status_code=304, headers=headers)
        if packed is not None and "gzip" in request.headers.get("accept-encoding", ""):
            content, headers["Content-Encoding"] = packed, "gzip"
        return Response(content, headers={**headers, "Content-Type": _TYPES[_FILES[path].name.rpartition(".")[2]]})

    for path in ("/", "/page/{name:path}"):
        app.add_api_route(path, show, include_in_schema=False)


@cache
def _load(path: str) -> tuple[bytes, bytes | None, str]:
    """Return a file's bytes, the same compressed if that makes them smaller, and an ETag."""
    content = _FILES[path].read_bytes()
    packed = None if path.endswith("woff2") else gzip.compress(content, mtime=0)
    return content, packed, f'"{hashlib.sha256(content).hexdigest()[:32]}"'
