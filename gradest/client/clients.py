"""The two clients: one set of calls, sent with or without waiting."""

from __future__ import annotations

import inspect
import math
import secrets
import time
from collections.abc import Callable, Coroutine
from typing import Any, Generic, ParamSpec, Protocol, Self, TypeVar, cast, get_args, overload

import anyio
import httpx

from gradest.client import calls
from gradest.client.answers import Failed
from gradest.client.bodies import Transport
from gradest.client.differentiable import expect
from gradest.client.exchange import Exchange
from gradest.client.requests import Call
from gradest.errors import InvalidInput

__all__ = ["AsyncClient", "Client"]

P = ParamSpec("P")
T = TypeVar("T")
T_co = TypeVar("T_co", covariant=True)
Http = TypeVar("Http", httpx.Client, httpx.AsyncClient)
HttpTransport = TypeVar("HttpTransport")


class _Method(Protocol[P, T_co]):
    """The type of a method that `AsyncClient` has too, to be awaited."""

    @overload
    def __get__(self, client: Client, kind: type) -> Callable[P, T_co]: ...
    @overload
    def __get__(self, client: AsyncClient, kind: type) -> Callable[P, Coroutine[Any, Any, T_co]]: ...
    @overload
    def __get__(self, client: None, kind: type) -> Callable[..., Any]: ...


def _method(build: Callable[P, Call[T]]) -> _Method[P, T]:
    """The method that makes this call, with its name, documentation and signature, as help() shows them."""

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
    """What both clients are made of."""

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
            raise InvalidInput(f"transport is one of {', '.join(get_args(Transport))}, not {transport!r}")
        if api_key is not None and not (api_key.isascii() and api_key.isprintable()):
            raise InvalidInput("the API key has characters that no key has, such as the end of a line")
        headers = {} if api_key is None else {"Authorization": f"Bearer {api_key}"}
        try:
            self._http: Http = self._kind(base_url=url, headers=headers, transport=http_transport)
        except httpx.InvalidURL as error:
            raise InvalidInput(f"{url!r} is no URL of a service: {error}") from error
        self.url = url
        self.timeout = math.inf if timeout is None else timeout
        self.read_timeout = math.inf if read_timeout is None else read_timeout
        self.retries = retries
        self.transport = transport

    neurons = _method(calls.neurons)
    estimators = _method(calls.estimators)
    objectives = _method(calls.objectives)
    neuron = _method(calls.neuron)
    estimator = _method(calls.estimator)
    objective = _method(calls.objective)
    plugins = _method(calls.plugins)
    version = _method(calls.version)
    sample = _method(calls.sample)
    mean = _method(calls.mean)
    forward = _method(calls.forward)
    backward = _method(calls.backward)
    expect = _method(expect)
    estimate = _method(calls.estimate)
    compare = _method(calls.compare)
    recommend = _method(calls.recommend)


class Client(_Service[httpx.Client, httpx.BaseTransport]):
    """A service at `url`, with the library's names and signatures. Close it, or use it as a context manager.

    timeout: seconds that a request may take in all, its retries included (`expect` makes two); of one whose progress is
        reported, seconds without a sign of life. None for no limit.
    api_key: sent as `Authorization: Bearer`.
    retries: further tries, each after a random wait of up to 0.1, 0.2, 0.4, ... 5 seconds (exponential backoff with full jitter)
        beyond what Retry-After asks for: after 429 and 503; after a connection that fails, breaks or stays silent; and after any
        5xx that is not the service's own, such as the 500 of a proxy whose replica died.
    read_timeout: seconds of silence after which a try is given up and another made; more than the work may take, and of one
        whose progress is reported more than the 15 in which the service gives a sign of life. None leaves it to `timeout`.
    transport: "safetensors", or "json" to see what is sent, which is slow and holds less.
    http_transport: another httpx transport, for tests or special networks.

    `a` and what comes back are torch tensors, on the device of `a`. A neuron, an estimator or an objective is a name,
    {"name": ..., **options}, or an instance; the service must have the plugin, this side need not. A seed of None is taken
    from torch's global generator here, as the library does. Every error of the service, or of the way to it, is a
    ServiceError.
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
        exchange = Exchange(self, call)
        while exchange.go_on():
            try:
                with self._http.stream(**exchange.begin()) as response:
                    exchange.hear(response)
                    for chunk in response.iter_bytes():
                        exchange.feed(chunk)
                exchange.end()
            except (httpx.HTTPError, Failed) as error:
                self._sleep(exchange.wait(error))
        return exchange.result


class AsyncClient(_Service[httpx.AsyncClient, httpx.AsyncBaseTransport]):
    """`Client` with methods to be awaited; the arguments are the same. f of `expect` is an ordinary function.

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
        exchange = Exchange(self, call)
        while exchange.go_on():
            try:
                async with self._http.stream(**exchange.begin()) as response:
                    exchange.hear(response)
                    async for chunk in response.aiter_bytes():
                        exchange.feed(chunk)
                exchange.end()
            except (httpx.HTTPError, Failed) as error:
                await self._sleep(exchange.wait(error))
        return exchange.result
