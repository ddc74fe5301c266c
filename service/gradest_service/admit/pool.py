"""The threads that compute, and the queue for them."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import AsyncIterator, Callable, Collection
from contextlib import AsyncExitStack, asynccontextmanager
from typing import TypeVar

from anyio import CapacityLimiter, from_thread, to_thread

from gradest.errors import Cancelled, PluginFault
from gradest_service.admit.metrics import Metrics
from gradest_service.phases import record_of_caller

__all__ = ["Pool", "contained"]

Result = TypeVar("Result")


class Pool:
    """A fixed number of threads. Further work waits for a thread in order of arrival, and is counted while it waits.

    Heavy work takes all threads but one, if there are several, so that light work never waits behind it alone.
    """

    def __init__(self, threads: int, metrics: Metrics | None = None) -> None:
        self.threads = threads
        self._free_threads = CapacityLimiter(threads)
        self._free_for_heavy = CapacityLimiter(max(1, threads - 1))
        self._metrics = metrics
        self._running: set[tuple[int, float]] = set()

    async def run(self, work: Callable[[], Result], heavy: bool = False) -> Result:
        """Wait for a free thread and return `work()`, called in it."""
        waiting_since = time.time_ns()
        async with self.thread(heavy):
            record_of_caller().add("queue", waiting_since)
            return await self.run_now(work)

    def running(self) -> Collection[tuple[int, float]]:
        """Return the calls that run: the thread of each, and when it began by the monotonic clock."""
        return self._running.copy()

    def waiting(self) -> int:
        """Return how many tasks wait for a thread."""
        return self._free_threads.statistics().tasks_waiting + self._free_for_heavy.statistics().tasks_waiting

    @asynccontextmanager
    async def thread(self, heavy: bool = False) -> AsyncIterator[None]:
        """Wait for a free thread, and hold it inside the block, for one call of `run_now`."""
        if self._metrics is not None:
            self._metrics.add_waiting(1)
        async with AsyncExitStack() as stack:
            try:
                if heavy:
                    await stack.enter_async_context(self._free_for_heavy)
                await stack.enter_async_context(self._free_threads)
            finally:
                if self._metrics is not None:
                    self._metrics.add_waiting(-1)
            yield

    async def run_now(self, work: Callable[[], Result]) -> Result:
        """Return `work()`, called in the thread that this task holds."""

        def noted() -> Result:
            call = threading.get_ident(), time.monotonic()
            self._running.add(call)
            try:
                return contained(work)
            finally:
                self._running.discard(call)

        return await to_thread.run_sync(noted, limiter=CapacityLimiter(1))


def contained(work: Callable[[], Result]) -> Result:
    """Return `work()`, which a thread of the pool calls. What a plugin raises never ends more than its request.

    The event loop would take SystemExit or KeyboardInterrupt for the end of the process, and CancelledError for its own
    cancellation of the task.
    """
    try:
        return work()
    except Exception:
        raise
    except BaseException as error:
        if isinstance(error, Cancelled):
            from_thread.check_cancelled()
            raise  # the work was for several requests
        if isinstance(error, asyncio.CancelledError):
            from_thread.check_cancelled()
        raise PluginFault(f"the code of a plugin raised {type(error).__name__}") from error
