"""uvicorn's HTTP protocol with limits on the head of a request, and with problem details for what is not HTTP."""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import Callable
from typing import Any

import h11
from uvicorn.protocols.http.auto import AutoHTTPProtocol

from gradest_service.problems import MEDIA_TYPE, Problem, to_bytes
from gradest_service.settings import Settings

__all__ = ["LimitedProtocol", "limited_protocol", "to_message"]

_MAX_HEAD_BYTES = 1 << 16
_LAST_BYTES_SECONDS = 1.0  # for a client to take the rest of an answer when its connection closes
_LAST_HEAD_SECONDS = 1.0  # for a head that is on its way when the service stops


def limited_protocol(settings: Settings) -> type[LimitedProtocol]:
    """Return the protocol of a service: a head must arrive in time, from the connection or its own first byte on, and so must
    the rest of a body that was answered before it was whole. A client that does not read until the deadline is cut off.

    HTTP is parsed by httptools if that is installed, else by h11.
    """
    limits = {
        "head_seconds": min(settings.head_seconds, settings.deadline_seconds),
        "write_seconds": settings.deadline_seconds,
    }
    return type("HttpProtocol", (LimitedProtocol, AutoHTTPProtocol), limits)


class LimitedProtocol(asyncio.Protocol):
    """One connection, whose requests' heads are limited in time and size."""

    head_seconds: float
    write_seconds: float
    transport: asyncio.Transport
    loop: asyncio.AbstractEventLoop
    cycle: Any
    conn: h11.Connection | None = None  # only if h11 parses

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.on_lost: Callable[[], None] = lambda: None
        self._head_awaited = True
        self._head = 0
        self._timer: asyncio.TimerHandle | None = None
        self._rest_timer: asyncio.TimerHandle | None = None  # of a body that was answered before it was whole
        self._write_timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Start to wait for a head."""
        super().connection_made(transport)
        self._start_timer(self.head_seconds)

    def connection_lost(self, exc: Exception | None) -> None:
        """Stop waiting."""
        self.on_lost()
        self._stop_timer()
        self._stop_rest_timer()
        self._stop_write_timer()
        super().connection_lost(exc)

    def pause_writing(self) -> None:
        """Let the sender wait for the client to read, and cut the client off if it does not."""
        super().pause_writing()
        self._write_timer = self.loop.call_later(self.write_seconds, self.transport.abort)

    def resume_writing(self) -> None:
        """Let the sender continue."""
        self._stop_write_timer()
        super().resume_writing()

    def timeout_keep_alive_handler(self) -> None:
        """Close a connection that has been idle, though its client has not read all of the last answer."""
        super().timeout_keep_alive_handler()  # type: ignore[misc]
        self._close()

    def data_received(self, data: bytes) -> None:
        """Receive more of a head or of a body, and refuse a head that is too large."""
        in_a_head = self._awaits_head()
        super().data_received(data)
        if not self._awaits_rest():
            self._stop_rest_timer()
        if not self._awaits_head():
            self._stop_timer()
            self._head = 0
            return
        self._head += len(data) if in_a_head else 0  # else the data end a body, which was answered before it was whole
        if self._head > _MAX_HEAD_BYTES:
            self._refuse(Problem(431, f"The head of a request may have {_MAX_HEAD_BYTES} bytes."))
        elif self._timer is None:
            self._start_timer(self.head_seconds)

    def shutdown(self) -> None:
        """Close the connection because the service stops, unless a request is on its way."""
        if self._timer is None:
            super().shutdown()  # type: ignore[misc]
        else:
            self._stop_timer()
            self._start_timer(min(_LAST_HEAD_SECONDS, self.head_seconds))

    def on_headers_complete(self) -> None:
        """Note that httptools has read a head."""
        self._head_awaited = False
        super().on_headers_complete()  # type: ignore[misc]

    def on_message_complete(self) -> None:
        """Note that httptools has read a body."""
        self._head_awaited = True
        super().on_message_complete()  # type: ignore[misc]

    def on_response_complete(self) -> None:
        """Give the rest of the body so long, if the answer did not wait for it. uvicorn's own timer stops at its next byte."""
        super().on_response_complete()  # type: ignore[misc]
        if self._awaits_rest() and not self.transport.is_closing():
            self._rest_timer = self.loop.call_later(self.head_seconds, self._close)

    def send_400_response(self, msg: str) -> None:
        """Refuse what is not HTTP."""
        self._refuse(Problem(400, "This is not a valid HTTP request."))

    def _unsupported_upgrade_warning(self) -> None:
        """Answer in HTTP without a word in the log, which any client could fill otherwise."""

    def _awaits_head(self) -> bool:
        if self.cycle is not None and not self.cycle.response_complete:
            return False
        return self._head_awaited if self.conn is None else self.conn.their_state is h11.IDLE

    def _awaits_rest(self) -> bool:
        if self.cycle is None or not self.cycle.response_complete:
            return False
        return not self._head_awaited if self.conn is None else self.conn.their_state is h11.SEND_BODY

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
            self._close()

    def _close(self) -> None:
        """Close the connection. One whose client does not take what it was sent would stay otherwise."""
        self.transport.close()
        if self.transport.get_write_buffer_size():
            self.loop.call_later(_LAST_BYTES_SECONDS, self.transport.abort)

    def _stop_rest_timer(self) -> None:
        if self._rest_timer is not None:
            self._rest_timer.cancel()
            self._rest_timer = None

    def _stop_write_timer(self) -> None:
        if self._write_timer is not None:
            self._write_timer.cancel()
            self._write_timer = None

    def _refuse(self, problem: Problem) -> None:
        self._stop_timer()
        if self.transport.is_closing():
            return
        self.transport.write(to_message(problem))
        self.transport.close()


def to_message(problem: Problem) -> bytes:
    """Return the whole answer to a request that does not reach the application, after which the connection closes."""
    request_id = uuid.uuid4().hex
    body = to_bytes(problem, request_id)
    headers = {
        "content-type": MEDIA_TYPE,
        "content-length": str(len(body)),
        "x-request-id": request_id,
        "cache-control": "no-store",
        **problem.headers,
        "connection": "close",
    }
    lines = [f"HTTP/1.1 {problem.status} {problem.title}", *(f"{name}: {value}" for name, value in headers.items())]
    return "\r\n".join([*lines, "", ""]).encode() + body
