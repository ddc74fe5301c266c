"""The site of the documents at /guide, if it is packaged with the service or was built beside it by `make docs`."""

from __future__ import annotations

import base64
import hashlib
import re
from functools import cache
from pathlib import Path

from fastapi import FastAPI
from starlette.requests import Request
from starlette.responses import FileResponse, RedirectResponse, Response

from gradest_service.problems import Problem

__all__ = ["add_guide", "find_guide", "guide_paths"]

_PACKAGE = Path(__file__).parents[1]
_TYPES = {
    ".html": "text/html; charset=utf-8",
    ".css": "text/css; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".svg": "image/svg+xml",
    ".png": "image/png",
    ".woff2": "font/woff2",
}
_REMEDY = (
    "This service has no guide, because the site was not built when it was installed. In a checkout of gradest, `make docs` "
    "builds it into build/site; then start the service again."
)


def find_guide(package: Path = _PACKAGE) -> Path | None:
    """Return the folder of the site: in the package, or in build/site of the checkout that the package is in; None without one.

    package: the folder of the package.
    """
    checkout = package.parents[1]
    candidates = [package / "site", *([checkout / "build/site"] if (checkout / "docs/site").is_dir() else [])]
    return next((folder for folder in candidates if (folder / "index.html").is_file()), None)


def guide_paths(folder: Path | None) -> frozenset[str]:
    """Return the paths at which the files of the site are served. They need no API key: the site is the same for everyone."""
    if folder is None:
        return frozenset()
    files = (path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())
    return frozenset({"/guide", *(f"/guide/{name}" for name in files)})


def add_guide(app: FastAPI, folder: Path | None, paths: frozenset[str]) -> None:
    """Serve the site, or without one an error that says how to build it.

    paths: those of the site, as `guide_paths` returns them.
    """

    async def start(request: Request) -> Response:
        """Redirect to the first page, whether the path that was asked for ends in a slash or not."""
        if folder is None:
            raise Problem(404, _REMEDY)
        asked = request.scope.get("raw_path") or request.scope["path"].encode()
        return RedirectResponse("index.html" if asked.endswith(b"/") else "guide/index.html")

    async def show(request: Request) -> Response:
        """Serve a file of the site."""
        name = request.path_params["name"]
        if folder is None:
            raise Problem(404, _REMEDY)
        if f"/guide/{name}" not in paths:
            raise Problem(404, "The guide has no such page.")
        path = folder / name
        headers = {"Cache-Control": "no-cache", "Content-Security-Policy": _policy(path, path.stat().st_mtime_ns)}
        return FileResponse(path, headers=headers, media_type=_TYPES.get(path.suffix, "application/octet-stream"))

    app.add_api_route("/guide", start, include_in_schema=False)
    app.add_api_route("/guide/{name:path}", show, include_in_schema=False)


@cache
def _policy(path: Path, changed: int) -> str:
    """Return a policy under which a page runs its own scripts and loads files of the site, and nothing else.

    changed: when the file was last changed.
    """
    text = path.read_bytes() if path.suffix == ".html" else b""
    scripts = re.findall(rb"<script>(.*?)</script>", text, re.DOTALL)
    hashes = {f"'sha256-{base64.b64encode(hashlib.sha256(script).digest()).decode()}'" for script in scripts}
    allowed = " ".join(["'self'", *sorted(hashes)])
    return (
        f"default-src 'none'; script-src {allowed}; style-src 'self' 'unsafe-inline'; font-src 'self'; img-src 'self' data:; "
        "base-uri 'none'; form-action 'self'; frame-ancestors 'none'"
    )
