"""The service's endpoints as generators: each yields its request, is sent the fields of the response, and returns the result."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, TypeAlias, TypeVar
from urllib.parse import quote

from gradest.analysis.results import Comparison, ComparisonRow, Excluded, LossAccess, Recommendation, Recommended
from gradest.client.arrays import Array, ArrayLike, builder_like, cast, dtype_name, is_array
from gradest.client.encoding import encode_json, with_non_finite
from gradest.client.requests import DTYPES, ApiRequest, Call, check_dtype, choose_seed, post, to_spec
from gradest.client.responses import ResponseFields
from gradest.client.results import RemoteDraw, RemoteEstimate, RemoteGradient, RemoteMean
from gradest.errors import InvalidInput
from gradest.estimation.results import Estimate

if TYPE_CHECKING:
    from gradest.contract.objective import Objective
    from gradest.discovery.registry import EstimatorSpec, NeuronSpec
    from gradest.estimation.events import EventDims

__all__ = [
    "backward",
    "compare",
    "credit",
    "estimate",
    "estimator",
    "estimators",
    "forward",
    "mean",
    "neuron",
    "neurons",
    "objective",
    "objectives",
    "plugins",
    "recommend",
    "sample",
    "version",
]

ObjectiveSpec: TypeAlias = "str | Mapping[str, Any] | Objective"
T = TypeVar("T")


def neurons() -> Call[dict[str, dict[str, Any]]]:
    """Return the service's descriptions of all neurons: {name: description}."""
    return _by_name((yield ApiRequest("/v1/neurons", many=True)))


def estimators() -> Call[dict[str, dict[str, Any]]]:
    """Return the service's descriptions of all estimators, which include their bias on each neuron: {name: description}."""
    return _by_name((yield ApiRequest("/v1/estimators", many=True)))


def objectives() -> Call[dict[str, dict[str, Any]]]:
    """Return the service's descriptions of all objectives: {name: description}."""
    return _by_name((yield ApiRequest("/v1/objectives", many=True)))


def neuron(name: str) -> Call[dict[str, Any]]:
    """Return the description of one neuron."""
    found: dict[str, Any] = yield ApiRequest(f"/v1/neurons/{quote(name, safe='')}")
    return found


def estimator(name: str) -> Call[dict[str, Any]]:
    """Return the description of one estimator."""
    found: dict[str, Any] = yield ApiRequest(f"/v1/estimators/{quote(name, safe='')}")
    return found


def objective(name: str) -> Call[dict[str, Any]]:
    """Return the description of one objective."""
    found: dict[str, Any] = yield ApiRequest(f"/v1/objectives/{quote(name, safe='')}")
    return found


def plugins() -> Call[dict[str, Any]]:
    """Return the plugin distributions that the service has loaded, and those that failed to load."""
    found: dict[str, Any] = yield ApiRequest("/v1/plugins")
    return found


def version() -> Call[dict[str, Any]]:
    """Return the versions of gradest, of its plugin contract and of the libraries that the service runs."""
    found: dict[str, Any] = yield ApiRequest("/version")
    return found


def sample(neuron: NeuronSpec, a: Array, samples: int = 1, seed: int | None = None) -> Call[Array]:
    """Draw independent outputs of the neuron, `[samples, *a.shape]`, as `gradest.sample` does."""
    response = yield post("/v1/sample", neuron, a, {"samples": samples, "seed": choose_seed(seed, a)})
    h: Array = cast(response.array("h"), dtype_name(a))  # outputs of binary units are sent as bytes
    return h


def mean(neuron: NeuronSpec, a: Array) -> Call[RemoteMean[Array]]:
    """Return the neuron's `mean(a)` and `active_probability(a)`, computed in at least float32. Nothing is sampled."""
    return _build(RemoteMean, (yield post("/v1/mean", neuron, a, {})))


def forward(
    neuron: NeuronSpec,
    estimator: EstimatorSpec,
    a: Array,
    seed: int | None = None,
    state: Mapping[str, ArrayLike] | None = None,
    *,
    event_dims: EventDims | None = None,
) -> Call[RemoteDraw[Array]]:
    """Return the points at which the estimator needs the loss.

    state: None in the first step, then the state that `backward` returned.
    event_dims: the number of trailing dims of `a` that are one event, as for `gradest.expect`.
    """
    fields = {"estimator": to_spec(estimator), "seed": choose_seed(seed, a), "state": state or None}
    fields |= _events(event_dims)
    response = yield post("/v1/forward", neuron, a, fields)
    return _build(RemoteDraw, response | {"needs": frozenset(response["needs"]), "digest": response.get("digest")})


def backward(
    neuron: NeuronSpec,
    estimator: EstimatorSpec,
    a: Array,
    draw: RemoteDraw[Any],
    loss: ArrayLike | None,
    grad: ArrayLike | None = None,
    state: Mapping[str, ArrayLike] | None = None,
) -> Call[RemoteGradient[Array]]:
    """Return the gradient that follows from the losses.

    draw: what `forward` returned, with its `event_dims`.
    loss: the losses at the points, `[K, *batch]`. Differences of losses are taken in their own precision.
    grad: the derivatives of the losses in the points, `[K, *batch, *event]`, if the estimator needs them.

    The other arguments must be those of `forward`, because the service keeps nothing and makes the draw again. If one of them
    differs, such as pre-activations that an optimiser has changed meanwhile, the service refuses: ServiceError with status 409.
    """
    if not isinstance(draw, RemoteDraw):
        raise InvalidInput(
            f"backward takes the draw that forward returned, not {type(draw).__name__}: only with its digest can the service "
            "refuse other arguments than forward had"
        )
    fields = {"estimator": to_spec(estimator), "seed": draw.seed, "state": state or None, "grad": grad}
    fields |= _events(draw.event_dims) | _losses(loss)
    if draw.digest is not None:
        fields["digest"] = draw.digest
    response = yield post("/v1/backward", neuron, a, fields)
    return _build(RemoteGradient, response)


def _events(event_dims: EventDims | None) -> dict[str, Any]:
    return {} if event_dims is None else {"event_dims": event_dims}


def _losses(loss: ArrayLike | None) -> dict[str, Any]:
    """Return the fields of losses, which are sent in the precision that they have here."""
    if loss is None:
        return {"loss": None}
    name = dtype_name(loss) if is_array(loss) else ""
    if name.startswith(("int", "uint", "bool")):
        name = "float64" if name.endswith(("32", "64")) else "float32"  # which holds all of them
        loss = cast(loss, name)
    check_dtype(loss, DTYPES, "the loss")
    return {"loss": loss, "loss_dtype": name}


def credit(
    estimator: EstimatorSpec,
    loss: Array,
    state: Mapping[str, ArrayLike] | None = None,
    features: ArrayLike | None = None,
) -> Call[tuple[Array, Mapping[str, Array]]]:
    """Return the weights of the scores of K samples of the caller's own, and the next state, as `gradest.credit` does.

    loss: the losses of the samples, `[K, *batch]`. state: None in the first step, then the state that the last call returned.
    features: what some estimators must know of the samples beside their losses.
    """
    dtype = check_dtype(loss, DTYPES, "the loss")
    if features is not None and is_array(features):  # lengths are whole numbers
        features = cast(features, _at_least_float32(features))
    fields = {
        "estimator": to_spec(estimator),
        "loss": loss,
        "shape": list(loss.shape),
        "dtype": dtype,
        "features": features,
        "state": state or None,
    }
    response = yield ApiRequest("/v1/credit", fields=fields, like=loss)
    return response.array("weights"), response["state"]


def _at_least_float32(array: ArrayLike) -> str:
    """Return the name of the dtype of the array, or of float32 if that holds less."""
    return "float64" if dtype_name(array) == "float64" else "float32"


def estimate(
    objective: ObjectiveSpec,
    a: Array,
    neuron: NeuronSpec = "bernoulli",
    estimator: EstimatorSpec = "rloo",
    draws: int = 1000,
    seed: int | None = None,
    *,
    target_standard_error: float | None = None,
    event_dims: EventDims | None = None,
    progress: Callable[[int, int], None] | None = None,
    watch: Callable[[Estimate[Array]], None] | None = None,
) -> Call[RemoteEstimate[Array]]:
    """Average many draws of an estimator, as `gradest.estimate` does for an objective.

    The result has the exact values too, if the service can compute them.

    target_standard_error: stop once the standard error of every coordinate is at most this; `draws` is then the maximum.
    event_dims: the number of trailing dims of `a` that are one event, as for `gradest.estimate`.
    progress, watch: progress(done, draws) and watch(estimate) are called whenever the service reports, at most ten times a
        second, and with the result. The response is then JSON, which the service allows for smaller tensors only. If the
        connection breaks, the work starts again.
    """

    def report(so_far: ResponseFields) -> None:
        if progress:
            progress(so_far["draws"], draws)
        if watch:
            watch(_build(Estimate, so_far))

    fields = {
        "objective": to_spec(objective),
        "estimator": to_spec(estimator),
        "draws": draws,
        "seed": choose_seed(seed, a),
        "target_standard_error": target_standard_error,
        **_events(event_dims),
    }
    response = yield post("/v1/estimate", neuron, a, fields, report if progress or watch else None)
    report(response)
    exact = response["exact"] and (response["exact"]["loss"], response["exact"]["gradient"])
    return _build(RemoteEstimate, response | {"exact": exact})


def compare(
    objective: ObjectiveSpec,
    a: Array,
    neuron: NeuronSpec = "bernoulli",
    estimators: Sequence[EstimatorSpec] | None = None,
    draws: int = 1000,
    seed: int | None = None,
    *,
    event_dims: EventDims | None = None,
    progress: Callable[[str, int, int], None] | None = None,
) -> Call[Comparison[Array]]:
    """Compare estimators with the exact gradient, as `gradest.compare` does for an objective.

    event_dims: the number of trailing dims of `a` that are one event, as for `gradest.compare`.
    progress: progress(estimator, done, draws) is called whenever the service reports. If the connection breaks, the work starts
        again.
    """

    def report(so_far: ResponseFields) -> None:
        if progress:
            progress(so_far["estimator"], so_far["done"], so_far["draws"])

    if isinstance(estimators, (str, Mapping)):
        raise InvalidInput(f"estimators must be a list of estimators, such as ['rloo'], not {estimators!r}")
    chosen = None if estimators is None else [to_spec(estimator) for estimator in estimators]
    fields = {"objective": to_spec(objective), "estimators": chosen, "draws": draws, "seed": choose_seed(seed, a)}
    fields |= _events(event_dims)
    response = yield post("/v1/compare", neuron, a, fields, report)
    texts = ("estimator", "claim")
    rows = [{key: v if key in texts else with_non_finite(v) for key, v in row.items()} for row in response["rows"]]
    exact = response["exact"]
    if exact is not None:
        exact = builder_like(a).from_list(with_non_finite(exact), _at_least_float32(a), a.shape)
    failures = _build_all(Excluded, response.get("failures", ()))
    skipped = _build_all(Excluded, response.get("skipped", ()))
    unresolved = _build_all(Excluded, response.get("unresolved", ()))
    # an older service sends none of these
    more = {"failures": failures, "skipped": skipped, "unresolved": unresolved, "no_exact": response.get("no_exact")}
    return _build(Comparison, response | {"rows": _build_all(ComparisonRow, rows), "exact": exact} | more)


def recommend(
    neuron: NeuronSpec = "bernoulli",
    bring: Sequence[LossAccess] = ("loss",),
    evaluations: int | None = None,
    *,
    unbiased: bool = False,
    saturated: bool = False,
    units: int | None = None,
    p: float | None = None,
    curvature: float | None = None,
    objective: ObjectiveSpec | None = None,
    a: ArrayLike | None = None,
    draws: int = 1000,
    seed: int | None = None,
) -> Call[Recommendation]:
    """Rank the estimators that fit a case, best first, as `gradest.recommend` does.

    The ranking follows from certificates, from the map of variance or, with an objective and float32 pre-activations `a`, from a
    measurement there, for which `evaluations` is 100 if it is None.
    """
    case: dict[str, Any] = {
        "neuron": to_spec(neuron),
        "evaluations": evaluations,
        "unbiased": unbiased,
        "saturated": saturated,
        "units": units,
        "p": p,
        "curvature": curvature,
    }
    if objective is None and a is None:
        query = {name: _query_text(value) for name, value in case.items() if value is not None}
        response = yield ApiRequest("/v1/recommend", {**query, "bring": ",".join(bring)})
    else:
        if objective is None or a is None:
            raise InvalidInput(
                "to measure, give both objective and a; without both, the ranking follows from certificates"
            )
        check_dtype(a, ["float32"])
        measured = {"objective": to_spec(objective), "a": a, "draws": draws, "seed": choose_seed(seed, a)}
        wanted = [bring] if isinstance(bring, str) else list(bring)
        response = yield ApiRequest("/v1/recommend", fields={**case, **measured, "bring": wanted})
    rows, rejected = _build_all(Recommended, response["rows"]), _build_all(Excluded, response["rejected"])
    return _build(Recommendation, response | {"rows": rows, "rejected": rejected})


def _query_text(value: Any) -> str | int | float:
    return value if isinstance(value, (str, int, float)) else encode_json(value).decode()


def _by_name(descriptions: Iterable[ResponseFields]) -> dict[str, dict[str, Any]]:
    return {description["name"]: description for description in descriptions}


def _build_all(kind: type[T], found: Iterable[dict[str, Any]]) -> tuple[T, ...]:
    """Return a record for each dict, with tuples in place of lists."""
    rows = ({key: tuple(v) if isinstance(v, list) else v for key, v in row.items()} for row in found)
    return tuple(_build(kind, ResponseFields(row)) for row in rows)


def _build(kind: type[T], found: ResponseFields) -> T:
    """Return a record, which is a dataclass, of these fields. Other fields, which a newer service may send, are ignored."""
    return kind(
        **{
            field.name: found.array(field.name) if field.type == "Array" else found[field.name]
            for field in dataclasses.fields(kind)  # type: ignore[arg-type]
        }
    )
