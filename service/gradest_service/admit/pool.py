"""The threads that compute, and the queue for them."""

from __future__ import annotations

import asyncio
import math
import sys
import threading
import time
from collections.abc import AsyncIterator, Callable, Collection
from contextlib import asynccontextmanager
from functools import partial
from typing import TypeVar

from anyio import CapacityLimiter, from_thread, to_thread

from gradest.errors import Cancelled, PluginFault
from gradest_service.admit.metrics import Metrics
from gradest_service.admit.request_context import current_caller
from gradest_service.phases import record_of_caller
from gradest_service.resources.allocator import release_freed_blocks
from gradest_service.resources.memory import Memory
from gradest_service.resources.turns import LIGHT, Need, Turns

__all__ = ["Pool", "contained"]

Result = TypeVar("Result")
_IDLE_SECONDS = 5.0  # after which memory that heavy work has freed is no longer kept for more of it
_MUCH = 8  # heavy work that takes more than the limit on memory over this gives it back to the system when it ends


class Pool:
    """A fixed number of threads. Further work waits for its turn, and is counted while it waits."""

    def __init__(self, threads: int, memory: Memory | None = None, metrics: Metrics | None = None) -> None:
        self.threads = threads
        self.memory = memory or Memory(sys.maxsize, sys.maxsize)
        self._turns = Turns(threads, self.memory)
        self._much_memory = self.memory.limit // _MUCH
        self._heavy_at: float | None = None
        self._metrics = metrics
        self._running: set[tuple[int, float]] = set()
        self._limiter = CapacityLimiter(math.inf)  # turns limit the threads

    async def run(self, work: Callable[[], Result], need: Need = LIGHT) -> Result:
        """Wait for a turn and return `work()`, called in a thread."""
        waiting_since = time.time_ns()
        async with self.thread(need):
            record_of_caller().add("queue", waiting_since)
            self._heavy_at = time.monotonic() if need.heavy else self._heavy_at
            return await self.run_now(
                partial(_then_release, work) if need.heavy and need.bytes > self._much_memory else work
            )

    async def release_memory(self) -> None:
        """Give the system back what heavy work has freed, if the last began a while ago: more of it would take it again."""
        if self._heavy_at is not None and time.monotonic() - self._heavy_at > _IDLE_SECONDS:
            self._heavy_at = None
            await to_thread.run_sync(release_freed_blocks, limiter=self._limiter)

    def running(self) -> Collection[tuple[int, float]]:
        """Return the calls that run: the thread of each, and when it began by the monotonic clock."""
        return self._running.copy()

    def waiting(self) -> int:
        """Return how many tasks wait for their turn."""
        return self._turns.waiting()

    @asynccontextmanager
    async def thread(self, need: Need = LIGHT) -> AsyncIterator[None]:
        """Wait for a turn, and hold a thread and memory inside the block, for one call of `run_now`."""
        caller = current_caller()
        if not self._turns.take_at_once(need, caller):
            await self._wait(need, caller)
        try:
            yield
        finally:
            self._turns.give_back(need)

    async def _wait(self, need: Need, caller: str) -> None:
        if self._metrics is not None:
            self._metrics.add_waiting(1)
        try:
            await self._turns.take(need, caller)
        finally:
            if self._metrics is not None:
                self._metrics.add_waiting(-1)

    async def run_now(self, work: Callable[[], Result]) -> Result:
        """Return `work()`, called in the thread that this task holds."""

        def noted() -> Result:
            call = threading.get_ident(), time.monotonic()
            self._running.add(call)
            try:
                return contained(work)
            finally:
                self._running.discard(call)

        return await to_thread.run_sync(noted, limiter=self._limiter)


def _then_release(work: Callable[[], Result]) -> Result:
    try:
        return work()
    finally:
        release_freed_blocks()


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
