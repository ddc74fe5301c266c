"""FastAPI's page at /docs, under a content security policy that allows what the page needs and nothing else."""

from __future__ import annotations

import base64
import hashlib
import re

from fastapi import FastAPI
from fastapi.openapi.docs import get_swagger_ui_html
from starlette.responses import Response

__all__ = ["add_docs"]

_CDN = "https://cdn.jsdelivr.net"
_ICONS = "https://fastapi.tiangolo.com"


def add_docs(app: FastAPI) -> None:
    """Show the OpenAPI document at /docs."""
    page = get_swagger_ui_html(openapi_url="openapi.json", title=app.title)
    scripts = re.findall(rb"<script>(.*?)</script>", bytes(page.body), re.DOTALL)
    hashes = " ".join(f"'sha256-{base64.b64encode(hashlib.sha256(script).digest()).decode()}'" for script in scripts)
    page.headers["Content-Security-Policy"] = (
        f"default-src 'none'; script-src {_CDN} {hashes}; style-src {_CDN} 'unsafe-inline'; "
        f"img-src 'self' data: {_ICONS}; connect-src 'self'; frame-ancestors 'none'"
    )

    async def docs() -> Response:
        """The OpenAPI document, as a page."""
        return page

    app.add_api_route("/docs", docs, include_in_schema=False)
