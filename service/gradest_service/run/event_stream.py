"""Answers that are streams of server-sent events: `progress` while work runs, then one `result` or one `error`."""

from __future__ import annotations

import functools
import logging
from collections.abc import Callable
from typing import Any, Self

import anyio
from anyio import from_thread
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from gradest_service.admit.pool import Pool
from gradest_service.admit.request_context import count_dropped_event, current_caller, note_plugin_fault
from gradest_service.bodies.codec import JSON
from gradest_service.phases import phase
from gradest_service.problems import Problem, from_exception, internal_error, plugin_at_fault
from gradest_service.resources.memory import Memory
from gradest_service.resources.turns import Need
from gradest_service.run.cancellation import raise_if_cancelled

__all__ = ["EventStream", "Report", "error_event"]

Report = Callable[[Any], None]
"""Sends a `progress` event with these fields; raises, which ends the work, if nobody waits for the answer."""

_LOG = logging.getLogger("gradest_service")
_KEEP_ALIVE_SECONDS = 15.0  # without an event, after which a comment keeps the connection alive


class EventStream(Response):
    """Sends the events of `run`, which is called in a thread of the pool with a function that sends a `progress` event.

    If the client disconnects, `run` is stopped at its next report.
    """

    media_type = "text/event-stream"

    def __init__(self, run: Callable[[Report], Any], pool: Pool, memory: Memory, request_id: str, need: Need) -> None:
        super().__init__(headers={"Cache-Control": "no-cache", "X-Accel-Buffering": "no"})
        del self.headers["content-length"]
        self._run = run
        self._pool = pool
        self._memory = memory
        self._need = need
        self._request_id = request_id

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send the events as they occur."""
        await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
        async with _Waiting(self._memory) as events, anyio.create_task_group() as group:
            group.start_soon(self._stop_when_disconnected, receive, group.cancel_scope)
            group.start_soon(self._produce, events)
            while not events.ended:
                chunk = b": still running\n\n"
                with anyio.move_on_after(_KEEP_ALIVE_SECONDS):
                    chunk = await events.take()
                await send({"type": "http.response.body", "body": chunk, "more_body": True})
            await send({"type": "http.response.body", "body": b"", "more_body": False})
            group.cancel_scope.cancel()

    async def _stop_when_disconnected(self, receive: Receive, scope: anyio.CancelScope) -> None:
        while (await receive())["type"] != "http.disconnect":
            pass
        scope.cancel()

    async def _produce(self, events: _Waiting) -> None:
        def report(fields: Any) -> None:
            raise_if_cancelled()
            subject = fields.get("estimator", "") if isinstance(fields, dict) else ""
            from_thread.run_sync(events.put, subject, _event("progress", fields))

        try:
            answer = await self._pool.run(phase("compute")(functools.partial(self._run, report)), self._need)
            with phase("encode"):
                last = _event("result", answer)
            events.end(last)
        except Exception as error:
            problem = from_exception(error)
            if problem is None:
                _LOG.exception("request %s failed", self._request_id)
                note_plugin_fault(plugin_at_fault(error))
                problem = internal_error(error)
            events.end(error_event(problem, self._request_id))


class _Waiting:
    """The events that wait to be sent: the newest progress of each estimator, and the last event once there is one.

    Progress that newer progress replaces is counted. So a client that does not read holds an event for each estimator that it has
    named, however long the work reports.
    """

    def __init__(self, memory: Memory) -> None:
        self.ended = False
        """Whether the last event has been taken."""
        self._progress: dict[str, bytes] = {}
        self._last: bytes | None = None
        self._any = anyio.Event()
        self._memory = memory
        self._caller = current_caller()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *exc: object) -> None:
        """Drop the events that wait."""
        dropped = sum(map(len, self._progress.values())) + len(self._last or b"")
        self._progress, self._last = {}, None
        self._memory.release_unsent(dropped, self._caller)

    def put(self, subject: str, event: bytes) -> None:
        """Add an event of progress, in place of one of the same subject that was not taken."""
        if (replaced := self._progress.pop(subject, None)) is not None:
            count_dropped_event()
            self._memory.release_unsent(len(replaced), self._caller)
        self._progress[subject] = event
        self._memory.take_unsent(len(event), self._caller)
        self._any.set()

    def end(self, event: bytes) -> None:
        """Add the last event."""
        self._last = event
        self._memory.take_unsent(len(event), self._caller)
        self._any.set()

    async def take(self) -> bytes:
        """Wait for an event and return it."""
        await self._any.wait()
        if self._progress:
            found = self._progress.pop(next(iter(self._progress)))
            if not self._progress and self._last is None:
                self._any = anyio.Event()
        else:
            assert self._last is not None
            found, self._last, self.ended = self._last, None, True
        self._memory.release_unsent(len(found), self._caller)
        return found


def error_event(problem: Problem, request_id: str) -> bytes:
    """Encode the last event of a stream that failed."""
    return _event("error", problem.details(request_id).model_dump())


def _event(name: str, fields: Any) -> bytes:
    return b"event: " + name.encode() + b"\ndata: " + JSON.encode(fields) + b"\n\n"
