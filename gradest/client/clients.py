"""The two clients: one set of methods, which block or are awaited."""

from __future__ import annotations

import inspect
import math
import os
import secrets
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Coroutine, MutableMapping
from contextlib import aclosing
from typing import Any, Concatenate, Generic, ParamSpec, Self, TypeVar, get_args
from weakref import WeakKeyDictionary

import anyio
import httpx
from anyio.lowlevel import RunVar
from httpx_sse import EventSource

from gradest.client import endpoints
from gradest.client.addresses import Address, Verify
from gradest.client.deadlines import DeadlineTransport, seconds_left
from gradest.client.differentiable import expect
from gradest.client.encoding import Transport
from gradest.client.requests import Call
from gradest.client.responses import AttemptFailed
from gradest.client.transports import CallProtocol
from gradest.errors import InvalidInput, ServiceError

__all__ = ["AsyncClient", "Client"]

P = ParamSpec("P")
T = TypeVar("T")
Http = TypeVar("Http", httpx.Client, httpx.AsyncClient)
HttpTransport = TypeVar("HttpTransport")


def _method(build: Callable[P, Call[T]]) -> Callable[..., Any]:
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
    return method


def _blocking(build: Callable[P, Call[T]]) -> Callable[Concatenate[Any, P], T]:
    """Return the method of `Client` that makes this call."""
    return _method(build)


def _awaited(build: Callable[P, Call[T]]) -> Callable[Concatenate[Any, P], Coroutine[Any, Any, T]]:
    """Return the method of `AsyncClient` that makes this call."""
    return _method(build)


class _Service(ABC, Generic[Http, HttpTransport]):
    """What both clients have in common: the settings, the methods, and connections that serve one process and event loop."""

    clock = staticmethod(time.monotonic)
    jitter = staticmethod(secrets.SystemRandom().random)

    def __init__(
        self,
        url: str,
        timeout: float | None = 60.0,
        *,
        api_key: str | None = None,
        retries: float = 4,
        start_timeout: float = 10.0,
        read_timeout: float | None = None,
        transport: Transport = "safetensors",
        verify: Verify = True,
        http_transport: HttpTransport | None = None,
    ) -> None:
        if transport not in get_args(Transport):
            raise InvalidInput(f"transport must be one of {', '.join(get_args(Transport))}, not {transport!r}")
        if api_key is not None and not (api_key and api_key.isascii() and api_key.isprintable()):
            raise InvalidInput("the API key is empty, or has a character that no key can have, such as a line break")
        if http_transport is not None and verify is not True:
            raise InvalidInput(
                "verify is a setting of the client's own transport: give it to http_transport in its place"
            )
        self.address = Address.parse(url, verify)
        if api_key is not None and self.address.auth is not None:
            raise InvalidInput(
                "a request has one Authorization header: give an API key, or a name and password in the URL"
            )
        self.url = str(self.address.url)
        self.timeout = _check_number("timeout", math.inf if timeout is None else timeout, above_zero=True)
        self.read_timeout = _check_number("read_timeout", math.inf if read_timeout is None else read_timeout, True)
        self.retries = _check_number("retries", retries, above_zero=False)
        self.start_timeout = _check_number("start_timeout", start_timeout, above_zero=False)
        self.transport = transport
        self._headers = {} if api_key is None else {"Authorization": f"Bearer {api_key}"}
        self._http_transport = http_transport
        self._closed = False
        self._process = os.getpid()
        self._open: MutableMapping[object, Http] = self._no_connections()

    @abstractmethod
    def _no_connections(self) -> MutableMapping[object, Http]:
        """Return a mapping without entries, for one httpx client for each `_owner`."""

    @abstractmethod
    def _owner(self) -> object:
        """Return what connections belong to within a process."""

    @abstractmethod
    def _connect(self) -> Http:
        """Return a new httpx client, without connections yet."""

    def _connected(self) -> Http:
        """Return the httpx client of this process and event loop. One connection in two would mix up their responses."""
        if self._closed:
            raise ServiceError(0, "The client is closed", "make a new one, or close it later")
        moved = bool(self._open)
        if self._process != os.getpid():  # the process was forked from the client's
            self._process, self._open = os.getpid(), self._no_connections()
        http: Http | None = self._open.get(owner := self._owner())
        if http is None:
            if moved and isinstance(self._http_transport, (httpx.HTTPTransport, httpx.AsyncHTTPTransport)):
                reason = "its http_transport has connections of another process or event loop; make a client here"
                raise ServiceError(0, "The client cannot be used here", reason)
            http = self._open[owner] = self._connect()
        return http


def _check_number(name: str, value: float, above_zero: bool) -> float:
    """Return a number of seconds or retries. Raises InvalidInput if it is none."""
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not (value > 0 if above_zero else value >= 0):
        raise InvalidInput(f"{name} must be a number {'above' if above_zero else 'of at least'} 0, not {value!r}")
    return value


class Client(_Service[httpx.Client, httpx.BaseTransport]):
    """A client of the service at `url`, with the library's names and signatures. Close it, or use it as a context manager.

    timeout: seconds that a request may take in all, including its retries (`expect` makes two requests). For a request whose
        progress is reported: seconds without a sign of life. None for no limit.
    api_key: sent as `Authorization: Bearer`.
    retries: how many times a request is sent again. The delay before each is random, up to 0.1, 0.2, 0.4, ... 5 seconds
        (exponential backoff with full jitter), added to what Retry-After asks for. Retried are 429 and 503; a connection that
        fails, breaks or stays silent; and every 5xx that is not the service's own, such as the 502 of a proxy that lost a
        replica.
    start_timeout: seconds for which refused connections are tried again, because the service is starting or restarting. They do
        not count as retries. With `retries` of 0 there are none.
    read_timeout: seconds of silence after which an attempt is given up and the request is sent again. It must exceed the time
        of the computation or, if progress is reported, the 15 seconds in which the service gives a sign of life. None for no
        limit but `timeout`.
    transport: "safetensors"; or "json", which can be read by people but is slow, and which the service allows for smaller
        tensors only.
    verify: which certificates of HTTPS are trusted: True for those of public authorities, or those that SSL_CERT_FILE names; a
        file or a folder of certificates, such as your own authority's; an ssl.SSLContext; or False for any, which is unsafe.
    http_transport: another httpx transport, for tests or special networks.

    The variables HTTP_PROXY, HTTPS_PROXY, ALL_PROXY and NO_PROXY hold, but a service on this machine is never asked for through
    a proxy. One client serves any number of threads, and processes that are forked from this one, with connections of their own.

    Results are arrays of the kind of `a`: torch tensors on its device, NumPy arrays, or arrays of a library that follows the
    array API standard, such as JAX. Only `expect` needs torch. A neuron, an estimator or an objective is a name, {"name": ...,
    **options}, or an instance; the service must have the plugin, this process need not. A seed of None is drawn from torch's
    global generator in this process, as in the library, or from NumPy's for other arrays than tensors. Every error of the
    service or of the connection is a ServiceError.

    >>> import torch, gradest
    >>> from gradest_service.app import running  # a service in a thread, for tests and notebooks
    >>> with running() as url, gradest.Client(url) as client:
    ...     client.sample("bernoulli", torch.zeros(3), samples=2, seed=7).shape
    torch.Size([2, 3])
    """

    _sleep = staticmethod(time.sleep)

    neurons = _blocking(endpoints.neurons)
    estimators = _blocking(endpoints.estimators)
    objectives = _blocking(endpoints.objectives)
    neuron = _blocking(endpoints.neuron)
    estimator = _blocking(endpoints.estimator)
    objective = _blocking(endpoints.objective)
    plugins = _blocking(endpoints.plugins)
    version = _blocking(endpoints.version)
    sample = _blocking(endpoints.sample)
    mean = _blocking(endpoints.mean)
    forward = _blocking(endpoints.forward)
    backward = _blocking(endpoints.backward)
    expect = _blocking(expect)
    credit = _blocking(endpoints.credit)
    estimate = _blocking(endpoints.estimate)
    compare = _blocking(endpoints.compare)
    recommend = _blocking(endpoints.recommend)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the connections."""
        self._closed = True
        if self._process == os.getpid():
            for http in self._open.values():
                http.close()

    def _no_connections(self) -> MutableMapping[object, httpx.Client]:
        return {}

    def _owner(self) -> object:
        return None

    def _connect(self) -> httpx.Client:
        address = self.address
        transport = self._http_transport or DeadlineTransport(address.verify, address.proxy)
        return httpx.Client(base_url=address.url, auth=address.auth, headers=self._headers, transport=transport)

    def _run(self, call: Call[T]) -> T:
        protocol = CallProtocol(self, call)
        while protocol.advance():
            http = self._connected()
            outer = seconds_left.set(protocol.seconds_left)
            try:
                with http.stream(**protocol.begin_attempt()) as response:
                    if protocol.receive_headers(response):
                        for event in EventSource(response).iter_sse():
                            protocol.receive_event(event)
                    else:
                        for chunk in response.iter_bytes():
                            protocol.receive_chunk(chunk)
                protocol.end_response()
            except (httpx.HTTPError, AttemptFailed) as error:
                self._sleep(protocol.retry_delay(error))
            finally:
                seconds_left.reset(outer)
        return protocol.result


class AsyncClient(_Service[httpx.AsyncClient, httpx.AsyncBaseTransport]):
    """A client like `Client`, with the same arguments, whose methods are awaited. The loss of `expect` is an ordinary function.

    One client serves any number of tasks at a time, under asyncio or trio, and any number of event loops, with connections of
    their own.
    """

    _sleep = staticmethod(anyio.sleep)

    neurons = _awaited(endpoints.neurons)
    estimators = _awaited(endpoints.estimators)
    objectives = _awaited(endpoints.objectives)
    neuron = _awaited(endpoints.neuron)
    estimator = _awaited(endpoints.estimator)
    objective = _awaited(endpoints.objective)
    plugins = _awaited(endpoints.plugins)
    version = _awaited(endpoints.version)
    sample = _awaited(endpoints.sample)
    mean = _awaited(endpoints.mean)
    forward = _awaited(endpoints.forward)
    backward = _awaited(endpoints.backward)
    expect = _awaited(expect)
    credit = _awaited(endpoints.credit)
    estimate = _awaited(endpoints.estimate)
    compare = _awaited(endpoints.compare)
    recommend = _awaited(endpoints.recommend)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *error: object) -> None:
        await self.close()

    async def close(self) -> None:
        """Close the connections."""
        self._closed = True  # connections of other event loops end with those loops
        http = self._open.pop(self._owner(), None)
        if http is not None and self._process == os.getpid():
            await http.aclose()

    def _no_connections(self) -> MutableMapping[object, httpx.AsyncClient]:
        return WeakKeyDictionary()

    def _owner(self) -> object:
        try:
            return _LOOP.get()
        except LookupError:
            _LOOP.set(_Loop())
            return _LOOP.get()

    def _connect(self) -> httpx.AsyncClient:
        address = self.address
        transport = self._http_transport or httpx.AsyncHTTPTransport(verify=address.verify, proxy=address.proxy)
        return httpx.AsyncClient(base_url=address.url, auth=address.auth, headers=self._headers, transport=transport)

    async def _run(self, call: Call[T]) -> T:
        protocol = CallProtocol(self, call)
        while protocol.advance():
            http = self._connected()
            try:
                await self._attempt(protocol, http)
            except (httpx.HTTPError, AttemptFailed) as error:
                await self._sleep(protocol.retry_delay(error))
        return protocol.result

    async def _attempt(self, protocol: CallProtocol[Any], http: httpx.AsyncClient) -> None:
        arguments = protocol.begin_attempt()
        with anyio.move_on_after(protocol.seconds_left()) as scope:
            async with http.stream(**arguments) as response:
                if protocol.receive_headers(response):
                    scope.deadline = math.inf
                    async with aclosing(EventSource(response).aiter_sse()) as events:
                        async for event in events:
                            protocol.receive_event(event)
                else:
                    async for chunk in response.aiter_bytes():
                        protocol.receive_chunk(chunk)
            protocol.end_response()
        if scope.cancelled_caught:
            raise httpx.ReadTimeout("no complete response before the timeout")


class _Loop:
    """Stands for an event loop, as long as the loop lives."""


_LOOP: RunVar[_Loop] = RunVar("gradest_client_loop")
