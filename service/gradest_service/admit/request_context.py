"""What is known about the request in progress: for its log line, the metrics and its key's budget."""

from __future__ import annotations

from contextvars import ContextVar
from dataclasses import dataclass

from anyio import from_thread

from gradest_service.admit.auth import Key

__all__ = ["Call", "charge", "current", "stop_if_told"]


@dataclass(slots=True)
class Call:
    """One request. The threads that work for it see the same object."""

    request_id: str
    method: str
    route: str = "none"
    """The path's template; never the path itself, which is the caller's own text."""
    key: Key | None = None
    elements: int = 0
    """What it made the service compute, in elements of tensors."""
    bytes_in: int = 0
    bytes_out: int = 0


current: ContextVar[Call | None] = ContextVar("gradest_service_call", default=None)


def charge(elements: int) -> None:
    """Count the elements that the request in progress is about to compute, and take them from its key's budget."""
    call = current.get()
    if call is not None:
        call.elements += elements
        if call.key is not None:
            call.key.charge(elements)


def stop_if_told(*_: object) -> None:
    """A report of progress, from a thread of the pool, that ends the work once its deadline is over or its client is gone."""
    from_thread.check_cancelled()
