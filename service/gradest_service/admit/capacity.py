"""How much a process holds at a time, and whether it accepts more: a request is refused early rather than queued for long."""

from __future__ import annotations

import logging
import time
from collections import Counter
from typing import NoReturn

import anyio

from gradest_service.admit.metrics import Metrics
from gradest_service.admit.pool import Pool
from gradest_service.plugin_frames import compiling_threads, running_plugin_methods, show_stack
from gradest_service.problems import Problem
from gradest_service.settings import Settings

__all__ = ["Capacity"]

_LOG = logging.getLogger("gradest_service")
_UNWIND_SECONDS = (
    5.0  # beyond the deadline, after which work that was told to stop counts as lost; less for short deadlines
)
_NO_PLUGIN = "no plugin"
_RETRY_SOON = {"Retry-After": "1"}


class Capacity:
    """Counts the requests in progress and the bytes of their bodies. Only the event loop's thread changes it."""

    def __init__(self, settings: Settings, metrics: Metrics | None = None) -> None:
        self._settings = settings
        self._metrics = metrics
        self.requests = 0
        self.bytes = 0
        self.draining = False
        """True once the service has been told to stop: /readyz answers 503, and connections close after their answers."""
        self.computes = True
        """False if the first sample of this process failed."""
        self.warm = False
        """True once all that the service loads in advance is loaded."""
        self.stuck = False
        """True while every thread of the pool is lost."""
        self.lost_threads = 0
        """How many threads have been busy for longer than a request's deadline, though the work was told to stop."""
        self.set_aside: set[str] = set()
        """The plugins to which too many threads have been lost; requests for them are answered 503."""
        self._losses: Counter[str] = Counter()
        self._of_key: Counter[str] = Counter()
        self._bytes_of_key: Counter[str] = Counter()

    def take_place(self, key: str = "") -> None:
        """Count one more request, perhaps of an API key; raises a 429 if as many as allowed are in progress."""
        share = self._settings.max_requests_per_key or max(1, self._settings.max_requests // 2)
        if key and self._of_key[key] >= share:
            raise Problem(429, f"This key has {share} requests in progress. Send it again.", headers=_RETRY_SOON)
        if self.requests >= self._settings.max_requests:
            raise Problem(
                429, f"{self._settings.max_requests} requests are in progress. Send it again.", headers=_RETRY_SOON
            )
        self.requests += 1
        self._of_key[key] += 1

    def check_room(self, body_bytes: int, key: str = "") -> None:
        """Raise a 429 if there is no room for so many more bytes of bodies, or too little of it is for this key."""
        share = max(self._settings.max_pending_bytes // 2, self._settings.max_body_bytes)
        if key and self._bytes_of_key[key] + body_bytes > share:
            raise Problem(429, "This key's bodies in progress leave no room. Send it again.", headers=_RETRY_SOON)
        if self.bytes + body_bytes > self._settings.max_pending_bytes:
            raise Problem(429, "The bodies in progress leave no room for this one. Send it again.", headers=_RETRY_SOON)

    def reserve(self, body_bytes: int, key: str = "") -> None:
        """Count more bytes of a request's body, which have arrived; raises a 429 if there is no room for them."""
        self.check_room(body_bytes, key)
        self._hold(body_bytes, key)

    def leave(self, body_bytes: int, key: str = "") -> None:
        """Count one request less, and the bytes that were reserved for it."""
        self.requests -= 1
        self._of_key[key] -= 1
        if not self._of_key[key]:
            del self._of_key[key]
        self._hold(-body_bytes, key)

    def _hold(self, more: int, key: str) -> None:
        self.bytes += more
        self._bytes_of_key[key] += more
        if not self._bytes_of_key[key]:
            del self._bytes_of_key[key]

    async def watch(self, pool: Pool) -> NoReturn:
        """Count the threads of the pool that are busy for longer than the deadline, and set aside plugins that lose many.

        It also gives back memory that heavy work has freed.
        """
        deadline = self._settings.deadline_seconds
        longest = deadline + min(_UNWIND_SECONDS, 2 * deadline)
        lost: set[tuple[int, float]] = set()
        while True:
            late = {call for call in pool.running() if call[1] < time.monotonic() - longest}
            if late:  # the first kernel of an installation may take longer than a request where there is little to compute with
                compiling = compiling_threads()
                late = {call for call in late if call[0] not in compiling}
            for thread, _ in late - lost:
                self._note_loss(thread)
            lost = late
            self.lost_threads = len(late)
            self.stuck = len(late) >= pool.threads
            if self._metrics is not None:
                self._metrics.measure_memory(pool.memory.used, self.bytes)
            await pool.release_memory()
            await anyio.sleep(min(1.0, deadline / 4))

    def _note_loss(self, thread: int) -> None:
        method = next(iter(running_plugin_methods([thread])), _NO_PLUGIN)
        name = method.partition(".")[0]
        _LOG.error("a thread is lost: what runs in it, in %s, does not end:\n%s", method, show_stack(thread))
        if self._metrics is not None:
            self._metrics.count_lost_thread(name)
        self._losses[name] += 1
        if self._losses[name] >= self._settings.max_lost_threads and method != _NO_PLUGIN:
            self.set_aside.add(name)
            _LOG.error("%s is set aside: %d threads were lost to it", name, self._losses[name])

    def check_ready(self) -> None:
        """Raise a 503 if new requests should go elsewhere."""
        if self.draining:
            raise Problem(503, "The service is stopping.", headers=_RETRY_SOON)
        if not self.computes:
            raise Problem(503, "This process cannot draw samples; its log says why.", headers=_RETRY_SOON)
        if self.stuck:
            methods = ", ".join(running_plugin_methods()) or "no plugin"
            raise Problem(
                503,
                f"All threads have been busy for longer than the deadline, in {methods}. Restart the service.",
                headers=_RETRY_SOON,
            )
        if self.requests >= self._settings.max_requests:
            raise Problem(503, "The service has as many requests as it accepts.", headers=_RETRY_SOON)
