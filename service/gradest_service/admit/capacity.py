"""How much a process holds at a time, and whether it accepts more: a request is refused early rather than queued for long."""

from __future__ import annotations

import time
from typing import NoReturn

import anyio

from gradest_service.admit.pool import Pool
from gradest_service.plugin_frames import running_plugin_methods
from gradest_service.problems import Problem
from gradest_service.settings import Settings

__all__ = ["Capacity"]

_RETRY_SOON = {"Retry-After": "1"}


class Capacity:
    """Counts the requests in progress and the bytes of their bodies. Only the event loop's thread changes it."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self.requests = 0
        self.bytes = 0
        self.draining = False
        """True once the service has been told to stop: /readyz answers 503, and connections close after their answers."""
        self.computes = True
        """False if the first sample of this process failed."""
        self.stuck = False
        """True while every thread of the pool has been busy for longer than a request's deadline."""

    def take_place(self) -> None:
        """Count one more request; raises a 429 if as many as allowed are in progress."""
        if self.requests >= self._settings.max_requests:
            raise Problem(
                429, f"{self._settings.max_requests} requests are in progress. Send it again.", headers=_RETRY_SOON
            )
        self.requests += 1

    def reserve(self, body_bytes: int) -> None:
        """Count more bytes of a request's body; raises a 429 if there is no room for them."""
        if self.bytes + body_bytes > self._settings.max_pending_bytes:
            raise Problem(429, "The bodies in progress leave no room for this one. Send it again.", headers=_RETRY_SOON)
        self.bytes += body_bytes

    def leave(self, body_bytes: int) -> None:
        """Count one request less, and the bytes that were reserved for it."""
        self.requests -= 1
        self.bytes -= body_bytes

    async def watch(self, pool: Pool) -> NoReturn:
        """Keep `stuck` up to date, by noting since when each thread of the pool has been busy."""
        deadline, busy_since = self._settings.deadline_seconds, dict[object, float]()
        while True:
            now = time.monotonic()
            busy_since = {holder: busy_since.get(holder, now) for holder in pool.holders()}
            self.stuck = len(busy_since) >= pool.threads and max(busy_since.values()) < now - deadline
            await anyio.sleep(min(1.0, deadline / 4))

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
