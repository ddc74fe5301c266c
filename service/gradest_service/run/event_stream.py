"""Answers that are streams of server-sent events: `progress` while work runs, then one `result` or one `error`."""

from __future__ import annotations

import functools
import logging
import math
from collections.abc import Callable
from typing import Any

import anyio
from anyio import from_thread
from anyio.streams.memory import MemoryObjectSendStream
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from gradest_service.admit.pool import Pool
from gradest_service.bodies.codec import JSON
from gradest_service.problems import Problem, from_exception, internal_error

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

    def __init__(self, run: Callable[[Report], Any], pool: Pool, request_id: str) -> None:
        super().__init__(headers={"Cache-Control": "no-cache", "X-Accel-Buffering": "no"})
        del self.headers["content-length"]
        self._run = run
        self._pool = pool
        self._request_id = request_id

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send the events as they occur."""
        await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
        # at most one event for each chunk of work waits here, and the limits bound the work
        reports, events = anyio.create_memory_object_stream[bytes](math.inf)
        async with anyio.create_task_group() as group:
            group.start_soon(self._stop_when_disconnected, receive, group.cancel_scope)
            group.start_soon(self._produce, reports)
            async with events:
                while True:
                    chunk = b": still running\n\n"
                    with anyio.move_on_after(_KEEP_ALIVE_SECONDS):
                        try:
                            chunk = await events.receive()
                        except anyio.EndOfStream:
                            break
                    await send({"type": "http.response.body", "body": chunk, "more_body": True})
            await send({"type": "http.response.body", "body": b"", "more_body": False})
            group.cancel_scope.cancel()

    async def _stop_when_disconnected(self, receive: Receive, scope: anyio.CancelScope) -> None:
        while (await receive())["type"] != "http.disconnect":
            pass
        scope.cancel()

    async def _produce(self, reports: MemoryObjectSendStream[bytes]) -> None:
        def report(fields: Any) -> None:
            from_thread.check_cancelled()
            from_thread.run_sync(reports.send_nowait, _event("progress", fields))

        async with reports:
            try:
                answer = await self._pool.run(functools.partial(self._run, report))
                reports.send_nowait(_event("result", answer))
            except Exception as error:
                problem = from_exception(error)
                if problem is None:
                    _LOG.exception("request %s failed", self._request_id)
                    problem = internal_error(error)
                reports.send_nowait(error_event(problem, self._request_id))


def error_event(problem: Problem, request_id: str) -> bytes:
    """Encode the last event of a stream that failed."""
    return _event("error", problem.details(request_id).model_dump())


def _event(name: str, fields: Any) -> bytes:
    return b"event: " + name.encode() + b"\ndata: " + JSON.encode(fields) + b"\n\n"
