"""Where a request stands in its caller's trace, by the header `traceparent` of W3C Trace Context.

Without the setting `tracing` the header is passed on: to the answer and to the log. With it, a request is a span of
OpenTelemetry, and its phases are spans below it.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Mapping, Sequence
from importlib.metadata import version
from typing import TYPE_CHECKING

from gradest.errors import InvalidInput
from gradest_service.phases import Phase

if TYPE_CHECKING:
    from opentelemetry.context import Context
    from opentelemetry.trace import Span, Tracer, TracerProvider

__all__ = ["RequestTrace", "Spans", "Tracing"]

_HEADER = "traceparent"
_VALID = re.compile(r"(?!ff)[0-9a-f]{2}-(?!0{32})([0-9a-f]{32})-(?!0{16})[0-9a-f]{16}-[0-9a-f]{2}")


class RequestTrace:
    """Where one request stands in a trace, if it is part of one.

    headers: what the answer says about it.
    """

    is_reported = False
    """Whether `end` does anything."""

    def __init__(self, trace_id: str = "", headers: Mapping[str, str] | None = None) -> None:
        self.trace_id = trace_id
        self.headers = dict(headers or {})

    def end(self, name: str, attributes: Mapping[str, str | int], phases: Sequence[Phase], failed: bool) -> None:
        """Report the request, which is over."""


class Tracing:
    """Passes the caller's trace on, and reports nothing."""

    def begin(self, headers: Mapping[str, str]) -> RequestTrace:
        """Begin the request with these headers. A `traceparent` that is not valid is ignored, as W3C wants it."""
        found = _VALID.fullmatch(headers.get(_HEADER, ""))
        return RequestTrace() if found is None else RequestTrace(found[1], {_HEADER: found[0]})

    def close(self) -> None:
        """Send what has not been sent yet."""


class Spans(Tracing):
    """Reports each request as a span, below that of its caller if it has one. Its phases are spans inside it.

    shut_down: sends the spans that wait, and ends the provider.
    """

    def __init__(self, provider: TracerProvider, shut_down: Callable[[], None] = lambda: None) -> None:
        self._tracer = provider.get_tracer("gradest_service", version("gradest"))
        self._shut_down = shut_down

    @classmethod
    def configured(cls) -> Spans:
        """Report to the program's own provider, which `opentelemetry-instrument` makes, or else by OTLP over HTTP.

        The variables OTEL_EXPORTER_OTLP_ENDPOINT, OTEL_TRACES_SAMPLER and OTEL_SERVICE_NAME of OpenTelemetry configure it.
        Raises InvalidInput if OpenTelemetry is not installed.
        """
        try:
            from opentelemetry import trace  # noqa: PLC0415
            from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter  # noqa: PLC0415
            from opentelemetry.sdk.resources import Resource  # noqa: PLC0415
            from opentelemetry.sdk.trace import TracerProvider  # noqa: PLC0415
            from opentelemetry.sdk.trace.export import BatchSpanProcessor  # noqa: PLC0415
        except ImportError as error:
            raise InvalidInput(f"tracing needs OpenTelemetry ({error}): pip install 'gradest[otel]'") from error

        present = trace.get_tracer_provider()
        if not isinstance(present, trace.ProxyTracerProvider):
            return cls(present)
        named = "OTEL_SERVICE_NAME" in os.environ or "service.name=" in os.environ.get("OTEL_RESOURCE_ATTRIBUTES", "")
        provider = TracerProvider(resource=Resource.create({} if named else {"service.name": "gradest"}))
        provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter()))
        return cls(provider, provider.shutdown)

    def begin(self, headers: Mapping[str, str]) -> RequestTrace:
        """Begin the span of a request, which is the current one for what plugins report themselves."""
        from opentelemetry import propagate, trace  # noqa: PLC0415

        return _RequestSpan(
            self._tracer, self._tracer.start_span("request", propagate.extract(headers), trace.SpanKind.SERVER)
        )

    def close(self) -> None:
        """Send the spans that wait."""
        self._shut_down()


class _RequestSpan(RequestTrace):
    """The span of one request."""

    is_reported = True

    def __init__(self, tracer: Tracer, span: Span) -> None:
        from opentelemetry import context, propagate, trace  # noqa: PLC0415

        self._tracer, self._span = tracer, span
        self._inside = trace.set_span_in_context(span)
        self._token = context.attach(self._inside)
        headers: dict[str, str] = {}
        propagate.inject(headers, self._inside)
        super().__init__(trace.format_trace_id(span.get_span_context().trace_id), headers)

    def end(self, name: str, attributes: Mapping[str, str | int], phases: Sequence[Phase], failed: bool) -> None:
        """End the span, after those of its phases."""
        from opentelemetry import context, trace  # noqa: PLC0415

        if self._span.is_recording():
            self._span.update_name(name)
            self._span.set_attributes(attributes)
            if failed:
                self._span.set_status(trace.StatusCode.ERROR)
            self._report(phases)
        self._span.end()
        context.detach(self._token)

    def _report(self, phases: Sequence[Phase]) -> None:
        """Report the phases; one whose time lies inside that of another is below it."""
        from opentelemetry import trace  # noqa: PLC0415

        around: list[tuple[int, Context]] = []
        for one in sorted(phases, key=lambda one: (one.began, -one.ended)):
            while around and around[-1][0] < one.ended:
                around.pop()
            parent = around[-1][1] if around else self._inside
            attributes = {f"gradest.{one.name}.{key}": value for key, value in one.attributes.items()}
            span = self._tracer.start_span(one.name, parent, attributes=attributes, start_time=one.began)
            span.end(one.ended)
            around.append((one.ended, trace.set_span_in_context(span, self._inside)))
