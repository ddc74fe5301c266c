"""Prometheus metrics of one application, by prometheus-client, which the extra `serve` installs.

Several workers keep their counts in files of a folder, which PROMETHEUS_MULTIPROC_DIR names before they start; any one of them
answers for all.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from contextlib import suppress
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gradest_service.admit.request_context import RequestContext

if TYPE_CHECKING:
    from prometheus_client.metrics import MetricWrapperBase

__all__ = ["FOLDER_VARIABLE", "Metrics", "available", "forget_worker"]

FOLDER_VARIABLE = "PROMETHEUS_MULTIPROC_DIR"
"""The environment variable that names the folder of several workers' counts."""

_STATM = Path("/proc/self/statm")  # sizes in pages, of which the second is the resident one
_METHODS = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"})
_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60)
_BATCHES = (1, 2, 4, 8, 16, 32, 64, 128, 256)


def available() -> bool:
    """Tell whether prometheus-client is installed."""
    return find_spec("prometheus_client") is not None


class Metrics:
    """Counts of requests by route, in a Prometheus registry of their own. A route is a path's template, so there are few."""

    media_type = "text/plain; version=0.0.4; charset=utf-8"

    def __init__(self) -> None:
        from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram  # noqa: PLC0415

        self._registry = CollectorRegistry()
        self._requests = _labelled(
            Counter("gradest_requests", "Requests answered.", ["route", "method", "status"], registry=self._registry)
        )
        self._seconds = _labelled(
            Histogram(
                "gradest_request_seconds",
                "Seconds from the first byte of a request to the last byte of its answer.",
                ["route"],
                buckets=_SECONDS,
                registry=self._registry,
            )
        )
        self._in_progress = Gauge(
            "gradest_requests_in_progress",
            "Requests that wait or are computed.",
            registry=self._registry,
            multiprocess_mode="livesum",
        )
        self._waiting = Gauge(
            "gradest_requests_waiting",
            "Computations that wait for a thread; with batching one may be for several requests.",
            registry=self._registry,
            multiprocess_mode="livesum",
        )
        self._batch = Histogram(
            "gradest_batch_requests", "Requests that were computed together.", buckets=_BATCHES, registry=self._registry
        )
        self._connections = Gauge(
            "gradest_connections", "Open connections.", registry=self._registry, multiprocess_mode="livesum"
        )
        self._refused = _labelled(
            Counter(
                "gradest_refused_connections",
                "Connections that were closed at once, by the limit that they passed: that of the process, or of one client.",
                ["limit"],
                registry=self._registry,
            )
        )
        self._elements = _labelled(
            Counter("gradest_elements", "Elements sampled or estimated from.", ["route"], registry=self._registry)
        )
        self._phases = _labelled(
            Histogram(
                "gradest_phase_seconds",
                "Seconds of each phase of a request: decode, queue (it waits for a thread), batch, and in it compute and encode.",
                ["phase"],
                buckets=_SECONDS,
                registry=self._registry,
            )
        )
        self._faults = _labelled(
            Counter(
                "gradest_plugin_faults",
                "Requests on which a plugin's code failed.",
                ["plugin"],
                registry=self._registry,
            )
        )
        self._body_bytes = Gauge(
            "gradest_body_bytes",
            "Bytes of the bodies of requests in progress, once a second.",
            registry=self._registry,
            multiprocess_mode="livesum",
        )
        self._memory = Gauge(
            "gradest_memory_bytes",
            "Memory of computations and of answers that are not yet sent, as plugins state it, once a second.",
            registry=self._registry,
            multiprocess_mode="livesum",
        )
        self._resident = Gauge(
            "gradest_resident_bytes",
            "Memory that the processes hold, once a second.",
            registry=self._registry,
            multiprocess_mode="livesum",
        )
        self._lost = _labelled(
            Counter(
                "gradest_lost_threads", "Threads that did not end at the deadline.", ["plugin"], registry=self._registry
            )
        )
        self._dropped = _labelled(
            Counter(
                "gradest_dropped_events",
                "Events of progress that were replaced by newer ones, because their client did not read.",
                ["route"],
                registry=self._registry,
            )
        )
        self._received = _labelled(
            Counter("gradest_received_bytes", "Bytes of requests' bodies.", ["route"], registry=self._registry)
        )
        self._sent = _labelled(
            Counter("gradest_sent_bytes", "Bytes of answers' bodies.", ["route"], registry=self._registry)
        )

    def begin(self) -> None:
        """Count a request that has arrived."""
        self._in_progress.inc()

    def add_waiting(self, more: int) -> None:
        """Count so many more computations that wait for a thread; fewer if it is negative."""
        self._waiting.inc(more)

    def add_connections(self, more: int) -> None:
        """Count so many more open connections; fewer if it is negative."""
        self._connections.inc(more)

    def count_refused_connection(self, limit: str) -> None:
        """Count a connection that was closed at once, because of this limit."""
        self._refused(limit).inc()

    def count_lost_thread(self, plugin: str) -> None:
        """Count a thread in which a plugin's code runs past the deadline."""
        self._lost(plugin).inc()

    def measure_memory(self, counted: int, bodies: int) -> None:
        """Set what is counted for requests and for their bodies, and what this process holds, on systems that tell it."""
        self._memory.set(counted)
        self._body_bytes.set(bodies)
        with suppress(OSError):
            self._resident.set(int(_STATM.read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE"))

    def observe_batch(self, requests: int) -> None:
        """Count a computation that starts for so many requests."""
        self._batch.observe(requests)

    def end(self, context: RequestContext, status: int, seconds: float) -> None:
        """Count a request that has been answered; status 499 means that its client disconnected."""
        self._in_progress.dec()
        method = context.method if context.method in _METHODS else "other"
        self._requests(context.route, method, str(status)).inc()
        self._seconds(context.route).observe(seconds)
        self._elements(context.route).inc(context.elements)
        for one in context.record.phases:
            self._phases(one.name).observe((one.ended - one.began) / 1e9)
        if context.plugin_fault:
            self._faults(context.plugin_fault).inc()
        if context.dropped_events:
            self._dropped(context.route).inc(context.dropped_events)
        self._received(context.route).inc(context.bytes_in)
        self._sent(context.route).inc(context.bytes_out)

    def render(self) -> bytes:
        """Return the metrics of all workers, in the text format of Prometheus."""
        from prometheus_client import CollectorRegistry, generate_latest  # noqa: PLC0415
        from prometheus_client.multiprocess import MultiProcessCollector  # noqa: PLC0415

        if FOLDER_VARIABLE not in os.environ:
            return generate_latest(self._registry)
        registry = CollectorRegistry()
        MultiProcessCollector(registry)  # type: ignore[no-untyped-call]
        return generate_latest(registry)


def _labelled(metric: MetricWrapperBase) -> Callable[..., Any]:
    """Return `metric.labels`, which looks each child up once: routes, methods, statuses and plugins are few."""
    return cache(metric.labels)


def forget_worker(pid: int, folder: str) -> None:
    """Remove what was in progress in a dead worker from the gauges. Its counts stay."""
    from prometheus_client.multiprocess import mark_process_dead  # noqa: PLC0415

    mark_process_dead(pid, folder)  # type: ignore[no-untyped-call]
