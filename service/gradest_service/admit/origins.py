"""Which web pages may use the service: a browser sends requests for whatever page is open, with the access of its user.

A page of another site reaches a service on this machine in two ways. Its own name may resolve to 127.0.0.1 (DNS rebinding), which
the Host header gives away. Or it sends a request to the service's address, which browsers mark by Sec-Fetch-Site.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Mapping

from starlette.types import Scope

from gradest_service.problems import Problem
from gradest_service.settings import Settings

__all__ = ["Origins"]

_ALLOWED_HEADERS = "Accept, Authorization, Content-Type, traceparent, tracestate, X-Request-ID"
_EXPOSED_HEADERS = "Retry-After, traceparent, WWW-Authenticate, X-Request-ID"
_PREFLIGHT_SECONDS = "600"


class Origins:
    """The names by which the service may be addressed, and the origins of other pages that may use it.

    public: the paths of pages without data, to which links on other sites may lead.
    """

    def __init__(self, settings: Settings, public: frozenset[str]) -> None:
        self._public = public | {"/", "/docs"}
        self._bound = settings.host.lower()
        self._hosts = None if settings.allowed_hosts is None else _words(settings.allowed_hosts)
        self._any_host = settings.api_keys is not None  # without the key, which no page has, a name gains nothing
        self._origins = _words(settings.cors_origins)

    def check(self, method: str, path: str, headers: Mapping[str, str]) -> None:
        """Raise a 421 for a Host header that is not one of the service's names, and a 403 for a request from another site.

        path: without the prefix below which the service is mounted.
        """
        host = _name(headers.get("host", ""))
        if host and not self._knows(host):
            raise Problem(
                421,
                "The Host header names another server. Use the address at which the service is bound, or set allowed_hosts to "
                "the names by which it is reached.",
            )
        if headers.get("sec-fetch-site") != "cross-site" or self.allows(headers.get("origin", "")):
            return
        navigates = headers.get("sec-fetch-mode") == "navigate" and method == "GET"
        if not (navigates and path in self._public):
            raise Problem(403, "A page of another site sent this request. To allow its origin, set cors_origins.")

    def allows(self, origin: str) -> bool:
        """Tell whether a page of this origin may use the service."""
        return bool(origin) and ("*" in self._origins or origin.lower() in self._origins)

    def headers_for(self, origin: str) -> Mapping[str, str]:
        """Return the headers by which a browser lets a page of this origin read an answer; none if it may not."""
        if not self._origins:
            return {}
        if not self.allows(origin):
            return {"Vary": "Origin"}
        return {
            "Access-Control-Allow-Origin": origin,
            "Access-Control-Expose-Headers": _EXPOSED_HEADERS,
            "Cross-Origin-Resource-Policy": "cross-origin",
            "Vary": "Origin",
        }

    def preflight(self, scope: Scope, headers: Mapping[str, str]) -> Mapping[str, str] | None:
        """Return the headers that answer a browser's question before a request; None if this request is none or is refused."""
        asked = scope["method"] == "OPTIONS" and "access-control-request-method" in headers
        if not asked or not self.allows(headers.get("origin", "")):
            return None
        return {
            **self.headers_for(headers["origin"]),
            "Access-Control-Allow-Methods": "GET, HEAD, POST",
            "Access-Control-Allow-Headers": _ALLOWED_HEADERS,
            "Access-Control-Max-Age": _PREFLIGHT_SECONDS,
        }

    def _knows(self, host: str) -> bool:
        if self._hosts is not None:
            return "*" in self._hosts or host in self._hosts
        return self._any_host or host in ("localhost", self._bound) or host.endswith(".localhost") or _is_address(host)


def _words(text: str) -> frozenset[str]:
    return frozenset(word.strip().lower().rstrip("/") for word in text.split(",") if word.strip())


def _name(host: str) -> str:
    """Return a Host header's name or address, without its port and brackets."""
    host = host.strip().lower()
    if host.startswith("["):
        return host[1:].partition("]")[0]
    return host.partition(":")[0].rstrip(".")


def _is_address(host: str) -> bool:
    """Tell whether this is an IP address, to which no name can have been rebound."""
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return False
    return True
