"""Clients: the library's calls, answered by a service elsewhere; a loss can stay on this side.

    with gradest.Client("http://127.0.0.1:8000") as client:
        loss, state = client.expect(my_loss, a, neuron="bernoulli", estimator="rloo")     # my_loss runs here
        loss.sum().backward()                                                             # a.grad holds the estimate

The same seed gives the same bits as the library does here. `AsyncClient` has the same methods, to be awaited.

What a call sends, and what it makes of the answers, is a generator, the same for both clients: it yields each request and is
given the answer to it. A client adds how requests travel: see `_Tries`.
"""

from __future__ import annotations

import dataclasses
import inspect
import json
import math
import secrets
import time
from collections.abc import Callable, Coroutine, Generator, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from email.utils import parsedate_to_datetime
from typing import Any, Concatenate, Generic, Literal, ParamSpec, Self, TypeVar, get_args
from urllib.parse import quote

import anyio
import httpx
import torch
from pydantic_core import from_json, to_json
from torch import Tensor

from gradest.comparison import Comparison, Row
from gradest.errors import InvalidInput, ServiceError
from gradest.estimator import State
from gradest.expectation import Estimate, EstimatorSpec, NeuronSpec
from gradest.kernels.reference import leading_sum
from gradest.objective import Loss, Objective
from gradest.plugin import Plugin
from gradest.random import check_seed, fresh_seed
from gradest.wire import SAFETENSORS, join_tensors, pack, split_tensors, unpack

__all__ = ["AsyncClient", "Client", "RemoteDraw", "RemoteEstimate", "RemoteGradient"]

ObjectiveSpec = str | Mapping[str, Any] | Objective
Transport = Literal["safetensors", "json"]

_DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16)
_JSON = "application/json"
_EVENT_STREAM = "text/event-stream"
_BUSY = (429, 503)  # the statuses that ask for another try
_LOST = (httpx.NetworkError, httpx.RemoteProtocolError)  # so do these: no connection, or one that broke
_FIRST_WAIT, _LONGEST_WAIT = 0.1, 5.0  # seconds, between tries

P = ParamSpec("P")
T = TypeVar("T")


@dataclass(frozen=True, eq=False)
class RemoteDraw:
    """Where the estimator wants the loss.

    points: `[K, *batch, *event]`, in the dtype of `a`.
    weights: `[K]` or `[K, *batch]`; Σ_k weights_k loss_k is the estimate of E[loss].
    needs: what `backward` wants, of {"loss", "grad"}.
    """

    points: Tensor
    weights: Tensor
    needs: frozenset[str]
    seed: int


@dataclass(frozen=True, eq=False)
class RemoteGradient:
    """What the losses gave.

    gradient: `[*batch, *event]`, in the dtype of `a`.
    value: the estimate of E[loss], or of the estimator's own target, `[*batch]`, in at least float32; None if no loss was sent.
    weights: its derivative in the losses, `[K]` or `[K, *batch]`; those of the draw, unless the target is not linear in them.
    state: for the next step.
    """

    gradient: Tensor
    value: Tensor | None
    weights: Tensor | None
    state: State


@dataclass(frozen=True, eq=False)
class RemoteEstimate(Estimate):
    """An estimate, with what the service knows of the truth.

    exact: E[loss] `[*batch]` and its gradient `[*batch, *event]`; None where neither a closed form nor enumeration gives them.
    """

    exact: tuple[Tensor, Tensor] | None


# --- calls: what is asked, and what is made of the answers -----------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class _Request:
    """One request. The call goes on with the fields of the answer, their tensors on `device`.

    progress: takes the data of `progress` events, where the answer is a stream of them before its `result`.
    """

    path: str
    fields: Mapping[str, Any] | None = None
    device: torch.device | None = None
    progress: Callable[[Any], None] | None = None


Call = Generator[_Request, Any, T]


def _neurons() -> Call[dict[str, dict[str, Any]]]:
    """What the service says about every neuron: {name: description}."""
    return _by_name((yield _Request("/v1/neurons")))


def _estimators() -> Call[dict[str, dict[str, Any]]]:
    """What the service says about every estimator, its bias on each neuron included: {name: description}."""
    return _by_name((yield _Request("/v1/estimators")))


def _objectives() -> Call[dict[str, dict[str, Any]]]:
    """What the service says about every objective: {name: description}."""
    return _by_name((yield _Request("/v1/objectives")))


def _neuron(name: str) -> Call[dict[str, Any]]:
    """The description of one neuron."""
    found: dict[str, Any] = yield _Request(f"/v1/neurons/{quote(name, safe='')}")
    return found


def _estimator(name: str) -> Call[dict[str, Any]]:
    """The description of one estimator."""
    found: dict[str, Any] = yield _Request(f"/v1/estimators/{quote(name, safe='')}")
    return found


def _objective(name: str) -> Call[dict[str, Any]]:
    """The description of one objective."""
    found: dict[str, Any] = yield _Request(f"/v1/objectives/{quote(name, safe='')}")
    return found


def _plugins() -> Call[dict[str, Any]]:
    """The distributions that the service has loaded, and those that failed."""
    found: dict[str, Any] = yield _Request("/v1/plugins")
    return found


def _version() -> Call[dict[str, Any]]:
    """The versions of what computes the answers."""
    found: dict[str, Any] = yield _Request("/version")
    return found


def _sample(neuron: NeuronSpec, a: Tensor, samples: int = 1, seed: int | None = None) -> Call[Tensor]:
    """`gradest.sample`: independent outputs, `[samples, *a.shape]`."""
    answer = yield _post("/v1/sample", neuron, a, {"samples": samples, "seed": _seed(seed)})
    h: Tensor = answer["h"]
    return h.to(a.device, a.dtype)  # those of binary units travel as bytes


def _forward(
    neuron: NeuronSpec, estimator: EstimatorSpec, a: Tensor, seed: int | None = None, state: State | None = None
) -> Call[RemoteDraw]:
    """Where the estimator wants the loss. The first step has no state; later ones pass what `backward` gave."""
    fields = {"estimator": _spec(estimator), "seed": _seed(seed), "state": state or None}
    answer = yield _post("/v1/forward", neuron, a, fields)
    return RemoteDraw(answer["points"], answer["weights"], frozenset(answer["needs"]), answer["seed"])


def _backward(
    neuron: NeuronSpec,
    estimator: EstimatorSpec,
    a: Tensor,
    seed: int,
    loss: Tensor | None,
    grad: Tensor | None = None,
    state: State | None = None,
) -> Call[RemoteGradient]:
    """The gradient from the losses `[K, *batch]` at the points and, where it is needed, dloss/dh at them.

    All arguments but these two are as they were in `forward`, with the seed that it gave: the service has kept nothing.
    """
    fields = {"estimator": _spec(estimator), "seed": seed, "state": state or None, "loss": loss, "grad": grad}
    answer = yield _post("/v1/backward", neuron, a, fields)
    return RemoteGradient(answer["gradient"], answer["value"], answer["weights"], answer["state"])


def _expect(
    f: Loss,
    a: Tensor,
    neuron: NeuronSpec = "bernoulli",
    estimator: EstimatorSpec = "rloo",
    seed: int | None = None,
    state: State | None = None,
) -> Call[tuple[Tensor, State]]:
    """`gradest.expect`: an estimate of E[f(h)], `[*batch]`, that is differentiable, with f evaluated on this side.

    The points come from the service and the losses go to it. Backward puts the estimator's gradient on `a`, and f's own
    parameters get their ordinary gradient. Returns the value and the next state. Under torch.no_grad() the state comes back as
    it was; an empty one stands for the first step.

    Raises InvalidInput if the estimator needs dL/dh and f is not differentiable in its points.
    """
    draw = yield from _forward(neuron, estimator, a, seed, state)
    differentiating = torch.is_grad_enabled()
    points, grad = draw.points, None
    if "grad" in draw.needs:
        # what the value is does not depend on it, so without gradients f need not be differentiable
        grad = torch.zeros_like(points)
        points = points.requires_grad_(differentiating)
    loss = f(points)
    if not isinstance(loss, Tensor) or not loss.ndim or loss.shape != points.shape[: loss.ndim]:
        got = list(loss.shape) if isinstance(loss, Tensor) else type(loss).__name__
        raise InvalidInput(f"f must map points {list(points.shape)} to losses [K, *batch], but it gave {got}")
    if grad is not None and differentiating:
        if not loss.requires_grad:
            raise InvalidInput("the estimator needs dL/dh, but f is not differentiable in its points")
        (found,) = torch.autograd.grad(loss.sum(), points, retain_graph=True, allow_unused=True)
        grad = grad if found is None else found
    told = yield from _backward(neuron, estimator, a, draw.seed, loss.detach(), grad, state)
    value = _value(draw, told, loss)
    if not differentiating:
        return value, state or {}
    # zero in value, and the estimate in gradient
    carrier = ((a - a.detach()) * told.gradient).flatten(value.ndim).sum(-1)
    return value + carrier, told.state


def _value(draw: RemoteDraw, told: RemoteGradient, loss: Tensor) -> Tensor:
    """The value that the losses gave, differentiable in them."""
    assert told.value is not None
    assert told.weights is not None
    weights = told.weights[(..., *[None] * (loss.ndim - told.weights.ndim))].to(loss.dtype)
    if told.weights.shape == draw.weights.shape and torch.equal(told.weights, draw.weights):
        return leading_sum(weights * loss)
    return told.value.to(loss.dtype) + leading_sum(weights * (loss - loss.detach()))


def _estimate(
    objective: ObjectiveSpec,
    a: Tensor,
    neuron: NeuronSpec = "bernoulli",
    estimator: EstimatorSpec = "rloo",
    draws: int = 1000,
    seed: int | None = None,
) -> Call[RemoteEstimate]:
    """`gradest.estimate` of an objective, with the exact values where the service has them."""
    fields = {"objective": _spec(objective), "estimator": _spec(estimator), "draws": draws, "seed": _seed(seed)}
    answer = yield _post("/v1/estimate", neuron, a, fields)
    exact = answer["exact"] and (answer["exact"]["loss"], answer["exact"]["gradient"])
    return RemoteEstimate(**{field.name: answer[field.name] for field in dataclasses.fields(Estimate)}, exact=exact)


def _compare(
    objective: ObjectiveSpec,
    a: Tensor,
    neuron: NeuronSpec = "bernoulli",
    estimators: Sequence[EstimatorSpec] | None = None,
    draws: int = 1000,
    seed: int | None = None,
    *,
    progress: Callable[[str, int, int], None] | None = None,
) -> Call[Comparison]:
    """`gradest.compare` of an objective. progress(estimator, done, draws) is called as the service reports."""

    def report(data: Any) -> None:
        if progress:
            progress(data["estimator"], data["done"], data["draws"])

    chosen = None if estimators is None else [_spec(estimator) for estimator in estimators]
    fields = {"objective": _spec(objective), "estimators": chosen, "draws": draws, "seed": _seed(seed)}
    answer = yield _post("/v1/compare", neuron, a, fields, report)
    texts = ("estimator", "claim")
    rows = [Row(**{k: v if k in texts else _with_non_finite(v) for k, v in row.items()}) for row in answer["rows"]]
    exact = answer["exact"]
    if exact is not None:
        dtype = torch.promote_types(a.dtype, torch.float32)
        exact = torch.tensor(_with_non_finite(exact), dtype=dtype, device=a.device).reshape(a.shape)
    return Comparison(answer["neuron"], answer["draws"], answer["seed"], tuple(rows), exact)


def _post(
    path: str,
    neuron: NeuronSpec,
    a: Tensor,
    fields: Mapping[str, Any],
    progress: Callable[[Any], None] | None = None,
) -> _Request:
    if not isinstance(a, Tensor) or a.dtype not in _DTYPES:
        kinds = ", ".join(map(str, _DTYPES))
        found = a.dtype if isinstance(a, Tensor) else type(a).__name__
        raise InvalidInput(f"pre-activations are a torch tensor of {kinds}, not {found}; a.float() converts one")
    inputs = {"neuron": _spec(neuron), "a": a, "shape": list(a.shape), "dtype": str(a.dtype).removeprefix("torch.")}
    return _Request(path, {**inputs, **fields}, a.device, progress)


def _spec(plugin: str | Mapping[str, Any] | Plugin) -> str | Mapping[str, Any]:
    """The JSON form of a plugin, but for options that are tensors, which stay tensors."""
    if not isinstance(plugin, Plugin):
        return plugin
    tensors = {name: value for name, value in plugin if name in plugin.model_fields_set and isinstance(value, Tensor)}
    return {
        "name": plugin.name,
        **plugin.model_dump(mode="json", exclude_unset=True, exclude=set(tensors)),
        **tensors,
    }


def _seed(seed: int | None) -> int:
    return fresh_seed() if seed is None else check_seed(seed)


def _by_name(descriptions: Iterable[dict[str, Any]]) -> dict[str, dict[str, Any]]:
    return {description["name"]: description for description in descriptions}


# --- bodies ----------------------------------------------------------------------------------------------------------------


def _encode(fields: Mapping[str, Any], transport: Transport) -> tuple[str, bytes]:
    """The content type and the bytes of a request."""
    if transport == "json":
        return _JSON, _to_json(fields)
    rest, tensors = split_tensors(fields)
    return SAFETENSORS, pack(tensors, {"request": _to_json(rest).decode()})


def _to_json(fields: Mapping[str, Any]) -> bytes:
    # non-finite numbers go as they are, so that the service can say where they stand
    return to_json(fields, inf_nan_mode="constants", fallback=_plain)


def _plain(value: Any) -> Any:
    if isinstance(value, Tensor):
        return (value.to(torch.uint8) if value.dtype == torch.bool else value).tolist()
    raise InvalidInput(f"a request cannot hold a {type(value).__name__}")


def _decode(content_type: str, body: bytearray, device: torch.device | None) -> Any:
    """The fields of an answer; raises ValueError."""
    if content_type == SAFETENSORS:
        tensors, metadata = unpack(body)
        fields = from_json(metadata.get("response", ""))
    else:
        fields = from_json(body)
        tensors = {}
        for name, info in fields.pop("tensors", {}).items() if isinstance(fields, dict) else ():
            *outer, last = name.split(".", 1)
            holder = fields[outer[0]] if outer else fields
            dtype = getattr(torch, info["dtype"])
            tensors[name] = torch.tensor(_with_non_finite(holder.pop(last)), dtype=dtype).reshape(info["shape"])
    if tensors:
        join_tensors(fields, {name: tensor.to(device) for name, tensor in tensors.items()})
    return fields


def _with_non_finite(numbers: Any) -> Any:
    """The strings "NaN", "Infinity" and "-Infinity" as numbers."""
    if isinstance(numbers, list):
        return [_with_non_finite(number) for number in numbers]
    return float(numbers) if isinstance(numbers, str) else numbers


# --- sending ---------------------------------------------------------------------------------------------------------------


class _Answer:
    """The answer to one try, as it comes in."""

    def __init__(self, request: _Request, response: httpx.Response) -> None:
        self._request = request
        self._response = response
        self._content_type = response.headers.get("content-type", "").partition(";")[0].strip().lower()
        self._body = bytearray()
        self._events = _Events() if request.progress and self._content_type == _EVENT_STREAM else None
        self._result: Any = None

    def feed(self, chunk: bytes) -> None:
        """More of it. An `error` event is raised as a ServiceError."""
        if not self._events:
            self._body += chunk
            return
        for event, data in self._events.feed(chunk):
            if event == "error":
                raise _problem(data)
            if event == "result":
                self._result = data
            elif event == "progress" and self._request.progress:
                self._request.progress(data)

    def fields(self) -> Any:
        """What it holds; raises ServiceError for an error, in problem details or, from a proxy, in plain text."""
        if self._events:
            if self._result is None:
                raise ServiceError(200, "Incomplete answer", "the service ended the stream without a result; try again")
            return self._result
        status = self._response.status_code
        try:
            fields = _decode(self._content_type, self._body, self._request.device)
        except Exception:  # whatever is wrong with it, a service did not write it
            fields = None
        if self._response.is_success and fields is not None:
            return fields
        if isinstance(fields, dict) and "status" in fields:
            raise _problem(fields)
        title = self._response.reason_phrase or "Error"
        detail = self._body.decode(errors="replace").strip()[:500] or "the answer has no text"
        if self._response.is_success:
            title, detail = "Not a gradest service", f"the answer is {self._content_type or 'of no type'}, not JSON"
        raise ServiceError(status, title, detail, self._response.headers.get("x-request-id"))


def _problem(fields: Mapping[str, Any]) -> ServiceError:
    return ServiceError(
        fields["status"], fields.get("title", "Error"), fields.get("detail", ""), fields.get("request_id")
    )


class _Events:
    """Parses a text/event-stream: names of events, and their data as JSON."""

    def __init__(self) -> None:
        self._pending, self._name, self._data = b"", "message", list[bytes]()

    def feed(self, chunk: bytes) -> Iterator[tuple[str, Any]]:
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
                    yield self._name, json.loads(b"\n".join(self._data))
                self._name, self._data = "message", []


class _Tries:
    """The tries of one request: what each sends, which errors ask for another, and how long to wait before it.

    Another try is safe for every request, since the service keeps nothing and the seed is chosen on this side.
    """

    def __init__(self, service: _Service[Any, Any], request: _Request) -> None:
        self._service = service
        self._request = request
        self._retry_after = 0.0
        self._made = 0
        self._arguments: dict[str, Any] = {"method": "GET", "url": request.path, "headers": {"Accept": _JSON}}
        if request.fields is not None:
            content_type, content = _encode(request.fields, service.transport)
            accept = _EVENT_STREAM if request.progress else content_type
            headers = {"Content-Type": content_type, "Accept": accept}
            self._arguments = {"method": "POST", "url": request.path, "headers": headers, "content": content}
        self._extend()

    def _extend(self) -> None:
        self._end = self._service.clock() + self._service.timeout

    def begin(self) -> dict[str, Any]:
        """What the next try sends: the arguments of httpx's `stream`."""
        self._made += 1
        left = self._end - self._service.clock()
        return {**self._arguments, "timeout": None if math.isinf(left) else left}

    def answer(self, response: httpx.Response) -> _Answer:
        """The answer to be fed with the chunks of the response."""
        self._retry_after = _retry_after(response.headers)
        return _Answer(self._request, response)

    def check(self) -> None:
        """After each chunk: the deadline, which a stream of events moves on as long as something comes."""
        if self._request.progress:
            self._extend()
        elif self._service.clock() > self._end:
            raise httpx.ReadTimeout(f"no whole answer within {self._service.timeout:g} seconds")

    def wait(self, error: httpx.HTTPError | ServiceError) -> float:
        """The seconds until the next try; raises ServiceError if there is to be none."""
        if isinstance(error, ServiceError):
            failure, again, least = error, error.status in _BUSY, self._retry_after
        else:
            reason = f"{self._service.url}: {str(error) or type(error).__name__}. Is the service running there?"
            failure, again, least = ServiceError(0, "No answer", reason), isinstance(error, _LOST), 0.0
        most: float = min(_LONGEST_WAIT, _FIRST_WAIT * 2 ** (self._made - 1))
        seconds = least + most * self._service.jitter()
        if not again or self._made > self._service.retries or self._service.clock() + seconds >= self._end:
            raise failure from None if failure is error else error
        return seconds


def _retry_after(headers: httpx.Headers) -> float:
    """The seconds that the header Retry-After asks for, in numbers or as a date; 0 without one that can be read."""
    text = headers.get("retry-after", "")
    try:
        return max(0.0, float(text))
    except ValueError:
        pass
    try:
        return max(0.0, parsedate_to_datetime(text).timestamp() - time.time())
    except ValueError:
        return 0.0


# --- clients ---------------------------------------------------------------------------------------------------------------

Http = TypeVar("Http", httpx.Client, httpx.AsyncClient)
HttpTransport = TypeVar("HttpTransport")


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
        retries: int = 4,
        transport: Transport = "safetensors",
        http_transport: HttpTransport | None = None,
    ) -> None:
        if transport not in get_args(Transport):
            raise InvalidInput(f"transport is one of {', '.join(get_args(Transport))}, not {transport!r}")
        headers = {} if api_key is None else {"Authorization": f"Bearer {api_key}"}
        self._http: Http = self._kind(base_url=url, headers=headers, transport=http_transport)
        self.url = url
        self.timeout = math.inf if timeout is None else timeout
        self.retries = retries
        self.transport = transport


def _blocking(build: Callable[P, Call[T]]) -> Callable[Concatenate[Client, P], T]:
    """The method of `Client` that makes this call."""

    def method(self: Client, /, *args: P.args, **kwargs: P.kwargs) -> T:
        return self._run(build(*args, **kwargs))

    _dress(method, build)
    return method


def _awaited(build: Callable[P, Call[T]]) -> Callable[Concatenate[AsyncClient, P], Coroutine[Any, Any, T]]:
    """The method of `AsyncClient` that makes this call."""

    async def method(self: AsyncClient, /, *args: P.args, **kwargs: P.kwargs) -> T:
        return await self._run(build(*args, **kwargs))

    _dress(method, build)
    return method


def _dress(method: Any, build: Callable[..., Any]) -> None:
    """Name, documentation and signature of the call, as help() shows them."""
    method.__name__ = build.__name__.removeprefix("_")
    method.__doc__ = build.__doc__
    signature = inspect.signature(build)
    self = inspect.Parameter("self", inspect.Parameter.POSITIONAL_ONLY)
    returned = str(signature.return_annotation).removeprefix("Call[").removesuffix("]")
    parameters = [self, *signature.parameters.values()]
    method.__signature__ = signature.replace(parameters=parameters, return_annotation=returned)


class Client(_Service[httpx.Client, httpx.BaseTransport]):
    """A service at `url`, with the library's names and signatures. Close it, or use it as a context manager.

    timeout: seconds that a call may take in all, its retries included; of a comparison, whose progress is reported, seconds
        without a sign of life. None for no limit.
    api_key: sent as `Authorization: Bearer`.
    retries: further tries after 429, 503 and a failed connection, each after a random wait of up to 0.1, 0.2, 0.4, ... 5 seconds
        (exponential backoff with full jitter) beyond what Retry-After asks for.
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
        answer = None
        while True:
            try:
                request = call.send(answer)
            except StopIteration as ended:
                result: T = ended.value
                return result
            answer = self._send(request)

    def _send(self, request: _Request) -> Any:
        tries = _Tries(self, request)
        while True:
            try:
                with self._http.stream(**tries.begin()) as response:
                    answer = tries.answer(response)
                    for chunk in response.iter_bytes():
                        answer.feed(chunk)
                        tries.check()
                return answer.fields()
            except (httpx.HTTPError, ServiceError) as error:
                seconds = tries.wait(error)
            self._sleep(seconds)

    neurons = _blocking(_neurons)
    estimators = _blocking(_estimators)
    objectives = _blocking(_objectives)
    neuron = _blocking(_neuron)
    estimator = _blocking(_estimator)
    objective = _blocking(_objective)
    plugins = _blocking(_plugins)
    version = _blocking(_version)
    sample = _blocking(_sample)
    forward = _blocking(_forward)
    backward = _blocking(_backward)
    expect = _blocking(_expect)
    estimate = _blocking(_estimate)
    compare = _blocking(_compare)


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
        answer = None
        while True:
            try:
                request = call.send(answer)
            except StopIteration as ended:
                result: T = ended.value
                return result
            answer = await self._send(request)

    async def _send(self, request: _Request) -> Any:
        tries = _Tries(self, request)
        while True:
            try:
                async with self._http.stream(**tries.begin()) as response:
                    answer = tries.answer(response)
                    async for chunk in response.aiter_bytes():
                        answer.feed(chunk)
                        tries.check()
                return answer.fields()
            except (httpx.HTTPError, ServiceError) as error:
                seconds = tries.wait(error)
            await self._sleep(seconds)

    neurons = _awaited(_neurons)
    estimators = _awaited(_estimators)
    objectives = _awaited(_objectives)
    neuron = _awaited(_neuron)
    estimator = _awaited(_estimator)
    objective = _awaited(_objective)
    plugins = _awaited(_plugins)
    version = _awaited(_version)
    sample = _awaited(_sample)
    forward = _awaited(_forward)
    backward = _awaited(_backward)
    expect = _awaited(_expect)
    estimate = _awaited(_estimate)
    compare = _awaited(_compare)
