"""What each request asks for, by calls to gradest alone; nothing is kept from one request to the next.

Each operation first checks all that can be refused about its request, and gives what then computes the answer: a function, or
a `Pass`, which may run together with others. `as_json` is whether the answer will be JSON, which holds less.
"""

from __future__ import annotations

import secrets
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Generic, TypeVar

import torch
from pydantic import BaseModel, ValidationError
from torch import Tensor

import gradest
from gradest.comparison import Comparison, comparable
from gradest.errors import GradestError, InvalidInput, InvalidOptions, PluginFault, TooManyPoints, UnknownPlugin
from gradest.estimator import Estimator, State, Target, event_shape
from gradest.exchange import check_form, check_pre_activations, first_state
from gradest.expectation import Estimate, closed_form
from gradest.neuron import Binary, Neuron
from gradest.objective import Objective, Separable
from gradest.plugin import Plugin
from gradest.random import MAX_SEED
from gradest_service.admit import limits
from gradest_service.admit.request_context import charge, stop_if_told
from gradest_service.bodies.codec import check_options, decode_a, decode_state, decode_tensor
from gradest_service.bodies.schemas import (
    BackwardAnswer,
    BackwardRequest,
    CompareRequest,
    EstimateAnswer,
    EstimateRequest,
    Exact,
    ForwardAnswer,
    ForwardRequest,
    MeanAnswer,
    MeanRequest,
    RecommendRequest,
    Request,
    SampleAnswer,
    SampleRequest,
)
from gradest_service.problems import Problem, describe_faults
from gradest_service.run import joint_pass as joint
from gradest_service.settings import Settings

__all__ = [
    "Pass",
    "Progress",
    "backward",
    "calls_own_code_alone",
    "estimate",
    "forward",
    "mean",
    "own_neurons",
    "plan_comparison",
    "recommend",
    "sample",
    "to_answer",
    "unknown_plugin",
]

Progress = Callable[[str, int, int], None]
_MEASURED_EVALUATIONS = 100  # what a step may cost where the caller of a measured recommendation does not say
_OWN = "gradest"  # the distribution
AnyPlugin = TypeVar("AnyPlugin", bound=Plugin)
Result = TypeVar("Result")


@dataclass(frozen=True)
class Pass(Generic[Result]):
    """A request that is checked and ready: its rows, what computes on them, and what makes the answer of the result.

    Requests of the same `kind`, which is None for one that must stay alone, have the same `work`, and it may take their rows
    together: `work([rows, ...])` has a result for each. `elements` is how much there is to do.
    """

    kind: Hashable
    work: Callable[[Sequence[joint.Rows]], Sequence[Result]]
    rows: joint.Rows
    elements: int
    answer: Callable[[Result], BaseModel]

    def __call__(self) -> BaseModel:
        """The answer, computed alone."""
        return self.answer(self.work([self.rows])[0])


def calls_own_code_alone() -> bool:
    """Whether nothing but gradest's own plugins is registered: what else there is may be asked even where it is not named,
    as by an error that lists what fits.
    """
    return all(info.distribution == _OWN for info in gradest.registry.plugins)


def own_neurons() -> list[type[Neuron]]:
    """gradest's own, which may be tried without calling others' code. Loads all plugins."""
    return [cls for info in gradest.registry.plugins if info.distribution == _OWN for cls in info.neurons.values()]


def sample(request: SampleRequest, settings: Settings, as_json: bool) -> Pass[Tensor]:
    """`gradest.sample`."""
    neuron, a, _ = _inputs(request, settings)
    limits.check_samples(settings, request.samples, a, as_json)
    charge(request.samples * a.numel())
    seed = _seed(request.seed)
    # a byte for each output of a binary unit, where its two values fit in it
    dtype = torch.uint8 if not as_json and isinstance(neuron, Binary) and neuron.fits(torch.uint8) else None
    return Pass(
        kind=("sample", request.samples, dtype, _key(neuron), *_form(neuron, a)),
        work=partial(joint.sample_rows, neuron, request.samples, dtype=dtype),
        rows=joint.Rows(a, seed),
        elements=request.samples * a.numel(),
        answer=lambda h: SampleAnswer(h=h, seed=seed),
    )


def mean(request: MeanRequest, settings: Settings, as_json: bool) -> MeanAnswer:
    """A neuron's `mean` and `active_probability`."""
    neuron, _, wide = _inputs(request, settings)
    limits.check_answer(settings, limits.size(wide.shape), "the mean", as_json)
    charge(wide.numel())
    return MeanAnswer(mean=neuron.mean(wide), active_probability=neuron.active_probability(wide))


def forward(request: ForwardRequest, settings: Settings, as_json: bool) -> Pass[joint.Asked]:
    """The first half of a gradient: `gradest.exchange.ask`."""
    seed = _seed(request.seed)
    pair = _pair(request, settings, as_json)
    return Pass(
        kind=pair.kind("forward"),
        work=partial(joint.forward, pair.neuron, pair.estimator, state=pair.state),
        rows=joint.Rows(pair.a, seed),
        elements=pair.elements,
        answer=lambda asked: ForwardAnswer(
            points=asked.points, weights=asked.weights, needs=sorted(pair.estimator.needs, reverse=True), seed=seed
        ),
    )


def backward(request: BackwardRequest, settings: Settings, as_json: bool) -> Pass[joint.Told]:
    """The second half: draws again what forward drew, and `gradest.exchange.tell`s it the losses."""
    pair = _pair(request, settings, as_json)
    event = event_shape(pair.neuron, pair.a)
    losses = (pair.estimator.evaluations(pair.neuron, event), *pair.a.shape[: pair.a.ndim - len(event)])
    loss, grad = (
        None if value is None else decode_tensor(name, value, pair.wide.dtype, settings, shape)
        for name, value, shape in (("loss", request.loss, losses), ("grad", request.grad, (*losses, *event)))
    )
    return Pass(
        kind=pair.kind("backward", loss is None, grad is None),
        work=partial(joint.backward, pair.neuron, pair.estimator, state=pair.state),
        rows=joint.Rows(pair.a, request.seed, loss, grad),
        elements=pair.elements,
        answer=lambda told: BackwardAnswer(
            gradient=told.gradient, value=told.value, weights=told.weights, state=dict(told.state)
        ),
    )


def estimate(
    request: EstimateRequest, settings: Settings, as_json: bool
) -> Callable[[Callable[[Estimate], None] | None], EstimateAnswer]:
    """`gradest.estimate`, and the exact values where they are to be had; it may be watched."""
    neuron, a, wide = _inputs(request, settings)
    limits.check_answer(settings, limits.size(a.shape), "the gradient", as_json)
    estimator, _ = _fitting(request.estimator, "estimator", neuron, wide, settings)
    objective = _objective(request.objective, neuron, wide, settings)
    limits.check_draws(settings, request.draws)
    work = limits.work(settings, neuron, estimator, objective, wide, request.draws)
    if limits.exceeds_work(settings, work):
        raise _too_much(work, settings)
    charge(work)
    seed = _seed(request.seed)

    def run(watch: Callable[[Estimate], None] | None = None) -> EstimateAnswer:
        found = gradest.estimate(
            objective,
            a,
            neuron,
            estimator,
            request.draws,
            seed,
            target_standard_error=request.target_standard_error,
            progress=stop_if_told,
            watch=watch,
        )
        target = estimator.target()
        too_long = limits.exceeds_work(settings, limits.exact_work(neuron, objective, wide, target))
        exact = None if too_long else closed_form(objective, a, neuron, target, progress=stop_if_told)
        return to_answer(found, exact)

    return run


def to_answer(found: Estimate, exact: tuple[Tensor, Tensor] | None = None) -> EstimateAnswer:
    """The estimate as it is sent."""
    return EstimateAnswer(
        loss=found.loss,
        gradient=found.gradient,
        variance=found.variance,
        standard_error=found.standard_error,
        draws=found.draws,
        evaluations=found.evaluations,
        seconds=found.seconds,
        seed=found.seed,
        state=dict(found.state),
        exact=None if exact is None else Exact(loss=exact[0], gradient=exact[1]),
    )


def plan_comparison(request: CompareRequest, settings: Settings) -> Callable[[Progress | None], Comparison]:
    """Everything that can be refused about a comparison, before it starts; then what starts it."""
    neuron, a, wide = _inputs(request, settings)
    limits.check_answer(settings, limits.size(a.shape), "the exact gradient", as_json=True)
    objective = _objective(request.objective, neuron, wide, settings)
    limits.check_draws(settings, request.draws)
    if request.estimators is None:
        estimators = _affordable(request, settings, neuron, wide, objective)
    else:
        limits.check_estimators(settings, len(request.estimators))
        estimators = [
            _fitting(spec, f"estimators.{position}", neuron, wide, settings)[0]
            for position, spec in enumerate(request.estimators)
        ]
    _check_total(request, settings, neuron, wide, objective, estimators)
    seed = _seed(request.seed)

    def run(progress: Progress | None) -> Comparison:
        return gradest.compare(objective, a, neuron, estimators, request.draws, seed, progress=progress)

    return run


def recommend(request: RecommendRequest, settings: Settings) -> dict[str, Any]:
    """`gradest.recommend`, from certificates, or measured where the request brings an objective and pre-activations."""
    neuron = _build("neuron", request.neuron, gradest.registry.neuron, gradest.registry.neurons, settings)
    evaluations, objective, a = request.evaluations, None, None
    if request.objective is not None and request.a is not None:
        limits.check_draws(settings, request.draws)
        a = decode_tensor("a", request.a, torch.float32, settings, None)
        wide = check_pre_activations(a, neuron)
        objective = _objective(request.objective, neuron, wide, settings)
        evaluations = evaluations or _MEASURED_EVALUATIONS
        total = limits.measurement_work(settings, neuron, objective, wide, request.draws, evaluations)
        if limits.exceeds_work(settings, total + limits.exact_work(neuron, objective, wide, Target())):
            raise _too_much(total, settings)
        charge(total)
    elif request.objective is not None or request.a is not None:
        raise Problem(422, "To measure, send both objective and a; without either, the certificates speak.")
    return gradest.recommend(
        neuron,
        request.bring,
        evaluations,
        unbiased=request.unbiased,
        saturated=request.saturated,
        units=request.units,
        f=objective,
        a=a,
        draws=request.draws,
        seed=_seed(request.seed),
        progress=stop_if_told,
    ).to_dict()


def _inputs(request: Request, settings: Settings) -> tuple[Neuron, Tensor, Tensor]:
    """The neuron, `a`, and `a` as estimators compute with it."""
    neuron = _build("neuron", request.neuron, gradest.registry.neuron, gradest.registry.neurons, settings)
    a = decode_a(request.a, request.dtype, request.shape, settings)
    return neuron, a, check_form(a, neuron)


def _fitting(spec: Any, field: str, neuron: Neuron, a: Tensor, settings: Settings) -> tuple[Estimator, int]:
    """The estimator, checked against the neuron, and the elements of its points, checked against their cap."""
    estimator = _build(field, spec, gradest.registry.estimator, gradest.registry.estimators, settings)
    gradest.registry.check_fit(neuron, estimator)
    return estimator, limits.check_points(settings, neuron, estimator, a)


@dataclass(frozen=True)
class _Pair:
    """What forward and backward have in common; the state is None at the first step."""

    neuron: Neuron
    estimator: Estimator
    a: Tensor
    wide: Tensor
    state: State | None
    stateful: bool
    elements: int

    def kind(self, *more: Hashable) -> Hashable:
        return None if self.stateful else (*more, _key(self.neuron), _key(self.estimator), *_form(self.neuron, self.a))


def _pair(request: ForwardRequest | BackwardRequest, settings: Settings, as_json: bool) -> _Pair:
    neuron, a, wide = _inputs(request, settings)
    estimator, points = _fitting(request.estimator, "estimator", neuron, wide, settings)
    limits.check_answer(settings, points, "points", as_json)
    charge(points)
    first = first_state(estimator, neuron, wide)
    limits.check_answer(settings, max((x.numel() for x in first.values()), default=0), "the state", as_json)
    state = None if request.state is None else decode_state(request.state, first, settings)
    return _Pair(neuron, estimator, a, wide, state, bool(first), points)


def _key(plugin: Plugin) -> Hashable:
    return plugin.name, plugin.model_dump_json()


def _form(neuron: Neuron, a: Tensor) -> tuple[Hashable, Hashable]:
    return a.dtype, event_shape(neuron, a)


def _objective(spec: Any, neuron: Neuron, a: Tensor, settings: Settings) -> Objective:
    """The objective, tried on no points at all: what its options do to shapes shows without anything being allocated."""
    objective = _build("objective", spec, gradest.registry.objective, gradest.registry.objectives, settings)
    if isinstance(objective, Separable):
        objective.check_events(neuron)
    nothing = a.new_zeros((0, *a.shape))
    batch = nothing.shape[: nothing.ndim - neuron.event_ndim]
    has_tensors = any(isinstance(option, Tensor) and option.ndim for option in dict(objective).values())
    try:
        losses = objective(nothing)
    except GradestError:
        raise
    except Exception as error:
        if not has_tensors:
            raise
        raise _misfit(objective, a) from error
    if not isinstance(losses, Tensor) or losses.shape != batch:
        raise (
            _misfit(objective, a) if has_tensors else PluginFault(f"{objective.name}.__call__ must give a loss a point")
        )
    return objective


def _misfit(objective: Objective, a: Tensor) -> InvalidInput:
    return InvalidInput(
        f"the options of {objective.name} do not fit points of shape [K, {', '.join(map(str, a.shape))}]; see their "
        "descriptions for the shapes they must have"
    )


def _build(
    field: str,
    spec: Any,
    build: Callable[[Any], AnyPlugin],
    table: Mapping[str, type[AnyPlugin]],
    settings: Settings,
) -> AnyPlugin:
    """A plugin from what the caller named, with errors that repeat none of it."""
    check_options(field, spec, settings)
    name = spec.get("name") if isinstance(spec, dict) else spec
    if isinstance(name, str) and len(name) > 100:
        raise Problem(404, f"{field}: no plugin has so long a name.")
    try:
        return build(spec)
    except UnknownPlugin as error:
        raise unknown_plugin(error, str(name)) from error
    except InvalidOptions as error:
        if not isinstance(error.__cause__, ValidationError):
            raise
        options = list(table[str(name)].model_fields)
        faults = describe_faults(error.__cause__, options, field)
        listed = "; ".join(f"{fault.field}: {fault.message}" for fault in faults)
        raise Problem(422, f"{name} refuses its options: {listed}.", faults) from error


def unknown_plugin(error: UnknownPlugin, name: str) -> Problem:
    """The library's error, near matches included, without the name that the caller sent."""
    return Problem(404, str(error).replace(repr(name), "that"))


def _affordable(
    request: CompareRequest, settings: Settings, neuron: Neuron, a: Tensor, objective: Objective
) -> list[Estimator]:
    """Those that `gradest.compare` takes by default, less those that no request of this size may ask for."""
    affordable = []
    for estimator in comparable(neuron):
        try:
            elements = limits.work(settings, neuron, estimator, objective, a, request.draws)
        except (TooManyPoints, Problem):
            continue
        if not limits.exceeds_work(settings, elements):
            affordable.append(estimator)
    return affordable


def _check_total(
    request: CompareRequest,
    settings: Settings,
    neuron: Neuron,
    a: Tensor,
    objective: Objective,
    estimators: list[Estimator],
) -> None:
    targets = {estimator.target() for estimator in estimators} | {Target()}
    if limits.exceeds_work(settings, sum(limits.exact_work(neuron, objective, a, target) for target in targets)):
        raise Problem(
            413,
            "The exact gradient of this comparison would take too many points. Send fewer rows or units, or take an "
            "objective with a closed form.",
        )
    total = sum(limits.work(settings, neuron, estimator, objective, a, request.draws) for estimator in estimators)
    if limits.exceeds_work(settings, total):
        raise _too_much(total, settings)
    charge(total)


def _too_much(work: int, settings: Settings) -> Problem:
    return Problem(
        413,
        f"draws x K x a, over all estimators, would be {work} elements; the limit is {settings.max_work}. Ask for fewer "
        "draws, rows or estimators in a request, and send more requests, each with its own seed.",
    )


def _seed(seed: int | None) -> int:
    """The caller's seed, or a fresh one. Not from torch's generator, which starts alike in every new process."""
    return secrets.randbelow(MAX_SEED) if seed is None else seed
