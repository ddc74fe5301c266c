"""Reads the answer to one try as it comes in: a body, or a stream of events."""

from __future__ import annotations

import time
from collections.abc import Iterator
from datetime import UTC
from email.utils import parsedate_to_datetime
from typing import Any

import httpx

from gradest.client.bodies import JSON, decode
from gradest.client.requests import Request
from gradest.errors import ServiceError

__all__ = ["EVENT_STREAM", "Answer", "Failed", "Fields"]

EVENT_STREAM = "text/event-stream"
_PROBLEM = "application/problem+json"
_BUSY = (429, 503)  # the statuses that ask for another try


class Failed(Exception):
    """A try without a result.

    again: whether another try may do better. wait: the seconds that the service wants it to wait.
    """

    def __init__(self, error: ServiceError, again: bool = False, wait: float = 0.0) -> None:
        super().__init__(error)
        self.error = error
        self.again = again
        self.wait = wait


class Fields(dict[str, Any]):
    """The fields of an answer. Raises ServiceError for one that it does not have."""

    def __missing__(self, name: str) -> Any:
        raise ServiceError(200, "Not a gradest service", f"the answer has no field {name}")


class Answer:
    """The answer to one try, to be fed with its chunks."""

    def __init__(self, request: Request, response: httpx.Response) -> None:
        self._request = request
        self._response = response
        self._content_type = response.headers.get("content-type", "").partition(";")[0].strip().lower()
        self._body = bytearray()
        self._events = _Events() if request.progress and self._content_type == EVENT_STREAM else None
        self._result: Any = None

    def feed(self, chunk: bytes) -> None:
        """More of it. Raises Failed for an `error` event."""
        if not self._events:
            self._body += chunk
            return
        for event, data in self._events.feed(chunk):
            if event == "error":
                raise self._refusal(data)
            if event == "result":
                self._result = self._object(data)
            elif event == "progress" and self._request.progress:
                self._request.progress(self._object(data))

    def fields(self) -> Any:
        """What it holds; raises Failed for an error, in problem details or, from a proxy, in plain text."""
        if self._events:
            if self._result is None:
                raise Failed(ServiceError(200, "Incomplete answer", "the stream ended without a result"), again=True)
            return self._result
        if self._response.is_success:
            return self._decode(self._content_type, self._body)
        if self._content_type == _PROBLEM:
            raise self._refusal(self._body)
        title = self._response.reason_phrase or "Error"
        detail = self._body.decode(errors="replace").strip()[:500] or "the answer has no text"
        status = self._response.status_code
        error = ServiceError(status, title, detail, self._response.headers.get("x-request-id"))
        # an error that the service did not write is a proxy's: it lost a replica, or found none
        raise Failed(error, again=status in _BUSY or status >= 500, wait=self._wait())

    def _refusal(self, body: bytes | bytearray) -> Failed:
        """The error that the service itself gives; its own 500 would be the same again."""
        problem = self._object(body)
        error = ServiceError(
            problem["status"], problem.get("title", "Error"), problem.get("detail", ""), problem.get("request_id")
        )
        return Failed(error, again=error.status in _BUSY, wait=self._wait())

    def _decode(self, content_type: str, body: bytes | bytearray) -> Any:
        try:
            fields = decode(content_type, body, self._request.device)
        except Exception:  # whatever is wrong with it, a service did not write it
            detail = f"the answer is {self._content_type or 'of no type'}, not JSON"
            error = ServiceError(self._response.status_code, "Not a gradest service", detail)
            raise Failed(error) from None
        return Fields(fields) if isinstance(fields, dict) else fields

    def _object(self, body: bytes | bytearray) -> Fields:
        fields = self._decode(JSON, body)
        return fields if isinstance(fields, Fields) else Fields()

    def _wait(self) -> float:
        """The seconds that the header Retry-After asks for, in numbers or as a date; 0 without one that can be read."""
        text = self._response.headers.get("retry-after", "")
        try:
            return max(0.0, float(text))
        except ValueError:
            pass
        try:
            date = parsedate_to_datetime(text)
        except ValueError:
            return 0.0
        if date.tzinfo is None:  # the old form of a date that names no zone, which is GMT
            date = date.replace(tzinfo=UTC)
        return max(0.0, date.timestamp() - time.time())


class _Events:
    """Parses a text/event-stream: names of events, and their data."""

    def __init__(self) -> None:
        self._pending, self._name, self._data = b"", "message", list[bytes]()

    def feed(self, chunk: bytes) -> Iterator[tuple[str, bytes]]:
        """The events that are complete with this chunk."""
        *lines, self._pending = (self._pending + chunk).split(b"\n")
        for line in (line.rstrip(b"\r") for line in lines):
            field, _, value = line.partition(b":")
            if line and field == b"event":
                self._name = value.strip().decode()
            elif line and field == b"data":
                self._data.append(value.removeprefix(b" "))
            elif not line:
                if self._data:
                    yield self._name, b"\n".join(self._data)
                self._name, self._data = "message", []
