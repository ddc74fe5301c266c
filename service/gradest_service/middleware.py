"""Around every request: its id, the cap on its body, and what becomes of an error that nobody expected."""

from __future__ import annotations

import logging
import re
import uuid

import anyio
from starlette.datastructures import Headers, MutableHeaders
from starlette.requests import ClientDisconnect, Request
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from gradest_service.problems import INTERNAL_ERROR, STOPPING, Problem, from_exception, to_response

__all__ = ["Envelope"]

_LOG = logging.getLogger("gradest_service")
_SANE_ID = re.compile(r"[A-Za-z0-9._:-]{1,128}")
_HEADER = "X-Request-ID"


class Envelope:
    """ASGI middleware: the request id in `scope["state"]` and on every answer; every error a problem."""

    def __init__(self, app: ASGIApp, max_body_bytes: int) -> None:
        self._app = app
        self._max_body_bytes = max_body_bytes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass the request on, and answer for what went wrong with it."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        headers = Headers(scope=scope)
        request_id = headers.get(_HEADER, "")
        if not _SANE_ID.fullmatch(request_id):
            request_id = uuid.uuid4().hex
        scope.setdefault("state", {})["request_id"] = request_id
        started = False

        async def send_with_id(message: Message) -> None:
            nonlocal started
            if message["type"] == "http.response.start":
                started = True
                MutableHeaders(scope=message)[_HEADER] = request_id
            await send(message)

        try:
            declared = headers.get("content-length", "")
            if declared.isdecimal() and int(declared) > self._max_body_bytes:
                raise self._too_large()
            await self._app(scope, self._capped(receive), send_with_id)
        except anyio.get_cancelled_exc_class():
            if not started:
                with anyio.CancelScope(shield=True):
                    await to_response(STOPPING, Request(scope))(scope, receive, send_with_id)
            raise
        except ClientDisconnect:
            _LOG.info("request %s: the client went away", request_id)
        except Exception as error:
            problem = from_exception(error)
            if problem is None:
                _LOG.exception("request %s failed", request_id)
            if started:
                raise  # half an answer is out: cut the connection rather than end it as if it were whole
            await to_response(problem or INTERNAL_ERROR, Request(scope))(scope, receive, send_with_id)

    def _capped(self, receive: Receive) -> Receive:
        """Receives at most so many bytes, declared beforehand or not."""
        received = 0

        async def capped() -> Message:
            nonlocal received
            message = await receive()
            received += len(message.get("body", b""))
            if received > self._max_body_bytes:
                raise self._too_large()
            return message

        return capped

    def _too_large(self) -> Problem:
        return Problem(
            413, f"The body may have {self._max_body_bytes} bytes. Send fewer rows in a request, and more requests."
        )
