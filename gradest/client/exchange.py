"""The tries of a call's requests: what each sends, which errors ask for another, and how long to wait before it."""

from __future__ import annotations

import math
from typing import Any, Generic, Protocol, TypeVar

import httpx

from gradest.client.answers import EVENT_STREAM, Answer, Failed
from gradest.client.bodies import JSON, Transport, encode
from gradest.client.requests import Call, Request
from gradest.errors import ServiceError

__all__ = ["Exchange", "Policy"]

_LOST = (httpx.NetworkError, httpx.RemoteProtocolError, httpx.TimeoutException)  # nobody is there, or not any more
_FIRST_WAIT, _LONGEST_WAIT = 0.1, 5.0  # seconds, between tries
_DOUBLINGS = 6  # of the first wait, which are enough
_CONNECT = 10.0  # seconds that a connection may take
_LEAST = 0.001  # seconds that a try has, however late it is

T = TypeVar("T")


class Policy(Protocol):
    """How requests are sent, and for how long. In seconds, infinite for no limit."""

    url: str
    transport: Transport
    timeout: float
    read_timeout: float
    retries: float

    def clock(self) -> float:
        """The time."""

    def jitter(self) -> float:
        """The part of a wait that is waited, uniform in [0, 1)."""


class Exchange(Generic[T]):
    """All that travels for one call: its requests one after the other, each tried until it is answered or given up.

    Another try is safe for every request, since the service keeps nothing and the seed is chosen on this side.
    """

    result: T

    def __init__(self, policy: Policy, call: Call[T]) -> None:
        self._policy = policy
        self._call = call
        self._fields: Any = None
        self._answered = True

    def go_on(self) -> bool:
        """Give the call the answer that has come, if one has; whether there is anything to send."""
        if self._answered:
            try:
                self._start(self._call.send(self._fields))
            except StopIteration as ended:
                self.result = ended.value
                return False
        return True

    def _start(self, request: Request) -> None:
        self._request = request
        self._answered = False
        self._tries = 0
        self._arguments: dict[str, Any] = {"method": "GET", "url": request.path, "params": request.query}
        headers = {"Accept": JSON}
        if request.fields is not None:
            content_type, content = encode(request.fields, self._policy.transport)
            headers = {"Content-Type": content_type, "Accept": EVENT_STREAM if request.progress else content_type}
            self._arguments = {"method": "POST", "url": request.path, "content": content}
        self._arguments["headers"] = headers
        self._set_end()

    def _set_end(self) -> None:
        self._end = self._policy.clock() + self._policy.timeout

    def begin(self) -> dict[str, Any]:
        """What the next try sends: the arguments of httpx's `stream`."""
        self._tries += 1
        left = max(_LEAST, self._end - self._policy.clock())
        silence = min(left, self._policy.read_timeout)
        timeout = httpx.Timeout(None if math.isinf(silence) else silence, connect=min(silence, _CONNECT))
        return {**self._arguments, "timeout": timeout}

    def hear(self, response: httpx.Response) -> None:
        """The head of the answer is there."""
        self._answer = Answer(self._request, response)

    def feed(self, chunk: bytes) -> None:
        """More of the answer is there. The deadline, which a stream of events moves on as long as something comes, is kept."""
        self._answer.feed(chunk)
        if self._request.progress:
            self._set_end()
        elif self._policy.clock() > self._end:
            raise httpx.ReadTimeout(f"no whole answer within {self._policy.timeout:g} seconds")

    def end(self) -> None:
        """The whole answer is there. Raises Failed if it is an error."""
        self._fields = self._answer.fields()
        self._answered = True

    def wait(self, error: httpx.HTTPError | Failed) -> float:
        """The seconds until the next try; raises ServiceError if there is to be none."""
        if isinstance(error, httpx.HTTPError):
            reason = f"{self._policy.url}: {str(error) or type(error).__name__}. Is the service running there?"
            failed = Failed(ServiceError(0, "No answer", reason), again=isinstance(error, _LOST))
        else:
            failed = error
        most = min(_LONGEST_WAIT, _FIRST_WAIT * 2.0 ** min(self._tries - 1, _DOUBLINGS))
        seconds = failed.wait + most * self._policy.jitter()
        late = self._policy.clock() + seconds >= self._end
        if late or not failed.again or self._tries > self._policy.retries:
            raise failed.error from None if failed is error else error
        return seconds
