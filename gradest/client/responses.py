"""The parsing of one response while it arrives: a body, or a stream of events."""

from __future__ import annotations

import time
from collections.abc import Mapping
from datetime import UTC
from email.utils import parsedate_to_datetime
from typing import TYPE_CHECKING, Any

from gradest.client.arrays import is_array
from gradest.client.encoding import JSON, decode
from gradest.client.requests import ApiRequest
from gradest.client.wire import SAFETENSORS
from gradest.errors import InvalidInput, ServiceError

if TYPE_CHECKING:
    import httpx
    from httpx_sse import ServerSentEvent

__all__ = ["EVENT_STREAM", "AttemptFailed", "ResponseFields", "ResponseReader"]

EVENT_STREAM = "text/event-stream"
"""The media type of a stream of events."""

_PROBLEM = "application/problem+json"
_BUSY = (429, 503)  # the statuses with which a service asks for another attempt


class AttemptFailed(Exception):
    """An attempt at a request that gave no result.

    retry: whether another attempt may succeed.
    retry_after: the seconds that the service asks to wait before it.
    """

    def __init__(self, error: ServiceError, retry: bool = False, retry_after: float = 0.0) -> None:
        super().__init__(error)
        self.error = error
        self.retry = retry
        self.retry_after = retry_after


class ResponseFields(dict[str, Any]):
    """The fields of a response. A missing one raises ServiceError."""

    def __missing__(self, name: str) -> Any:
        raise ServiceError(200, "Not a gradest service", f"the response has no field {name}")

    def __or__(self, other: Mapping[str, Any]) -> ResponseFields:  # type: ignore[override]
        return ResponseFields({**self, **other})

    def array(self, name: str) -> Any:
        """Return a field that is an array; raises ServiceError if it is none."""
        value = self[name]
        if not is_array(value):
            raise ServiceError(200, "Not a gradest service", f"the field {name} of the response is no tensor")
        return value


class ResponseReader:
    """The response to one attempt. It is given the chunks of the body or, if `is_stream`, the events, as they arrive."""

    def __init__(self, request: ApiRequest, response: httpx.Response) -> None:
        self._request = request
        self._response = response
        self._content_type = response.headers.get("content-type", "").partition(";")[0].strip().lower()
        self._body = bytearray()
        self._result: Any = None
        encoding = response.headers.get("content-encoding", "identity").strip().lower()
        if encoding not in ("", "identity"):
            raise self._foreign("the response is compressed, although that was not asked for")
        self.is_stream = request.progress is not None and self._content_type == EVENT_STREAM

    @property
    def in_stream(self) -> bool:
        """Whether the response is a stream of events of which something has arrived, if only a comment."""
        return self.is_stream and self._response.num_bytes_downloaded > 0

    def receive_chunk(self, chunk: bytes) -> None:
        """Take the next chunk of the body."""
        self._body += chunk

    def receive_event(self, event: ServerSentEvent) -> None:
        """Take the next event, and report progress. Raises AttemptFailed for an `error` event."""
        if not event.data:  # as for an event that has an id alone
            return
        if event.event == "error":
            raise self._to_failure(event.data)
        if event.event == "result":
            self._result = self._decode_object(event.data)
        elif event.event == "progress" and self._request.progress:
            self._request.progress(self._decode_object(event.data))

    def finish(self) -> Any:
        """Return the fields of the complete response.

        Raises AttemptFailed for an error, given as problem details or, by a proxy, as plain text.
        """
        if self.is_stream:
            if self._result is None:
                error = ServiceError(200, "Incomplete answer", "the stream ended without a result")
                raise AttemptFailed(error, retry=True)
            return self._result
        if self._response.is_success:
            return self._check_kind(self._decode(self._content_type, self._body))
        if self._content_type == _PROBLEM:
            raise self._to_failure(self._body)
        title = self._response.reason_phrase or "Error"
        detail = self._body.decode(errors="replace").strip()[:500] or "the response has no text"
        status = self._response.status_code
        error = ServiceError(status, title, detail, self._response.headers.get("x-request-id"))
        # the service writes its errors as problem details; this one is a proxy's that lost a replica or found none
        raise AttemptFailed(error, retry=status in _BUSY or status >= 500, retry_after=self._retry_after())

    def _to_failure(self, body: str | bytes | bytearray) -> AttemptFailed:
        """An error of the service itself. Its own 500 is not tried again, because the outcome would be the same."""
        problem = self._decode_object(body)
        error = ServiceError(
            problem["status"], problem.get("title", "Error"), problem.get("detail", ""), problem.get("request_id")
        )
        return AttemptFailed(error, retry=error.status in _BUSY, retry_after=self._retry_after())

    def _decode(self, content_type: str, body: str | bytes | bytearray) -> Any:
        try:
            fields = decode(content_type, body, self._request.like)
        except InvalidInput:
            raise
        except Exception:  # whatever is wrong with the body, no gradest service wrote it
            known = self._content_type in (JSON, SAFETENSORS, EVENT_STREAM, _PROBLEM)
            wrong = ", but malformed" if known else ", not JSON"
            raise self._foreign(f"the response is {self._content_type or 'of no type'}{wrong}") from None
        return ResponseFields(fields) if isinstance(fields, dict) else fields

    def _check_kind(self, fields: Any) -> Any:
        """Return the response, an object or a list of objects. Raises AttemptFailed if it is the wrong one, or neither."""
        if not self._request.many and isinstance(fields, ResponseFields):
            return fields
        if self._request.many and isinstance(fields, list) and all(isinstance(item, dict) for item in fields):
            return [ResponseFields(item) for item in fields]
        wanted = "an array of objects" if self._request.many else "an object"
        raise self._foreign(f"the response should be {wanted} in JSON")

    def _foreign(self, detail: str) -> AttemptFailed:
        return AttemptFailed(ServiceError(self._response.status_code, "Not a gradest service", detail))

    def _decode_object(self, body: str | bytes | bytearray) -> ResponseFields:
        fields = self._decode(JSON, body)
        return fields if isinstance(fields, ResponseFields) else ResponseFields()

    def _retry_after(self) -> float:
        """The seconds that the header Retry-After asks for, as a number or a date; 0 if it is missing or malformed."""
        text = self._response.headers.get("retry-after", "")
        try:
            return max(0.0, float(text))
        except ValueError:
            pass
        try:
            date = parsedate_to_datetime(text)
        except ValueError:
            return 0.0
        if date.tzinfo is None:  # an old form of date, which names no zone and means GMT
            date = date.replace(tzinfo=UTC)
        return max(0.0, date.timestamp() - time.time())
