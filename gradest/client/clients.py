"""The two clients: one set of methods, which block or are awaited."""

from __future__ import annotations

import inspect
import math
import secrets
import time
from collections.abc import Callable, Coroutine
from contextlib import aclosing
from typing import Any, Generic, ParamSpec, Protocol, Self, TypeVar, cast, get_args, overload

import anyio
import httpx
from httpx_sse import EventSource

from gradest.client import endpoints
from gradest.client.differentiable import expect
from gradest.client.encoding import Transport
from gradest.client.requests import Call
from gradest.client.responses import AttemptFailed
from gradest.client.transports import CallProtocol
from gradest.errors import InvalidInput

__all__ = ["AsyncClient", "Client"]

P = ParamSpec("P")
T = TypeVar("T")
T_co = TypeVar("T_co", covariant=True)
Http = TypeVar("Http", httpx.Client, httpx.AsyncClient)
HttpTransport = TypeVar("HttpTransport")


class _Method(Protocol[P, T_co]):
    """The type of a method that returns its result in `Client`, and is awaited in `AsyncClient`."""

    @overload
    def __get__(self, client: Client, kind: type) -> Callable[P, T_co]: ...
    @overload
    def __get__(self, client: AsyncClient, kind: type) -> Callable[P, Coroutine[Any, Any, T_co]]: ...
    @overload
    def __get__(self, client: None, kind: type) -> Callable[..., Any]: ...


def _method(build: Callable[P, Call[T]]) -> _Method[P, T]:
    """Return the method that makes this call. help() shows it with the name, documentation and signature of `build`."""

    def method(self: Any, /, *args: P.args, **kwargs: P.kwargs) -> Any:
        return self._run(build(*args, **kwargs))

    signature = inspect.signature(build)
    own = inspect.Parameter("self", inspect.Parameter.POSITIONAL_ONLY)
    returned = str(signature.return_annotation).removeprefix("Call[").removesuffix("]")
    method.__name__, method.__doc__ = build.__name__, build.__doc__
    method.__signature__ = signature.replace(  # type: ignore[attr-defined]
        parameters=[own, *signature.parameters.values()], return_annotation=returned
    )
    return cast(_Method[P, T], method)


class _Service(Generic[Http, HttpTransport]):
    """What both clients have in common: the settings, and the methods."""

    _kind: Callable[..., Http]
    clock = staticmethod(time.monotonic)
    jitter = staticmethod(secrets.SystemRandom().random)

    def __init__(
        self,
        url: str,
        timeout: float | None = 60.0,
        *,
        api_key: str | None = None,
        retries: float = 4,
        read_timeout: float | None = None,
        transport: Transport = "safetensors",
        http_transport: HttpTransport | None = None,
    ) -> None:
        if transport not in get_args(Transport):
            raise InvalidInput(f"transport must be one of {', '.join(get_args(Transport))}, not {transport!r}")
        if api_key is not None and not (api_key.isascii() and api_key.isprintable()):
            raise InvalidInput("the API key has a character that no key can have, such as a line break")
        headers = {} if api_key is None else {"Authorization": f"Bearer {api_key}"}
        try:
            self._http: Http = self._kind(base_url=url, headers=headers, transport=http_transport)
        except httpx.InvalidURL as error:
            raise InvalidInput(f"{url!r} is not the URL of a service: {error}") from error
        self.url = url
        self.timeout = math.inf if timeout is None else timeout
        self.read_timeout = math.inf if read_timeout is None else read_timeout
        self.retries = retries
        self.transport = transport

    neurons = _method(endpoints.neurons)
    estimators = _method(endpoints.estimators)
    objectives = _method(endpoints.objectives)
    neuron = _method(endpoints.neuron)
    estimator = _method(endpoints.estimator)
    objective = _method(endpoints.objective)
    plugins = _method(endpoints.plugins)
    version = _method(endpoints.version)
    sample = _method(endpoints.sample)
    mean = _method(endpoints.mean)
    forward = _method(endpoints.forward)
    backward = _method(endpoints.backward)
    expect = _method(expect)
    credit = _method(endpoints.credit)
    estimate = _method(endpoints.estimate)
    compare = _method(endpoints.compare)
    recommend = _method(endpoints.recommend)


class Client(_Service[httpx.Client, httpx.BaseTransport]):
    """A client of the service at `url`, with the library's names and signatures. Close it, or use it as a context manager.

    timeout: seconds that a request may take in all, including its retries (`expect` makes two requests). For a request whose
        progress is reported: seconds without a sign of life. None for no limit.
    api_key: sent as `Authorization: Bearer`.
    retries: how many times a request is sent again. The delay before each is random, up to 0.1, 0.2, 0.4, ... 5 seconds
        (exponential backoff with full jitter), added to what Retry-After asks for. Retried are 429 and 503; a connection that
        fails, breaks or stays silent; and every 5xx that is not the service's own, such as the 502 of a proxy that lost a
        replica.
    read_timeout: seconds of silence after which an attempt is given up and the request is sent again. It must exceed the time
        of the computation or, if progress is reported, the 15 seconds in which the service gives a sign of life. None for no
        limit but `timeout`.
    transport: "safetensors"; or "json", which can be read by people but is slow, and which the service allows for smaller
        tensors only.
    http_transport: another httpx transport, for tests or special networks.

    `a` and the results are torch tensors, on the device of `a`. A neuron, an estimator or an objective is a name, {"name": ...,
    **options}, or an instance; the service must have the plugin, this process need not. A seed of None is drawn from torch's
    global generator in this process, as in the library. Every error of the service or of the connection is a ServiceError.
    """

    _kind = httpx.Client
    _sleep = staticmethod(time.sleep)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the connections."""
        self._http.close()

    def _run(self, call: Call[T]) -> T:
        protocol = CallProtocol(self, call)
        while protocol.advance():
            try:
                with self._http.stream(**protocol.begin_attempt()) as response:
                    if protocol.receive_headers(response):
                        for event in EventSource(response).iter_sse():
                            protocol.receive_event(event)
                    else:
                        for chunk in response.iter_bytes():
                            protocol.receive_chunk(chunk)
                protocol.end_response()
            except (httpx.HTTPError, AttemptFailed) as error:
                self._sleep(protocol.retry_delay(error))
        return protocol.result


class AsyncClient(_Service[httpx.AsyncClient, httpx.AsyncBaseTransport]):
    """A client like `Client`, with the same arguments, whose methods are awaited. The loss of `expect` is an ordinary function.

    One client serves any number of tasks at a time, under asyncio or trio.
    """

    _kind = httpx.AsyncClient
    _sleep = staticmethod(anyio.sleep)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *error: object) -> None:
        await self.close()

    async def close(self) -> None:
        """Close the connections."""
        await self._http.aclose()

    async def _run(self, call: Call[T]) -> T:
        protocol = CallProtocol(self, call)
        while protocol.advance():
            try:
                async with self._http.stream(**protocol.begin_attempt()) as response:
                    if protocol.receive_headers(response):
                        async with aclosing(EventSource(response).aiter_sse()) as events:
                            async for event in events:
                                protocol.receive_event(event)
                    else:
                        async for chunk in response.aiter_bytes():
                            protocol.receive_chunk(chunk)
                protocol.end_response()
            except (httpx.HTTPError, AttemptFailed) as error:
                await self._sleep(protocol.retry_delay(error))
        return protocol.result
