"""What is known about the request in progress: for its log line, the metrics and its key's budget."""

from __future__ import annotations

from contextvars import ContextVar
from dataclasses import dataclass

__all__ = ["Call", "charge", "current"]


@dataclass(slots=True)
class Call:
    """One request. The threads that work for it see the same object."""

    request_id: str
    method: str
    route: str = "none"
    """The path's template; never the path itself, which is the caller's own text."""
    key: str = ""
    """The name of the API key."""
    elements: int = 0
    """What it made the service compute, in elements of tensors."""
    bytes_in: int = 0
    bytes_out: int = 0


current: ContextVar[Call | None] = ContextVar("gradest_service_call", default=None)


def charge(elements: int) -> None:
    """Say how many elements the request in progress makes the service compute; called before it does."""
    call = current.get()
    if call is not None:
        call.elements += elements
