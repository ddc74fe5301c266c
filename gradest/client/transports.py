"""The protocol of a call without any I/O: which request is sent, when it is sent again, and when the client gives up."""

from __future__ import annotations

import math
import sys
from typing import Any, Generic, Protocol, TypeVar

import httpx
from httpx_sse import ServerSentEvent

from gradest.client.addresses import Address
from gradest.client.encoding import JSON, Transport, encode
from gradest.client.requests import ApiRequest, Call
from gradest.client.responses import EVENT_STREAM, AttemptFailed, ResponseReader
from gradest.errors import ServiceError

__all__ = ["CallProtocol", "RetryPolicy"]

_RETRIED = (
    httpx.NetworkError,
    httpx.RemoteProtocolError,
    httpx.TimeoutException,
)  # the service is not or no longer there
_FIRST_DELAY, _LONGEST_DELAY = 0.1, 5.0  # seconds between attempts
_DOUBLINGS = 6  # of the first delay; more would exceed the longest
_LONGEST_START_DELAY = 1.0  # seconds between attempts to reach a service that is starting
_CONNECT = 10.0  # seconds that a connection may take
_REMEDY = "Is the service running there?"
_REMEDIES = {  # by what the reason has in it; another attempt would end alike
    "CERTIFICATE_VERIFY_FAILED": "With verify=FILE the client trusts the certificates of that file.",
    "WRONG_VERSION_NUMBER": "No HTTPS is spoken there; does the URL begin with http://?",
}
_SHORTEST = 0.001  # seconds that an attempt has even if the deadline has passed

T = TypeVar("T")


class RetryPolicy(Protocol):
    """How requests are sent, for how long, and how often. Times are in seconds; infinity is no limit."""

    address: Address
    transport: Transport
    timeout: float
    read_timeout: float
    retries: float
    start_timeout: float

    def clock(self) -> float:
        """Return the time."""

    def jitter(self) -> float:
        """Return the fraction of a delay that is waited, uniform in [0, 1)."""


class CallProtocol(Generic[T]):
    """The state of one call: its requests one after the other, each attempted until there is a response or the client gives up.

    Sending a request again is always safe, because the service keeps nothing and the client chooses the seed. A client runs

        while protocol.advance():
            try:
                with http.stream(**protocol.begin_attempt()) as response:
                    ...     # receive_headers, then receive_chunk or, if that returned True, receive_event
                protocol.end_response()
            except (httpx.HTTPError, AttemptFailed) as error:
                sleep(protocol.retry_delay(error))
        protocol.result
    """

    result: T

    def __init__(self, policy: RetryPolicy, call: Call[T]) -> None:
        self._policy = policy
        self._call = call
        self._fields: Any = None
        self._complete = True
        self._reader: ResponseReader | None = None

    def advance(self) -> bool:
        """Send the call the response that is complete, if one is; return whether there is a request to send."""
        if self._complete:
            try:
                self._start(self._call.send(self._fields))
            except StopIteration as ended:
                self.result = ended.value
                return False
        return True

    def _start(self, request: ApiRequest) -> None:
        self._request = request
        self._complete = False
        self._attempts = self._refusals = 0
        self._refused_since = math.inf
        self._arguments: dict[str, Any] = {"method": "GET", "url": request.path, "params": request.query}
        headers = {"Accept": JSON, "Accept-Encoding": "identity", **_trace_headers()}
        if request.fields is not None:
            content_type, content = encode(request.fields, self._policy.transport)
            headers |= {"Content-Type": content_type, "Accept": EVENT_STREAM if request.progress else content_type}
            self._arguments = {"method": "POST", "url": request.path, "content": content}
        self._arguments["headers"] = headers
        self._deadline = self._policy.clock() + self._policy.timeout

    def begin_attempt(self) -> dict[str, Any]:
        """Return the arguments of httpx's `stream` for the next attempt."""
        self._attempts += 1
        self._reader = None
        left = max(_SHORTEST, self._deadline - self._policy.clock())
        self._silence = min(left, self._policy.read_timeout)
        read = None if math.isinf(self._silence) else self._silence
        return {**self._arguments, "timeout": httpx.Timeout(read, connect=min(self._silence, _CONNECT))}

    def seconds_left(self) -> float:
        """Return the seconds until the deadline: none are counted in a stream of events, where each sign of life extends it."""
        in_stream = self._reader is not None and self._reader.is_stream
        return math.inf if in_stream else self._deadline - self._policy.clock()

    def receive_headers(self, response: httpx.Response) -> bool:
        """Take the headers of the response; return whether its body is a stream of events.

        Raises AttemptFailed for a compressed one, which was not asked for, and whose size shows only once it is inflated.
        """
        self._reader = ResponseReader(self._request, response)
        return self._reader.is_stream

    def receive_chunk(self, chunk: bytes) -> None:
        """Take a chunk of the body. Raises httpx.ReadTimeout if the deadline has passed."""
        assert self._reader is not None
        self._reader.receive_chunk(chunk)
        if self._request.progress:
            self._extend_deadline()
        elif self._policy.clock() > self._deadline:
            raise httpx.ReadTimeout(f"no complete response within {self._policy.timeout:g} seconds")

    def receive_event(self, event: ServerSentEvent) -> None:
        """Take an event, which extends the deadline."""
        assert self._reader is not None
        self._reader.receive_event(event)
        self._extend_deadline()

    def end_response(self) -> None:
        """The response is complete. Raises AttemptFailed if it is an error."""
        assert self._reader is not None
        self._fields = self._reader.finish()
        self._complete = True

    def retry_delay(self, error: httpx.HTTPError | AttemptFailed) -> float:
        """Return the seconds until the next attempt. Raises ServiceError if there is to be none."""
        if isinstance(error, httpx.HTTPError):
            reason = str(error) or type(error).__name__
            hopeless = next((remedy for part, remedy in _REMEDIES.items() if part in reason), "")
            waited = f" Its start is awaited for start_timeout={self._policy.start_timeout:g} seconds."
            remedy = hopeless or f"{_REMEDY}{waited if _is_refusal(error) else ''}"
            answer = ServiceError(0, "No response", f"{self._policy.address}: {reason}. {remedy}")
            failure = AttemptFailed(answer, retry=isinstance(error, _RETRIED) and not hopeless)
            if self._reader is not None and self._reader.in_stream:
                # comments, by which the service keeps the stream alive, are not events: the last one came so long ago at most
                silent = self._silence if isinstance(error, httpx.ReadTimeout) else 0.0
                self._extend_deadline(-silent)
        else:
            failure = error
        longest = min(_LONGEST_DELAY, _FIRST_DELAY * 2.0 ** min(self._attempts - 1, _DOUBLINGS))
        exhausted = self._attempts - self._refusals > self._policy.retries
        if self._policy.retries and _is_refusal(error):
            # the service is starting, or restarting: a matter of time, not of attempts
            self._refusals += 1
            self._refused_since = min(self._refused_since, self._policy.clock())
            longest = min(longest, _LONGEST_START_DELAY)
            exhausted = self._policy.clock() >= self._refused_since + self._policy.start_timeout
        delay = failure.retry_after + longest * self._policy.jitter()
        late = self._policy.clock() + delay >= self._deadline
        if late or not failure.retry or exhausted:
            raise failure.error from None if failure is error else error
        return delay

    def _extend_deadline(self, since: float = 0.0) -> None:
        """Set the deadline by a sign of life that came `since` seconds from now, unless a later sign has set it."""
        self._deadline = max(self._deadline, self._policy.clock() + since + self._policy.timeout)


def _is_refusal(error: BaseException | None) -> bool:
    """Return whether nothing listens at the address, as before a service has started."""
    if not isinstance(error, httpx.ConnectError):
        return False
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, ConnectionRefusedError):
            return True
        cause = cause.__cause__ or cause.__context__
    return False


def _trace_headers() -> dict[str, str]:
    """Return the headers that name the caller's span of OpenTelemetry; none in a program that has not imported it."""
    headers: dict[str, str] = {}
    if "opentelemetry.trace" in sys.modules:
        from opentelemetry import propagate, trace

        if trace.get_current_span().get_span_context().is_valid:
            propagate.inject(headers)
    return headers
