"""An httpx transport whose connections keep to a deadline. A timeout of httpx limits each wait for a byte, not their sum."""

from __future__ import annotations

import math
import ssl
from collections.abc import Callable, Iterable
from contextvars import ContextVar
from typing import Any

import httpcore
import httpx

__all__ = ["DeadlineTransport", "seconds_left"]

seconds_left: ContextVar[Callable[[], float]] = ContextVar("gradest_client_seconds_left", default=lambda: math.inf)
"""Returns the seconds that the attempt in progress has left."""


class DeadlineTransport(httpx.HTTPTransport):
    """httpx's transport, with waits that end after `seconds_left` at the latest."""

    def __init__(self, verify: ssl.SSLContext | bool, proxy: httpx.Proxy | None) -> None:
        super().__init__(verify=verify, proxy=proxy)
        self._pool._network_backend = _Backend(self._pool._network_backend)


def _limit(timeout: float | None) -> float | None:
    """Return the timeout, or what is left if that is less. Raises httpcore.ReadTimeout if nothing is left."""
    left = seconds_left.get()()
    if left <= 0:
        raise httpcore.ReadTimeout("no complete response before the timeout")
    shortest = left if timeout is None else min(timeout, left)
    return None if math.isinf(shortest) else shortest


class _Backend(httpcore.NetworkBackend):
    def __init__(self, inner: httpcore.NetworkBackend) -> None:
        self._inner = inner

    def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,
        local_address: str | None = None,
        socket_options: Iterable[Any] | None = None,
    ) -> httpcore.NetworkStream:
        return _Stream(self._inner.connect_tcp(host, port, _limit(timeout), local_address, socket_options))


class _Stream(httpcore.NetworkStream):
    def __init__(self, inner: httpcore.NetworkStream) -> None:
        self._inner = inner

    def read(self, max_bytes: int, timeout: float | None = None) -> bytes:
        return self._inner.read(max_bytes, _limit(timeout))

    def write(self, buffer: bytes, timeout: float | None = None) -> None:
        self._inner.write(buffer, _limit(timeout))

    def close(self) -> None:
        self._inner.close()

    def start_tls(
        self, ssl_context: ssl.SSLContext, server_hostname: str | None = None, timeout: float | None = None
    ) -> httpcore.NetworkStream:
        return _Stream(self._inner.start_tls(ssl_context, server_hostname, _limit(timeout)))

    def get_extra_info(self, info: str) -> Any:
        return self._inner.get_extra_info(info)
