"""The page at /docs: the OpenAPI document, shown by Swagger UI from files that the service has itself.

Its content security policy lets it load nothing from elsewhere, so it works without a way to the internet.
"""

from __future__ import annotations

from importlib.resources import files

from fastapi import FastAPI
from starlette.requests import Request
from starlette.responses import RedirectResponse, Response

from gradest_service.static_files import StaticFiles, find_files

__all__ = ["add_docs"]

_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; connect-src 'self'; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
_FOUND = find_files(files(__name__), "/docs")
_FOUND["/docs"] = _FOUND.pop("/docs/index.html")


def add_docs(app: FastAPI) -> None:
    """Show the OpenAPI document at /docs."""
    pages = StaticFiles(_FOUND, _POLICY)

    async def show(request: Request) -> Response:
        """Serve a file of the documentation."""
        name = request.path_params.get("name")
        if name is None and request.scope.get("raw_path", b"").endswith(b"/"):  # the page's links are relative
            return RedirectResponse("../docs")
        return await pages.answer(request, "/docs" if name is None else f"/docs/{name}")

    for path in ("/docs", "/docs/{name:path}"):
        app.add_api_route(path, show, include_in_schema=False)
