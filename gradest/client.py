"""Client: the library's calls, answered by a service elsewhere; a loss can stay on this side.

    with gradest.Client("http://127.0.0.1:8000") as client:
        draw = client.forward("bernoulli", "rloo", a, seed=7)
        loss = my_loss(draw.points)                                  # [K, *batch], never sent as code
        step = client.backward("bernoulli", "rloo", a, draw.seed, loss)
        a = a - 0.1 * step.gradient

The same seed gives the same bits as the library does here.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from typing import Any, Self
from urllib.parse import quote

import httpx
import torch
from pydantic_core import to_json
from torch import Tensor

from gradest.comparison import Comparison, Row
from gradest.errors import InvalidInput, ServiceError
from gradest.estimator import State
from gradest.expectation import Estimate, EstimatorSpec, NeuronSpec
from gradest.objective import Objective
from gradest.plugin import Plugin
from gradest.random import check_seed, fresh_seed

__all__ = ["Client", "RemoteDraw", "RemoteEstimate", "RemoteGradient"]

ObjectiveSpec = str | Mapping[str, Any] | Objective

_DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16)
_EVENT_STREAM = "text/event-stream"
_JSON = {"Content-Type": "application/json"}


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
    value: the estimate of E[loss], `[*batch]`, in at least float32; None if no loss was sent.
    state: for the next step.
    """

    gradient: Tensor
    value: Tensor | None
    state: State


@dataclass(frozen=True, eq=False)
class RemoteEstimate(Estimate):
    """An estimate, with what the service knows of the truth.

    exact: E[loss] `[*batch]` and its gradient `[*batch, *event]`; None where neither a closed form nor enumeration gives them.
    """

    exact: tuple[Tensor, Tensor] | None


class Client:
    """A service at `url`, with the library's names and signatures. Close it, or use it as a context manager.

    timeout: seconds that the service may be silent. transport: another httpx transport, for tests or special networks.

    `a` and what comes back are torch tensors, on the device of `a`. A neuron, an estimator or an objective is a name,
    {"name": ..., **options}, or an instance; the service must have the plugin, this side need not. A seed of None is taken
    from torch's global generator here, as the library does. Every error of the service, or of the way to it, is a
    ServiceError.
    """

    def __init__(self, url: str, timeout: float = 60.0, transport: httpx.BaseTransport | None = None) -> None:
        self._http = httpx.Client(base_url=url, timeout=timeout, transport=transport)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the connections."""
        self._http.close()

    def neurons(self) -> dict[str, dict[str, Any]]:
        """What the service says about every neuron: {name: description}."""
        return _by_name(self._get("/v1/neurons"))

    def estimators(self) -> dict[str, dict[str, Any]]:
        """What the service says about every estimator, its bias on each neuron included: {name: description}."""
        return _by_name(self._get("/v1/estimators"))

    def objectives(self) -> dict[str, dict[str, Any]]:
        """What the service says about every objective: {name: description}."""
        return _by_name(self._get("/v1/objectives"))

    def neuron(self, name: str) -> dict[str, Any]:
        """The description of one neuron."""
        return self._describe("neurons", name)

    def estimator(self, name: str) -> dict[str, Any]:
        """The description of one estimator."""
        return self._describe("estimators", name)

    def objective(self, name: str) -> dict[str, Any]:
        """The description of one objective."""
        return self._describe("objectives", name)

    def plugins(self) -> dict[str, Any]:
        """The distributions that the service has loaded, and those that failed."""
        found: dict[str, Any] = self._get("/v1/plugins")
        return found

    def version(self) -> dict[str, Any]:
        """The versions of what computes the answers."""
        found: dict[str, Any] = self._get("/version")
        return found

    def sample(self, neuron: NeuronSpec, a: Tensor, samples: int = 1, seed: int | None = None) -> Tensor:
        """`gradest.sample`: independent outputs, `[samples, *a.shape]`."""
        answer = self._post("/v1/sample", {**_inputs(neuron, a), "samples": samples, "seed": _seed(seed)})
        return _tensor(answer, "h", a)

    def forward(
        self,
        neuron: NeuronSpec,
        estimator: EstimatorSpec,
        a: Tensor,
        seed: int | None = None,
        state: State | None = None,
    ) -> RemoteDraw:
        """Where the estimator wants the loss. The first step has no state; later ones pass what `backward` gave."""
        fields = {"estimator": _spec(estimator), "seed": _seed(seed), "state": state}
        answer = self._post("/v1/forward", {**_inputs(neuron, a), **fields})
        return RemoteDraw(
            points=_tensor(answer, "points", a),
            weights=_tensor(answer, "weights", a),
            needs=frozenset(answer["needs"]),
            seed=answer["seed"],
        )

    def backward(
        self,
        neuron: NeuronSpec,
        estimator: EstimatorSpec,
        a: Tensor,
        seed: int,
        loss: Tensor | None,
        grad: Tensor | None = None,
        state: State | None = None,
    ) -> RemoteGradient:
        """The gradient from the losses `[K, *batch]` at the points and, where it is needed, dloss/dh at them.

        All arguments but these two are as they were in `forward`, with the seed that it gave: the service has kept nothing.
        """
        fields = {"estimator": _spec(estimator), "seed": seed, "state": state, "loss": loss, "grad": grad}
        answer = self._post("/v1/backward", {**_inputs(neuron, a), **fields})
        return RemoteGradient(
            gradient=_tensor(answer, "gradient", a),
            value=None if answer["value"] is None else _tensor(answer, "value", a),
            state=_state(answer, a),
        )

    def estimate(
        self,
        objective: ObjectiveSpec,
        a: Tensor,
        neuron: NeuronSpec = "bernoulli",
        estimator: EstimatorSpec = "rloo",
        draws: int = 1000,
        seed: int | None = None,
    ) -> RemoteEstimate:
        """`gradest.estimate` of an objective, with the exact values where the service has them."""
        fields = {"objective": _spec(objective), "estimator": _spec(estimator), "draws": draws, "seed": _seed(seed)}
        answer = self._post("/v1/estimate", {**_inputs(neuron, a), **fields})
        exact = answer["exact"] and (_tensor(answer, "exact.loss", a), _tensor(answer, "exact.gradient", a))
        return RemoteEstimate(
            gradient=_tensor(answer, "gradient", a),
            variance=_tensor(answer, "variance", a),
            standard_error=_tensor(answer, "standard_error", a),
            loss=_tensor(answer, "loss", a),
            draws=answer["draws"],
            evaluations=answer["evaluations"],
            seconds=answer["seconds"],
            seed=answer["seed"],
            state=_state(answer, a),
            exact=exact,
        )

    def compare(
        self,
        objective: ObjectiveSpec,
        a: Tensor,
        neuron: NeuronSpec = "bernoulli",
        estimators: Sequence[EstimatorSpec] | None = None,
        draws: int = 1000,
        seed: int | None = None,
        *,
        progress: Callable[[str, int, int], None] | None = None,
    ) -> Comparison:
        """`gradest.compare` of an objective. progress(estimator, done, draws) is called as the service reports."""
        chosen = None if estimators is None else [_spec(estimator) for estimator in estimators]
        fields = {"objective": _spec(objective), "estimators": chosen, "draws": draws, "seed": _seed(seed)}
        with closing(self._events("/v1/compare", {**_inputs(neuron, a), **fields})) as events:
            for event, data in events:
                if event == "error":
                    raise _problem(data)
                if event == "result":
                    return _comparison(data, a)
                if event == "progress" and progress:
                    progress(data["estimator"], data["done"], data["draws"])
        raise ServiceError(200, "Incomplete answer", "the service ended the comparison without a result; try again")

    def _get(self, path: str) -> Any:
        return _read(self._send("GET", path))

    def _describe(self, kind: str, name: str) -> dict[str, Any]:
        found: dict[str, Any] = self._get(f"/v1/{kind}/{quote(name, safe='')}")
        return found

    def _post(self, path: str, fields: Mapping[str, Any]) -> dict[str, Any]:
        found: dict[str, Any] = _read(self._send("POST", path, content=_encode(fields), headers=_JSON))
        return found

    def _send(self, method: str, path: str, **body: Any) -> httpx.Response:
        with self._translated():
            return self._http.request(method, path, **body)

    def _events(self, path: str, fields: Mapping[str, Any]) -> Generator[tuple[str, Any], None, None]:
        headers = {**_JSON, "Accept": _EVENT_STREAM}
        with self._translated(), self._http.stream("POST", path, content=_encode(fields), headers=headers) as response:
            if response.headers.get("content-type", "").partition(";")[0] != _EVENT_STREAM:
                response.read()
                yield "result", _read(response)  # raises unless something between made it JSON
            else:
                yield from _parse_events(response.iter_bytes())

    @contextmanager
    def _translated(self) -> Iterator[None]:
        """What goes wrong on the way becomes a ServiceError."""
        try:
            yield
        except httpx.HTTPError as error:
            reason = str(error) or type(error).__name__
            raise ServiceError(
                0, "No answer", f"{self._http.base_url}: {reason}. Is the service running there?"
            ) from error


def _inputs(neuron: NeuronSpec, a: Tensor) -> dict[str, Any]:
    if not isinstance(a, Tensor) or a.dtype not in _DTYPES:
        kinds = ", ".join(map(str, _DTYPES))
        found = a.dtype if isinstance(a, Tensor) else type(a).__name__
        raise InvalidInput(f"pre-activations are a torch tensor of {kinds}, not {found}; a.float() converts one")
    return {"neuron": _spec(neuron), "a": a, "shape": list(a.shape), "dtype": str(a.dtype).removeprefix("torch.")}


def _spec(plugin: str | Mapping[str, Any] | Plugin) -> str | Mapping[str, Any]:
    return plugin.spec() if isinstance(plugin, Plugin) else plugin


def _seed(seed: int | None) -> int:
    return fresh_seed() if seed is None else check_seed(seed)


def _encode(fields: Mapping[str, Any]) -> bytes:
    # non-finite numbers go as they are, so that the service can say where they stand
    return to_json(fields, inf_nan_mode="constants", fallback=_plain)


def _plain(value: Any) -> Any:
    if isinstance(value, Tensor):
        return (value.to(torch.uint8) if value.dtype == torch.bool else value).tolist()
    raise InvalidInput(f"a request cannot hold a {type(value).__name__}")


def _tensor(answer: Mapping[str, Any], path: str, a: Tensor) -> Tensor:
    """The tensor of that name, on the device of `a`."""
    info, numbers = answer["tensors"][path], answer
    for name in path.split("."):
        numbers = numbers[name]
    dtype = getattr(torch, info["dtype"])
    return torch.tensor(_with_non_finite(numbers), dtype=dtype, device=a.device).reshape(info["shape"])


def _with_non_finite(numbers: Any) -> Any:
    """The strings "NaN", "Infinity" and "-Infinity" as numbers."""
    if isinstance(numbers, list):
        return [_with_non_finite(number) for number in numbers]
    return float(numbers) if isinstance(numbers, str) else numbers


def _state(answer: Mapping[str, Any], a: Tensor) -> State:
    return {name: _tensor(answer, f"state.{name}", a) for name in answer["state"]}


def _comparison(fields: Mapping[str, Any], a: Tensor) -> Comparison:
    texts = ("estimator", "claim")
    rows = [Row(**{k: v if k in texts else _with_non_finite(v) for k, v in row.items()}) for row in fields["rows"]]
    exact = fields["exact"]
    if exact is not None:
        dtype = torch.promote_types(a.dtype, torch.float32)
        exact = torch.tensor(_with_non_finite(exact), dtype=dtype, device=a.device).reshape(a.shape)
    return Comparison(fields["neuron"], fields["draws"], fields["seed"], tuple(rows), exact)


def _by_name(descriptions: Iterable[dict[str, Any]]) -> dict[str, dict[str, Any]]:
    return {description["name"]: description for description in descriptions}


def _read(response: httpx.Response) -> Any:
    """The JSON of an answer; raises ServiceError for an error, in problem details or, from a proxy, in plain text."""
    try:
        fields = response.json()
    except ValueError:
        fields = None
    if response.is_success and fields is not None:
        return fields
    if isinstance(fields, dict) and "status" in fields:
        raise _problem(fields)
    title = response.reason_phrase or "Error"
    detail = response.text.strip()[:500] or "the answer has no text"
    if response.is_success:
        title, detail = "Not a gradest service", f"the answer is {response.headers.get('content-type')}, not JSON"
    raise ServiceError(response.status_code, title, detail, response.headers.get("x-request-id"))


def _problem(fields: Mapping[str, Any]) -> ServiceError:
    return ServiceError(
        fields["status"], fields.get("title", "Error"), fields.get("detail", ""), fields.get("request_id")
    )


def _parse_events(chunks: Iterable[bytes]) -> Iterator[tuple[str, Any]]:
    """The events of a text/event-stream: names, and data as JSON."""
    pending, name, data = b"", "message", list[bytes]()
    for chunk in chunks:
        *lines, pending = (pending + chunk).split(b"\n")
        for line in (line.rstrip(b"\r") for line in lines):
            field, _, value = line.partition(b":")
            if line and field == b"event":
                name = value.strip().decode()
            elif line and field == b"data":
                data.append(value.removeprefix(b" "))
            elif not line:
                if data:
                    yield name, json.loads(b"\n".join(data))
                name, data = "message", []
