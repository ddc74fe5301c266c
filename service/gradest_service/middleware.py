"""Around every request: its id, who sends it, how much it may bring and how long it may take, and what becomes of an error."""

from __future__ import annotations

import asyncio
import logging
import re
import time
import uuid

import anyio
from starlette.datastructures import Headers, MutableHeaders
from starlette.requests import ClientDisconnect, Request
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from gradest_service.admit.auth import OPEN, Keys
from gradest_service.admit.capacity import Load
from gradest_service.admit.metrics import Metrics
from gradest_service.admit.request_context import Call, current
from gradest_service.host.logs import log_request
from gradest_service.problems import STOPPING, Problem, from_exception, internal_error, to_response
from gradest_service.run.event_stream import EventStream, error_event
from gradest_service.settings import Settings

__all__ = ["Envelope"]

_LOG = logging.getLogger("gradest_service")
_SANE_ID = re.compile(r"[A-Za-z0-9._:-]{1,128}")
_HEADER = "X-Request-ID"
_LAST_WORD = 1.0  # seconds in which a client takes the end of its stream
_GONE = 499  # the log's status of a request whose client went away
_HEADERS = {  # unless the answer has its own
    "Cache-Control": "no-store",
    "Content-Security-Policy": "default-src 'none'; frame-ancestors 'none'",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
}


class Envelope:
    """ASGI middleware: every request has an id, a key, a place and a deadline; every error is a problem."""

    def __init__(
        self,
        app: ASGIApp,
        settings: Settings,
        load: Load,
        keys: Keys | None = None,
        metrics: Metrics | None = None,
        free: frozenset[str] = OPEN,
    ) -> None:
        self._app = app
        self._settings = settings
        self._load = load
        self._keys = keys
        self._metrics = metrics
        self._free = free  # paths that need no key and take no place
        self._outlived: set[asyncio.Task[None]] = set()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass the request on, and answer for what went wrong with it."""
        if scope["type"] == "websocket":
            await send({"type": "websocket.close", "code": 1008})  # there are none
            return
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        headers = Headers(scope=scope)
        request_id = headers.get(_HEADER, "")
        if not _SANE_ID.fullmatch(request_id):
            request_id = uuid.uuid4().hex
        scope.setdefault("state", {})["request_id"] = request_id
        call = Call(request_id, scope["method"])
        token = current.set(call)
        exchange = _Exchange(call, self._settings, self._load, receive, send)
        began = time.perf_counter()
        if self._metrics:
            self._metrics.begin()
        try:
            await self._answer(scope, headers, exchange)
        finally:
            call.route = getattr(scope.get("route"), "path", call.route)
            seconds = time.perf_counter() - began
            if self._metrics:
                self._metrics.end(call, exchange.status, seconds)
            log_request(call, exchange.status, seconds)
            current.reset(token)

    async def _answer(self, scope: Scope, headers: Headers, exchange: _Exchange) -> None:
        try:
            await self._pass_on(scope, headers, exchange)
        except asyncio.CancelledError:  # the time of a stopping server is over
            with anyio.CancelScope(shield=True):
                await exchange.close_with(STOPPING, scope)
            raise
        except ClientDisconnect:
            _LOG.info("the client went away")
        except Exception as error:
            problem = from_exception(error)
            if problem is None:
                _LOG.exception("request %s failed", exchange.call.request_id)
            if not await exchange.close_with(problem or internal_error(error), scope):
                raise  # half an answer is out: cut the connection rather than end it as if it were whole

    async def _pass_on(self, scope: Scope, headers: Headers, exchange: _Exchange) -> None:
        """Let the application answer in a task of its own, which outlives the answer where its work cannot be stopped."""
        free = scope["path"].removeprefix(scope.get("root_path", "")) in self._free
        if self._keys is not None and not free:
            exchange.call.key = self._keys.identify(headers.getlist("authorization"))
            exchange.call.key.admit()
        declared = headers.get("content-length", "")
        exchange.enter(int(declared) if declared.isdecimal() else 0, counted=not free)

        async def run() -> None:
            with exchange.work:
                await self._app(scope, exchange.receive, exchange.send)

        def end(task: asyncio.Task[None]) -> None:
            self._outlived.discard(task)
            exchange.leave()

        task = asyncio.create_task(run())
        self._outlived.add(task)
        task.add_done_callback(end)
        try:
            done, _ = await asyncio.wait({task}, timeout=self._settings.deadline_seconds)
        except asyncio.CancelledError:
            exchange.work.cancel()
            raise
        if done:
            task.result()
            return
        exchange.work.cancel()
        task.add_done_callback(_forget_error)
        if not await exchange.close_with(exchange.too_late(), scope):
            _LOG.warning("request %s: its time was over before its answer was complete", exchange.call.request_id)


class _Exchange:
    """What comes in and goes out for one request, counted and held to its limits."""

    def __init__(self, call: Call, settings: Settings, load: Load, receive: Receive, send: Send) -> None:
        self.call = call
        self.status = _GONE
        self.started = False
        self.closed = False
        self.work = anyio.CancelScope()
        self._settings = settings
        self._load = load
        self._receive = receive
        self._send = send
        self._entered = False
        self._held = 0
        self._whole = False
        self._streams = False
        self._watch: asyncio.Task[None] | None = None
        self._gone = asyncio.Event()

    def enter(self, declared: int, counted: bool) -> None:
        """Refuse a body whose declared size is over the cap, before it is sent; take a place, and room for the body."""
        if declared > self._settings.max_body_bytes:
            raise self._too_large()
        if not counted:
            return
        self._load.enter()
        self._entered = True
        try:
            self._hold(declared)
        except Problem:
            self.leave()
            raise

    def leave(self) -> None:
        """Give the place back, once nothing works for the request any more."""
        if self._watch is not None:
            self._watch.cancel()
        if self._entered:
            self._entered = False
            self._load.leave(self._held)

    async def receive(self) -> Message:
        """The body; after its end, the news that the client is gone."""
        if self._whole:
            if self._watch is None:
                self._watch = asyncio.create_task(self._watch_for_the_end())
            await self._gone.wait()
            return {"type": "http.disconnect"}
        message = await self._receive()
        self.call.bytes_in += len(message.get("body", b""))
        if self.call.bytes_in > self._settings.max_body_bytes:
            raise self._too_large()
        if self._entered:
            self._hold(self.call.bytes_in - self._held)
        if message["type"] == "http.request" and not message.get("more_body", False):
            self._whole = True
            self._watch = asyncio.create_task(self._watch_for_the_end())
        return message

    async def send(self, message: Message) -> None:
        """Part of the application's answer; dropped if another was given in the meantime."""
        if not self.closed:
            await self._pass_on(message)

    async def close_with(self, problem: Problem, scope: Scope) -> bool:
        """Answer with a problem, and with nothing else afterwards: the last event of a stream that has begun.

        False if part of an answer of another kind is out already.
        """
        self.closed = True
        if not self.started:
            await to_response(problem, Request(scope))(scope, self._receive, self._pass_on)
            return True
        if self._streams:
            last = {"type": "http.response.body", "body": error_event(problem, self.call.request_id)}
            with anyio.move_on_after(_LAST_WORD):  # a client that does not read is not waited for
                await self._pass_on(last)
        return self._streams

    async def _pass_on(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self.started = True
            self.status = message["status"]
            headers = MutableHeaders(scope=message)
            headers[_HEADER] = self.call.request_id
            self._streams = headers.get("content-type", "").startswith(EventStream.media_type)
            for name, value in _HEADERS.items():
                headers.setdefault(name, value)
            if self._load.draining:
                headers["Connection"] = "close"  # the client's next request goes to another server
        else:
            self.call.bytes_out += len(message.get("body", b""))
        await self._send(message)

    def too_late(self) -> Problem:
        """What the deadline means: a body that did not come, or an answer that did not."""
        seconds = f"{self._settings.deadline_seconds:g} seconds"
        if not self._whole and self.call.method == "POST":
            return Problem(408, f"The body did not arrive within {seconds}.", headers={"Connection": "close"})
        return Problem(504, f"There is no answer after {seconds}. Ask for less in a request, and send more requests.")

    async def _watch_for_the_end(self) -> None:
        """Stop the work if the client goes away."""
        while (await self._receive())["type"] != "http.disconnect":
            pass
        self._gone.set()
        if not self.closed:
            self.work.cancel()

    def _hold(self, bytes_: int) -> None:
        if bytes_ > 0:
            self._load.hold(bytes_)
            self._held += bytes_

    def _too_large(self) -> Problem:
        return Problem(
            413,
            f"The body may have {self._settings.max_body_bytes} bytes. Send fewer rows in a request, and more requests.",
        )


def _forget_error(task: asyncio.Task[None]) -> None:
    """What goes wrong after the deadline is no answer any more."""
    if not task.cancelled() and (error := task.exception()):
        _LOG.info("after its deadline a request failed: %r", error)
