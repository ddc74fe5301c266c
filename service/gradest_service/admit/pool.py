"""The threads that compute, and the queue for them."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Collection
from contextlib import asynccontextmanager
from typing import TypeVar

from anyio import CapacityLimiter, to_thread

from gradest_service.admit.metrics import Metrics

__all__ = ["Pool"]

Result = TypeVar("Result")


class Pool:
    """As much work at a time as there are threads; the rest waits for its turn, in order, and is counted meanwhile."""

    def __init__(self, threads: int, metrics: Metrics | None = None) -> None:
        self.threads = threads
        self._turns = CapacityLimiter(threads)
        self._metrics = metrics

    async def run(self, work: Callable[[], Result]) -> Result:
        """`work()`, in a thread, when it is its turn."""
        async with self.turn():
            return await self.run_now(work)

    def takers(self) -> Collection[object]:
        """Who has the threads that are not free."""
        return self._turns.statistics().borrowers

    def waiting(self) -> int:
        """How many wait for a thread."""
        return self._turns.statistics().tasks_waiting

    @asynccontextmanager
    async def turn(self) -> AsyncIterator[None]:
        """Wait for a thread to be free, and have it inside the block, for one `run_now`."""
        if self._metrics is not None:
            self._metrics.wait(1)
        try:
            await self._turns.acquire()
        finally:
            if self._metrics is not None:
                self._metrics.wait(-1)
        try:
            yield
        finally:
            self._turns.release()

    async def run_now(self, work: Callable[[], Result]) -> Result:
        """`work()`, in the thread that this task has the turn of."""
        return await to_thread.run_sync(work, limiter=CapacityLimiter(1))
