"""What each call sends, and what it makes of the answer."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, TypeVar
from urllib.parse import quote

import torch
from torch import Tensor

from gradest.analysis.results import Comparison, ComparisonRow, Excluded, LossAccess, Recommendation, Recommended
from gradest.client.answers import Fields
from gradest.client.bodies import encode_json, with_non_finite
from gradest.client.requests import Call, Request, check_dtype, fix_seed, post, to_spec
from gradest.client.results import RemoteDraw, RemoteEstimate, RemoteGradient, RemoteMean
from gradest.contract.estimator import State
from gradest.contract.objective import Objective
from gradest.discovery.registry import EstimatorSpec, NeuronSpec
from gradest.estimation.results import Estimate

__all__ = [
    "backward",
    "compare",
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

ObjectiveSpec = str | Mapping[str, Any] | Objective
T = TypeVar("T")


def neurons() -> Call[dict[str, dict[str, Any]]]:
    """What the service says about every neuron: {name: description}."""
    return _by_name((yield Request("/v1/neurons")))


def estimators() -> Call[dict[str, dict[str, Any]]]:
    """What the service says about every estimator, its bias on each neuron included: {name: description}."""
    return _by_name((yield Request("/v1/estimators")))


def objectives() -> Call[dict[str, dict[str, Any]]]:
    """What the service says about every objective: {name: description}."""
    return _by_name((yield Request("/v1/objectives")))


def neuron(name: str) -> Call[dict[str, Any]]:
    """The description of one neuron."""
    found: dict[str, Any] = yield Request(f"/v1/neurons/{quote(name, safe='')}")
    return found


def estimator(name: str) -> Call[dict[str, Any]]:
    """The description of one estimator."""
    found: dict[str, Any] = yield Request(f"/v1/estimators/{quote(name, safe='')}")
    return found


def objective(name: str) -> Call[dict[str, Any]]:
    """The description of one objective."""
    found: dict[str, Any] = yield Request(f"/v1/objectives/{quote(name, safe='')}")
    return found


def plugins() -> Call[dict[str, Any]]:
    """The distributions that the service has loaded, and those that failed."""
    found: dict[str, Any] = yield Request("/v1/plugins")
    return found


def version() -> Call[dict[str, Any]]:
    """The versions of what computes the answers."""
    found: dict[str, Any] = yield Request("/version")
    return found


def sample(neuron: NeuronSpec, a: Tensor, samples: int = 1, seed: int | None = None) -> Call[Tensor]:
    """`gradest.sample`: independent outputs, `[samples, *a.shape]`."""
    answer = yield post("/v1/sample", neuron, a, {"samples": samples, "seed": fix_seed(seed)})
    h: Tensor = answer["h"]
    return h.to(a.device, a.dtype)  # those of binary units travel as bytes


def mean(neuron: NeuronSpec, a: Tensor) -> Call[RemoteMean]:
    """The neuron's `mean(a)` and `active_probability(a)`, computed in at least float32; nothing is sampled."""
    return _build(RemoteMean, Fields((yield post("/v1/mean", neuron, a, {}))))


def forward(
    neuron: NeuronSpec, estimator: EstimatorSpec, a: Tensor, seed: int | None = None, state: State | None = None
) -> Call[RemoteDraw]:
    """Where the estimator wants the loss. The first step has no state; later ones pass what `backward` gave."""
    fields = {"estimator": to_spec(estimator), "seed": fix_seed(seed), "state": state or None}
    answer = yield post("/v1/forward", neuron, a, fields)
    return RemoteDraw(answer["points"], answer["weights"], frozenset(answer["needs"]), answer["seed"])


def backward(
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
    fields = {"estimator": to_spec(estimator), "seed": seed, "state": state or None, "loss": loss, "grad": grad}
    answer = yield post("/v1/backward", neuron, a, fields)
    return RemoteGradient(answer["gradient"], answer["value"], answer["weights"], answer["state"])


def estimate(
    objective: ObjectiveSpec,
    a: Tensor,
    neuron: NeuronSpec = "bernoulli",
    estimator: EstimatorSpec = "rloo",
    draws: int = 1000,
    seed: int | None = None,
    *,
    target_standard_error: float | None = None,
    progress: Callable[[int, int], None] | None = None,
    watch: Callable[[Estimate], None] | None = None,
) -> Call[RemoteEstimate]:
    """`gradest.estimate` of an objective, with the exact values where the service has them.

    target_standard_error: stop once the standard error of every coordinate is at most this; `draws` is then the cap.
    progress, watch: progress(done, draws) and watch(estimate) are called as the service reports, ten times a second at the
        most, and with the result. The answer is JSON then, which holds less. After a stream that broke the work begins anew.
    """

    def report(so_far: Fields) -> None:
        if progress:
            progress(so_far["draws"], draws)
        if watch:
            watch(_build(Estimate, so_far))

    fields = {
        "objective": to_spec(objective),
        "estimator": to_spec(estimator),
        "draws": draws,
        "seed": fix_seed(seed),
        "target_standard_error": target_standard_error,
    }
    answer = yield post("/v1/estimate", neuron, a, fields, report if progress or watch else None)
    report(answer)
    exact = answer["exact"] and (answer["exact"]["loss"], answer["exact"]["gradient"])
    return _build(RemoteEstimate, Fields({**answer, "exact": exact}))


def compare(
    objective: ObjectiveSpec,
    a: Tensor,
    neuron: NeuronSpec = "bernoulli",
    estimators: Sequence[EstimatorSpec] | None = None,
    draws: int = 1000,
    seed: int | None = None,
    *,
    progress: Callable[[str, int, int], None] | None = None,
) -> Call[Comparison]:
    """`gradest.compare` of an objective. progress(estimator, done, draws) is called as the service reports.

    After a stream that broke the work begins anew.
    """

    def report(so_far: Fields) -> None:
        if progress:
            progress(so_far["estimator"], so_far["done"], so_far["draws"])

    chosen = None if estimators is None else [to_spec(estimator) for estimator in estimators]
    fields = {"objective": to_spec(objective), "estimators": chosen, "draws": draws, "seed": fix_seed(seed)}
    answer = yield post("/v1/compare", neuron, a, fields, report)
    texts = ("estimator", "claim")
    rows = [{key: v if key in texts else with_non_finite(v) for key, v in row.items()} for row in answer["rows"]]
    exact = answer["exact"]
    if exact is not None:
        dtype = torch.promote_types(a.dtype, torch.float32)
        exact = torch.tensor(with_non_finite(exact), dtype=dtype, device=a.device).reshape(a.shape)
    return _build(Comparison, Fields({**answer, "rows": _build_all(ComparisonRow, rows), "exact": exact}))


def recommend(
    neuron: NeuronSpec = "bernoulli",
    bring: Sequence[LossAccess] = ("loss",),
    evaluations: int | None = None,
    *,
    unbiased: bool = False,
    saturated: bool = False,
    units: int | None = None,
    objective: ObjectiveSpec | None = None,
    a: Tensor | None = None,
    draws: int = 1000,
    seed: int | None = None,
) -> Call[Recommendation]:
    """`gradest.recommend`: the estimators that fit a case, best first, from certificates.

    With an objective and `a`, in float32, it is measured there, of estimators within 100 `evaluations` if None are given. All of
    it travels in the URL, so `a` is to be small.
    """
    case: dict[str, Any] = {
        "neuron": to_spec(neuron),
        "bring": ",".join(bring),
        "evaluations": evaluations,
        "unbiased": unbiased,
        "saturated": saturated,
        "units": units,
    }
    if objective is not None:
        case |= {"objective": to_spec(objective), "draws": draws, "seed": fix_seed(seed)}
    if a is not None:
        check_dtype(a, (torch.float32,))
        case["a"] = a
    plain = (str, int, float)
    query = {name: v if isinstance(v, plain) else encode_json(v).decode() for name, v in case.items() if v is not None}
    answer = yield Request("/v1/recommend", query)
    rows, rejected = _build_all(Recommended, answer["rows"]), _build_all(Excluded, answer["rejected"])
    return _build(Recommendation, Fields({**answer, "rows": rows, "rejected": rejected}))


def _by_name(descriptions: Iterable[dict[str, Any]]) -> dict[str, dict[str, Any]]:
    return {description["name"]: description for description in descriptions}


def _build_all(kind: type[T], found: Iterable[dict[str, Any]]) -> tuple[T, ...]:
    """A record of each, with tuples for lists."""
    rows = ({key: tuple(v) if isinstance(v, list) else v for key, v in row.items()} for row in found)
    return tuple(_build(kind, Fields(row)) for row in rows)


def _build(kind: type[T], found: Fields) -> T:
    """The record, a dataclass, of these fields, and perhaps others, which a newer service may have."""
    return kind(**{field.name: found[field.name] for field in dataclasses.fields(kind)})  # type: ignore[arg-type]
