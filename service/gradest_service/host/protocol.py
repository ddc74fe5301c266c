"""uvicorn's HTTP, with limits on the head of a request too, and with problems where it is none."""

from __future__ import annotations

import asyncio
import uuid
from typing import Any

import h11
from uvicorn.protocols.http.auto import AutoHTTPProtocol

from gradest_service.problems import MEDIA_TYPE, Problem, to_bytes
from gradest_service.settings import Settings

__all__ = ["protocol"]

_MAX_HEAD = 1 << 16  # bytes
_LAST = 1.0  # seconds that a head may still take when the service stops


def protocol(settings: Settings) -> type[asyncio.Protocol]:
    """The protocol of a service: a head takes no longer than the deadline, from the connection or its own first byte on.

    It is parsed by httptools where that is installed, else by h11.
    """
    return type("Protocol", (_Limits, AutoHTTPProtocol), {"seconds": settings.deadline_seconds})


class _Limits(asyncio.Protocol):
    """One connection."""

    seconds: float
    transport: asyncio.Transport
    loop: asyncio.AbstractEventLoop
    cycle: Any
    conn: h11.Connection | None = None  # of h11 alone

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._head_awaited = True
        self._head = 0
        self._timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Wait for a head."""
        super().connection_made(transport)
        self._start_timer(self.seconds)

    def connection_lost(self, exc: Exception | None) -> None:
        """Wait no longer."""
        self._stop_timer()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """More of a head, or of a body."""
        super().data_received(data)
        if not self._awaits_head():
            self._stop_timer()
            self._head = 0
            return
        self._head += len(data)
        if self._head > _MAX_HEAD:
            self._refuse(Problem(431, f"The head of a request may have {_MAX_HEAD} bytes."))
        elif self._timer is None:
            self._start_timer(self.seconds)

    def shutdown(self) -> None:
        """The service stops: close, but not on a request that is on its way."""
        if self._timer is None:
            super().shutdown()  # type: ignore[misc]
        else:
            self._stop_timer()
            self._start_timer(min(_LAST, self.seconds))

    def on_headers_complete(self) -> None:
        """httptools has read a head."""
        self._head_awaited = False
        super().on_headers_complete()  # type: ignore[misc]

    def on_message_complete(self) -> None:
        """httptools has read a body."""
        self._head_awaited = True
        super().on_message_complete()  # type: ignore[misc]

    def send_400_response(self, msg: str) -> None:
        """What came is no HTTP."""
        self._refuse(Problem(400, "This is not a valid HTTP request."))

    def _awaits_head(self) -> bool:
        if self.cycle is not None and not self.cycle.response_complete:
            return False
        return self._head_awaited if self.conn is None else self.conn.their_state is h11.IDLE

    def _start_timer(self, seconds: float) -> None:
        self._timer = self.loop.call_later(seconds, self._end, seconds)

    def _stop_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _end(self, seconds: float) -> None:
        self._timer = None
        if self._head:
            self._refuse(Problem(408, f"The head of the request did not arrive within {seconds:g} seconds."))
        else:
            self.transport.close()

    def _refuse(self, problem: Problem) -> None:
        self._stop_timer()
        if self.transport.is_closing():
            return
        request_id = uuid.uuid4().hex
        body = to_bytes(problem, request_id)
        head = (
            f"HTTP/1.1 {problem.status} {problem.title}\r\ncontent-type: {MEDIA_TYPE}\r\ncontent-length: {len(body)}\r\n"
            f"x-request-id: {request_id}\r\ncache-control: no-store\r\nconnection: close\r\n\r\n"
        )
        self.transport.write(head.encode() + body)
        self.transport.close()
