"""What a process holds at a time, and whether it takes more: refused early rather than queued for long."""

from __future__ import annotations

import time
from typing import NoReturn

import anyio

from gradest_service.admit.pool import Pool
from gradest_service.plugin_frames import at_work
from gradest_service.problems import Problem
from gradest_service.settings import Settings

__all__ = ["Load"]

_LATER = {"Retry-After": "1"}


class Load:
    """The requests in progress and the bytes of their bodies. Only the event loop's thread changes it."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self.requests = 0
        self.bytes = 0
        self.draining = False
        """Set when the service is told to stop: /readyz says so, and connections end with their answers."""
        self.stuck = False
        """Whether every thread of the pool has been taken for longer than a request may take."""

    def enter(self) -> None:
        """Count one more request; 429 if there is no room for it."""
        if self.requests >= self._settings.max_requests:
            raise Problem(
                429, f"{self._settings.max_requests} requests are in progress. Send it again.", headers=_LATER
            )
        self.requests += 1

    def hold(self, body: int) -> None:
        """Count so many more bytes of a request's body; 429 if there is no room for them."""
        if self.bytes + body > self._settings.max_pending_bytes:
            raise Problem(429, "The bodies in progress take all the room there is. Send it again.", headers=_LATER)
        self.bytes += body

    def leave(self, body: int) -> None:
        """One request less, and the bytes that it held."""
        self.requests -= 1
        self.bytes -= body

    async def watch(self, pool: Pool) -> NoReturn:
        """Note for how long the threads of the pool are taken."""
        deadline, since = self._settings.deadline_seconds, dict[object, float]()
        while True:
            now = time.monotonic()
            since = {taker: since.get(taker, now) for taker in pool.takers()}
            self.stuck = len(since) >= pool.threads and max(since.values()) < now - deadline
            await anyio.sleep(min(1.0, deadline / 4))

    def check_ready(self) -> None:
        """Whether requests are welcome; 503 if not."""
        if self.draining:
            raise Problem(503, "The service is stopping.", headers=_LATER)
        if self.stuck:
            places = ", ".join(at_work()) or "no plugin"
            raise Problem(
                503,
                f"All threads have been at work past the deadline, in {places}. Restart the service.",
                headers=_LATER,
            )
        if self.requests >= self._settings.max_requests:
            raise Problem(503, "The service has as many requests as it takes.", headers=_LATER)
