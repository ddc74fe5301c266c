"""What holds for every request: its id, its API key, the size of its body, its deadline, and what becomes of an error."""

from __future__ import annotations

import asyncio
import logging
import re
import time
import uuid
from collections.abc import Callable, Mapping

import anyio
from starlette.datastructures import Headers
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from gradest_service.admit.auth import HEALTH_PATHS, ApiKeys
from gradest_service.admit.capacity import Capacity
from gradest_service.admit.metrics import Metrics
from gradest_service.admit.origins import Origins
from gradest_service.admit.request_context import RequestContext, current_request
from gradest_service.host.logs import log_request
from gradest_service.phases import recorded
from gradest_service.problems import (
    STOPPING,
    Problem,
    from_exception,
    internal_error,
    plugin_at_fault,
    to_response,
)
from gradest_service.resources.memory import Memory
from gradest_service.run.event_stream import EventStream, error_event
from gradest_service.settings import Settings
from gradest_service.tracing import Tracing

__all__ = ["RequestMiddleware"]

_LOG = logging.getLogger("gradest_service")
_VALID_ID = re.compile(r"[A-Za-z0-9._:-]{1,128}")
_ID_HEADER = "x-request-id"
_BODY_GRACE_SECONDS = 5.0  # before a body must arrive at the least rate
_UNSENT_BYTES = 1 << 16  # what a connection holds before it asks its sender to wait
_PART_BYTES = 1 << 22  # of a large answer, which are with the connection at a time
_LAST_EVENT_SECONDS = 1.0  # for a client to take the end of its stream
_METHODS_WITH_BODY = ("POST", "PUT", "PATCH")
_WATCH_AFTER_SECONDS = 0.1  # from the end of a body; most answers need no task that watches their client
_CLIENT_CLOSED = 499  # the log's status of a request whose client disconnected
_UNTRACED = Tracing()
_VARY = b"vary"
_DEFAULT_HEADERS = {  # of every answer that has none of its own
    b"cache-control": b"no-store",
    b"content-security-policy": b"default-src 'none'; frame-ancestors 'none'",
    b"cross-origin-resource-policy": b"same-origin",
    b"referrer-policy": b"no-referrer",
    b"x-content-type-options": b"nosniff",
}


class RequestMiddleware:
    """ASGI middleware: every request gets an id, is identified by its API key, and has a deadline; every error is a problem."""

    def __init__(
        self,
        app: ASGIApp,
        settings: Settings,
        capacity: Capacity,
        keys: ApiKeys | None = None,
        metrics: Metrics | None = None,
        exempt_paths: frozenset[str] = HEALTH_PATHS,
        memory: Memory | None = None,
        route_of: Callable[[Scope], str | None] = lambda scope: None,
        tracing: Tracing | None = None,
    ) -> None:
        self._app = app
        self._settings = settings
        self._capacity = capacity
        self._keys = keys
        self._metrics = metrics
        self._memory = memory or Memory(settings.max_memory_bytes, settings.max_heavy_bytes)
        self._exempt_paths = exempt_paths  # they need no key, and do not count towards the capacity
        self._origins = Origins(settings, exempt_paths)
        self._route_of = route_of  # the template of the path of a request that is refused before it reaches its route
        self._tracing = tracing or _UNTRACED
        self._tasks: set[asyncio.Task[None]] = set()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass the request on to the application, and answer in its place if it fails."""
        if scope["type"] == "websocket":
            await send({"type": "websocket.close", "code": 1008})  # the service has none
            return
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        method, scope = scope["method"], _canonical(scope)
        headers = _headers(scope)
        request_id = headers.get(_ID_HEADER, "")
        if not _VALID_ID.fullmatch(request_id):
            request_id = uuid.uuid4().hex
        scope.setdefault("state", {})["request_id"] = request_id
        path = _path(scope)
        # propagators may write names of headers with capitals
        trace = (_UNTRACED if path in HEALTH_PATHS else self._tracing).begin(Headers(scope=scope))
        context = RequestContext(
            request_id,
            method,
            client=(scope.get("client") or ("",))[0],
            set_aside=self._capacity.set_aside,
            trace_id=trace.trace_id,
        )
        token = current_request.set(context)
        always = {**self._origins.headers_for(headers.get("origin", "")), **trace.headers}
        exchange = _HttpExchange(context, self._settings, self._capacity, self._memory, receive, send, always)
        began = time.perf_counter()
        if self._metrics:
            self._metrics.begin()
        try:
            with recorded(context.record):
                await self._answer(path, scope, headers, exchange)
        finally:
            context.route = getattr(scope.get("route"), "path", None) or self._route_of(scope) or context.route
            seconds = time.perf_counter() - began
            if self._metrics:
                self._metrics.end(context, exchange.status, seconds)
            log_request(context, exchange.status, seconds)
            if trace.is_reported:
                attributes = _attributes(context, exchange.status)
                trace.end(f"{method} {context.route}", attributes, context.record.phases, exchange.status >= 500)
            current_request.reset(token)

    async def _answer(self, path: str, scope: Scope, headers: Mapping[str, str], exchange: _HttpExchange) -> None:
        try:
            await self._pass_on(path, scope, headers, exchange)
        except asyncio.CancelledError:  # a stopping server waits no longer
            with anyio.CancelScope(shield=True):
                await exchange.close_with(STOPPING, scope)
            raise
        except ClientDisconnect:
            _LOG.info("the client disconnected")
        except Exception as error:
            problem = from_exception(error)
            if problem is None:
                _LOG.exception("request %s failed", exchange.context.request_id)
                exchange.context.plugin_fault = plugin_at_fault(error)
            if not await exchange.close_with(problem or internal_error(error), scope):
                raise  # part of an answer is sent: cut the connection, so that it does not look complete

    async def _pass_on(self, path: str, scope: Scope, headers: Mapping[str, str], exchange: _HttpExchange) -> None:
        """Let the application answer in a task of its own, which outlives the answer if its work cannot be stopped."""
        exempt = path in self._exempt_paths
        if (preflight := self._origins.preflight(scope, headers)) is not None:
            await Response(status_code=204, headers=preflight)(scope, exchange.receive, exchange.send)
            return
        if path not in HEALTH_PATHS:
            self._origins.check(scope["method"], path, headers)
        if self._keys is not None and not exempt:
            exchange.context.key = self._keys.identify(Headers(scope=scope).getlist("authorization"))
            exchange.context.key.admit()
        declared = headers.get("content-length", "")
        exchange.enter(int(declared) if declared.isdecimal() else 0, counted=not exempt)

        async def run() -> None:
            with exchange.work:
                await self._app(scope, exchange.receive, exchange.send)

        def end(task: asyncio.Task[None]) -> None:
            self._tasks.discard(task)
            exchange.leave()

        task = asyncio.create_task(run())
        self._tasks.add(task)
        task.add_done_callback(end)
        try:
            done, _ = await asyncio.wait({task}, timeout=self._settings.deadline_seconds)
        except asyncio.CancelledError:
            exchange.work.cancel()
            raise
        if done:
            task.result()
            if exchange.refusal is not None:
                raise exchange.refusal
            return
        exchange.work.cancel()
        task.add_done_callback(_forget_error)
        if not await exchange.close_with(exchange.too_late(), scope):
            _LOG.warning("request %s: its deadline passed before its answer was complete", exchange.context.request_id)


class _HttpExchange:
    """One request and its answer: counts their bytes, holds the body to its limits, and can answer in the application's place."""

    def __init__(
        self,
        context: RequestContext,
        settings: Settings,
        capacity: Capacity,
        memory: Memory,
        receive: Receive,
        send: Send,
        headers: Mapping[str, str],
    ) -> None:
        self.context = context
        self.status = _CLIENT_CLOSED
        self.started = False
        self.closed = False
        self.work = anyio.CancelScope()
        self.refusal: Problem | None = None
        """Why the work was stopped, if it was before there was an answer."""
        self._settings = settings
        self._capacity = capacity
        self._memory = memory
        self._receive = receive
        self._send = send
        self._headers = _encoded({_ID_HEADER: context.request_id, **headers})  # of every answer to this request
        self._loop = asyncio.get_running_loop()
        self._began = self._loop.time()
        self._entered = False
        self._reserved = 0
        self._whole = False
        self._complete = False
        self._streams = False
        self._rate_timer: asyncio.TimerHandle | None = None
        self._watch_timer: asyncio.TimerHandle | None = None
        self._watch: asyncio.Task[None] | None = None
        self._disconnected = asyncio.Event()

    def enter(self, declared: int, counted: bool) -> None:
        """Refuse a body whose declared size is over the cap before it is sent; if counted, take a place and room for the body."""
        if declared > self._settings.max_body_bytes:
            raise self._too_large()
        if not counted:
            return
        self._capacity.take_place(self._key)
        self._entered = True
        self.context.reserve = self._reserve
        try:
            self._capacity.check_room(declared, self._key)
        except Problem:
            self.leave()
            raise

    @property
    def _key(self) -> str:
        return "" if self.context.key is None else self.context.key.name

    def leave(self) -> None:
        """Give the place back, once no work is done for the request any more."""
        if self._watch is not None:
            self._watch.cancel()
        _cancel(self._watch_timer)
        _cancel(self._rate_timer)
        self.context.reserve = None
        if self._entered:
            self._entered = False
            self._capacity.leave(self._reserved, self._key)

    async def receive(self) -> Message:
        """Receive the next part of the body; after its end, wait until the client disconnects."""
        if self._whole:
            self._watch_client()
            await self._disconnected.wait()
            return {"type": "http.disconnect"}
        if self._rate_timer is None and self._settings.min_body_rate and self.context.method in _METHODS_WITH_BODY:
            self._rate_timer = self._loop.call_at(self._body_due(), self._check_rate)
        message = await self._receive()
        self.context.bytes_in += len(message.get("body", b""))
        if self.context.bytes_in > self._settings.max_body_bytes:
            raise self._too_large()
        if self._entered:
            self._reserve(self.context.bytes_in - self._reserved)
        if message["type"] == "http.request" and not message.get("more_body", False):
            self._whole = True
            _cancel(self._rate_timer)
            self._watch_timer = self._loop.call_later(_WATCH_AFTER_SECONDS, self._watch_client)
        return message

    def _body_due(self) -> float:
        """Return until when more of the body must have arrived, by the loop's clock."""
        return self._began + _BODY_GRACE_SECONDS + self.context.bytes_in / self._settings.min_body_rate

    def _check_rate(self) -> None:
        """Stop the work with a 408 if the body arrives more slowly than it must."""
        if self.started:  # it was answered before its body was whole
            return
        due = self._body_due()
        if self._loop.time() < due:
            self._rate_timer = self._loop.call_at(due, self._check_rate)
            return
        self.refusal = Problem(
            408,
            f"The body must arrive at {self._settings.min_body_rate:g} bytes a second after its first "
            f"{_BODY_GRACE_SECONDS:g} seconds.",
            headers={"Connection": "close"},
        )
        self.work.cancel()

    async def send(self, message: Message) -> None:
        """Send part of the application's answer; it is dropped if another answer was sent in its place."""
        if not self.closed:
            await self._pass_on(message)

    async def close_with(self, problem: Problem, scope: Scope) -> bool:
        """Answer with a problem, which is the last event if the answer is a stream that has begun. Nothing is sent afterwards.

        Returns False if part of another kind of answer has been sent already.
        """
        self.closed = True
        if not self.started:
            await to_response(problem, Request(scope))(scope, self._receive, self._pass_on)
            return True
        if self._streams:
            last = {"type": "http.response.body", "body": error_event(problem, self.context.request_id)}
            with anyio.move_on_after(_LAST_EVENT_SECONDS):  # do not wait for a client that does not read
                await self._pass_on(last)
        return self._streams

    async def _pass_on(self, message: Message) -> None:
        """Send a message of an answer; what is large in parts, and then wait until the client has taken nearly all of it.

        The connection would take the whole at once, and hold it for a client that does not read.
        """
        body = message.get("body", b"")
        if len(body) <= _UNSENT_BYTES:
            await self._send_now(message)
            return
        whole = memoryview(body)  # whose parts are no copies
        with self._memory.unsent(len(body) + min(len(body), _PART_BYTES), self.context.caller):
            for begin in range(0, len(body), _PART_BYTES):
                part = whole[begin : begin + _PART_BYTES]
                await self._send_now({"type": "http.response.body", "body": part, "more_body": True})
            if not message.get("more_body", False):
                await self._send_now({"type": "http.response.body", "body": b""})

    async def _send_now(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self.started = True
            self.status = message["status"]
            given = dict(message.get("headers", ()))  # no answer of the service has a name twice
            self._streams = given.get(b"content-type", b"").startswith(EventStream.media_type.encode())
            message["headers"] = list(self._completed(given).items())
        else:
            self.context.bytes_out += len(message.get("body", b""))
            self._complete = not message.get("more_body", False)
        await self._send(message)

    def _completed(self, given: Mapping[bytes, bytes]) -> Mapping[bytes, bytes]:
        """Return the headers of an answer with those of every answer."""
        sent = {**_DEFAULT_HEADERS, **given, **self._headers}
        if _VARY in given and _VARY in self._headers:
            sent[_VARY] = b", ".join(dict.fromkeys([given[_VARY], self._headers[_VARY]]))
        if self._capacity.draining:
            sent[b"connection"] = b"close"  # the client's next request goes to another server
        return sent

    def too_late(self) -> Problem:
        """Return the problem of a request past its deadline: its body did not arrive, or its answer was not ready."""
        seconds = f"{self._settings.deadline_seconds:g} seconds"
        if not self._whole and self.context.method == "POST":
            return Problem(408, f"The body did not arrive within {seconds}.", headers={"Connection": "close"})
        return Problem(
            504, f"The answer was not ready after {seconds}. Ask for less in a request, and send more requests."
        )

    def _watch_client(self) -> None:
        if self._watch is None:
            self._watch = self._loop.create_task(self._watch_for_disconnect())

    async def _watch_for_disconnect(self) -> None:
        """Stop the work if the client disconnects."""
        while (await self._receive())["type"] != "http.disconnect":
            pass
        self._disconnected.set()
        if not self.closed and not self._complete:
            self.work.cancel()

    def _reserve(self, bytes_: int) -> None:
        if bytes_ > 0:
            self._capacity.reserve(bytes_, self._key)
            self._reserved += bytes_

    def _too_large(self) -> Problem:
        return Problem(
            413,
            f"The body may have {self._settings.max_body_bytes} bytes. Send fewer rows in a request, and more requests.",
        )


def _headers(scope: Scope) -> Mapping[str, str]:
    """Return the headers of a request by their names; of several with one name, the first."""
    return {name.decode("latin-1"): value.decode("latin-1") for name, value in reversed(list(scope["headers"]))}


def _encoded(headers: Mapping[str, str]) -> Mapping[bytes, bytes]:
    return {name.lower().encode(): value.encode("latin-1") for name, value in headers.items()}


def _cancel(timer: asyncio.TimerHandle | None) -> None:
    if timer is not None:
        timer.cancel()


def _attributes(context: RequestContext, status: int) -> Mapping[str, str | int]:
    """Return what a span says of a request, by OpenTelemetry's conventions where there are some."""
    return {
        "http.request.method": context.method,
        "http.route": context.route,
        "http.response.status_code": status,
        "gradest.request_id": context.request_id,
        "gradest.elements": context.elements,
    }


def _path(scope: Scope) -> str:
    """Return the path of a request without the prefix below which the service is mounted."""
    path: str = scope["path"].removeprefix(scope.get("root_path", ""))
    return path


def _canonical(scope: Scope) -> Scope:
    """Return the request as its route is declared: HEAD as GET, whose body the server leaves out, and without a last slash."""
    found = dict(scope)
    if found["method"] == "HEAD":
        found["method"] = "GET"
    root, path = found.get("root_path", "").rstrip("/"), found["path"]
    prefix = root if path.startswith(root) else ""
    rest = path[len(prefix) :]
    found["path"] = prefix + (rest.rstrip("/") or rest[:1])  # below a prefix, too, "/" is the page
    return found


def _forget_error(task: asyncio.Task[None]) -> None:
    """Log an error that occurred after the deadline, when it could not be answered any more."""
    if not task.cancelled() and (error := task.exception()):
        _LOG.info("a request failed after its deadline: %r", error)
