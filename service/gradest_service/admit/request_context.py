"""What is recorded about the request in progress: for its log line, the metrics and its API key's budget."""

from __future__ import annotations

from collections.abc import Callable, Collection
from contextvars import ContextVar
from dataclasses import dataclass, field

from gradest_service.admit.auth import ApiKey
from gradest_service.phases import Record

__all__ = [
    "RequestContext",
    "charge",
    "count_dropped_event",
    "current_caller",
    "current_request",
    "is_set_aside",
    "note_plugin_fault",
    "reserve",
]


@dataclass(slots=True)
class RequestContext:
    """The record of one request. The threads that work for the request see the same object."""

    request_id: str
    method: str
    route: str = "none"
    """The path's template; never the path itself, which is the caller's own text."""
    client: str = ""
    """The address of the client, or of the last proxy that is not trusted."""
    key: ApiKey | None = None
    set_aside: Collection[str] = ()
    """The plugins that are answered 503."""
    elements: int = 0
    """How many elements of tensors the service has computed for the request."""
    dropped_events: int = 0
    """How many events of progress were replaced by newer ones, because the client had not read those before."""
    bytes_in: int = 0
    bytes_out: int = 0
    trace_id: str = ""
    """The trace of which the request is a part, if there is one."""
    plugin_fault: str = ""
    """The plugin whose code failed on the request."""
    record: Record = field(default_factory=Record)
    """The phases of the request that are over."""
    reserve: Callable[[int], None] | None = None
    """Counts more bytes that the request holds; raises a 429 if there is no room for them. Only for the event loop's thread.

    None before and after the request has a place.
    """

    @property
    def caller(self) -> str:
        """Whose request it is, where callers take turns: the name of the API key, or the client's address."""
        return self.client if self.key is None else self.key.name


current_request: ContextVar[RequestContext | None] = ContextVar("gradest_service_request", default=None)


def charge(elements: int) -> None:
    """Record that the current request is about to compute so many elements, and take them from its API key's budget."""
    context = current_request.get()
    if context is not None:
        context.elements += elements
        if context.key is not None:
            context.key.charge(elements)


def current_caller() -> str:
    """Return whose the current request is; an empty string outside of requests."""
    context = current_request.get()
    return "" if context is None else context.caller


def reserve(more: int) -> None:
    """Count bytes that the current request holds beside its body, if any; raises a 429 if there is no room for them."""
    context = current_request.get()
    if context is not None and context.reserve is not None:
        context.reserve(more)


def count_dropped_event() -> None:
    """Record that an event of the current request's stream was replaced by a newer one."""
    context = current_request.get()
    if context is not None:
        context.dropped_events += 1


def note_plugin_fault(plugin: str) -> None:
    """Record that the code of this plugin failed on the current request."""
    context = current_request.get()
    if context is not None:
        context.plugin_fault = plugin


def is_set_aside(plugin: str) -> bool:
    """Tell whether the plugin of this name has been set aside, because threads were lost to it."""
    context = current_request.get()
    return context is not None and plugin in context.set_aside
