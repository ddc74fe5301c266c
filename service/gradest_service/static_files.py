"""Files of a package that a browser loads, served by the service itself under a policy that lets nothing else in."""

from __future__ import annotations

import gzip
import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib.resources.abc import Traversable

from anyio import to_thread
from starlette.requests import Request
from starlette.responses import Response

from gradest_service.problems import Problem

__all__ = ["MadeFile", "StaticFile", "StaticFiles", "find_files"]

_TYPES = {
    "html": "text/html; charset=utf-8",
    "css": "text/css; charset=utf-8",
    "js": "text/javascript; charset=utf-8",
    "json": "application/json",
    "svg": "image/svg+xml",
    "woff2": "font/woff2",
}


@dataclass(frozen=True)
class MadeFile:
    """What is served as a file, and is made at the first request. name: its ending tells the type."""

    name: str
    make: Callable[[], bytes]

    def read_bytes(self) -> bytes:
        """Return the content."""
        return self.make()


StaticFile = Traversable | MadeFile
"""What is served, and does not change while the service runs."""


def find_files(folder: Traversable, path: str) -> dict[str, Traversable]:
    """Return the files in a folder and below it, by path, if a browser loads files of their type."""
    found: dict[str, Traversable] = {}
    for item in folder.iterdir():
        below = f"{path}/{item.name}"
        if item.is_dir():
            found |= find_files(item, below)
        elif item.name.rpartition(".")[2] in _TYPES:
            found[below] = item
    return found


class StaticFiles:
    """Files by the paths at which they are served.

    policy: their content security policy.
    """

    def __init__(self, files: Mapping[str, StaticFile], policy: str) -> None:
        self.paths = frozenset(files)
        self._files = files
        self._loaded: dict[str, tuple[bytes, bytes | None, str]] = {}
        self._headers = {
            "Cache-Control": "no-cache",  # a browser keeps the file but asks each time, so that a new version shows at once
            "Vary": "Accept-Encoding",
            "Content-Security-Policy": policy,
        }

    async def answer(self, request: Request, path: str) -> Response:
        """Answer a request for the file of this path, compressed if the client takes that; raises a 404 if there is none."""
        if path not in self._files:
            raise Problem(404, "The page has no such file.")
        content, packed, tag = await to_thread.run_sync(
            self._load, path
        )  # to compress takes a while, at the first request
        headers = {**self._headers, "ETag": tag}
        if request.headers.get("if-none-match") == tag:
            return Response(status_code=304, headers=headers)
        if packed is not None and "gzip" in request.headers.get("accept-encoding", ""):
            content, headers["Content-Encoding"] = packed, "gzip"
        return Response(content, headers={**headers, "Content-Type": _TYPES[self._files[path].name.rpartition(".")[2]]})

    def _load(self, path: str) -> tuple[bytes, bytes | None, str]:
        """Return a file's bytes, the same compressed if that makes them smaller, and an ETag."""
        if path not in self._loaded:
            content = self._files[path].read_bytes()
            packed = None if path.endswith("woff2") else gzip.compress(content, mtime=0)
            self._loaded[path] = content, packed, f'"{hashlib.sha256(content).hexdigest()[:32]}"'
        return self._loaded[path]
