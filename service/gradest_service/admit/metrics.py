"""Prometheus metrics of one application, by prometheus-client from the extra `serve`.

Where several workers run, their counts are kept in files of a folder that PROMETHEUS_MULTIPROC_DIR names before they start, and
whichever worker is asked answers for all of them.
"""

from __future__ import annotations

import os
from importlib.util import find_spec

from gradest_service.admit.request_context import Call

__all__ = ["FOLDER", "Metrics", "available", "forget"]

FOLDER = "PROMETHEUS_MULTIPROC_DIR"

_METHODS = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"})
_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60)
_BATCHES = (1, 2, 4, 8, 16, 32, 64, 128, 256)


def available() -> bool:
    """Whether prometheus-client is installed."""
    return find_spec("prometheus_client") is not None


class Metrics:
    """Counts of requests by route, in a registry of its own. A route is a path's template, so there are few of them."""

    media_type = "text/plain; version=0.0.4; charset=utf-8"

    def __init__(self) -> None:
        from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram  # noqa: PLC0415

        self._registry = CollectorRegistry()
        self._requests = Counter(
            "gradest_requests", "Requests answered.", ["route", "method", "status"], registry=self._registry
        )
        self._seconds = Histogram(
            "gradest_request_seconds", "From first to last byte.", ["route"], buckets=_SECONDS, registry=self._registry
        )
        self._in_progress = Gauge(
            "gradest_requests_in_progress",
            "Waiting or worked on.",
            registry=self._registry,
            multiprocess_mode="livesum",
        )
        self._waiting = Gauge(
            "gradest_requests_waiting",
            "Passes that wait for a thread; with batching a pass may be for several requests.",
            registry=self._registry,
            multiprocess_mode="livesum",
        )
        self._batch = Histogram(
            "gradest_batch_requests", "Requests that one pass was for.", buckets=_BATCHES, registry=self._registry
        )
        self._elements = Counter(
            "gradest_elements", "Elements sampled or estimated from.", ["route"], registry=self._registry
        )
        self._received = Counter("gradest_received_bytes", "Of bodies.", ["route"], registry=self._registry)
        self._sent = Counter("gradest_sent_bytes", "Of bodies.", ["route"], registry=self._registry)

    def begin(self) -> None:
        """A request is here."""
        self._in_progress.inc()

    def wait(self, more: int) -> None:
        """So many more wait for a thread."""
        self._waiting.inc(more)

    def observe_batch(self, requests: int) -> None:
        """A pass for so many requests starts."""
        self._batch.observe(requests)

    def end(self, call: Call, status: int, seconds: float) -> None:
        """It is answered; status 499 says that its client went away."""
        self._in_progress.dec()
        method = call.method if call.method in _METHODS else "other"
        self._requests.labels(call.route, method, str(status)).inc()
        self._seconds.labels(call.route).observe(seconds)
        self._elements.labels(call.route).inc(call.elements)
        self._received.labels(call.route).inc(call.bytes_in)
        self._sent.labels(call.route).inc(call.bytes_out)

    def render(self) -> bytes:
        """The metrics of all workers, as Prometheus reads them."""
        from prometheus_client import CollectorRegistry, generate_latest  # noqa: PLC0415
        from prometheus_client.multiprocess import MultiProcessCollector  # noqa: PLC0415

        if FOLDER not in os.environ:
            return generate_latest(self._registry)
        registry = CollectorRegistry()
        MultiProcessCollector(registry)  # type: ignore[no-untyped-call]
        return generate_latest(registry)


def forget(pid: int, folder: str) -> None:
    """Leave what was in progress in a dead worker out of the gauges. Its counts stay."""
    from prometheus_client.multiprocess import mark_process_dead  # noqa: PLC0415

    mark_process_dead(pid, folder)  # type: ignore[no-untyped-call]
