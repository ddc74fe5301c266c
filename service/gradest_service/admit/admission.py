"""From a decoded request to a job: its plugins are built, its tensors are decoded, its limits are checked, its key is charged.

There is one function for each operation. `as_json` tells whether the answer will be JSON, which may hold less than safetensors.
"""

from __future__ import annotations

import secrets
from collections.abc import Mapping
from dataclasses import replace
from typing import Any, TypeVar

import torch
from torch import Tensor

from gradest.contract.cost import Cost
from gradest.contract.neuron import Binary, Neuron
from gradest.estimation.arguments import at_least_float32, check_pre_activations, loss_dtype
from gradest.estimation.ask_tell import first_state
from gradest.estimation.credit import credited_estimator
from gradest.estimation.events import EventLayout
from gradest.random import MAX_SEED
from gradest_service.admit import limits
from gradest_service.admit.digest import check_digest
from gradest_service.admit.jobs import (
    BackwardJob,
    ComparisonJob,
    CreditJob,
    EstimateJob,
    EstimatorJob,
    ForwardJob,
    Job,
    NeuronJob,
    ObjectiveJob,
    RecommendationJob,
    SampleJob,
)
from gradest_service.admit.plugins import build_any_estimator, build_estimator, build_neuron, build_objective
from gradest_service.admit.request_context import charge
from gradest_service.bodies.schemas import (
    BackwardRequest,
    CompareRequest,
    CreditRequest,
    EstimateRequest,
    EventRequest,
    ForwardRequest,
    MeanRequest,
    MeasureRequest,
    NeuronRequest,
    RecommendRequest,
    SampleRequest,
)
from gradest_service.bodies.tensors import check_finite, decode_floats, decode_state, decode_tensor
from gradest_service.problems import Problem
from gradest_service.settings import Settings

__all__ = [
    "admit_backward",
    "admit_comparison",
    "admit_credit",
    "admit_estimate",
    "admit_forward",
    "admit_mean",
    "admit_recommendation",
    "admit_sample",
]

AnyEstimatorJob = TypeVar("AnyEstimatorJob", bound=EstimatorJob)
AnyJob = TypeVar("AnyJob", bound=Job)
_MEASURED_EVALUATIONS = (
    100  # the maximum evaluations of a step in a measured recommendation, unless the caller sets one
)


def admit_sample(request: SampleRequest, settings: Settings, as_json: bool) -> SampleJob:
    """Admit a request of POST /v1/sample."""
    neuron, a, wide = _decode_inputs(request, settings)
    # one byte for each output of a binary unit, if its two values fit
    as_bytes = not as_json and isinstance(neuron, Binary) and neuron.fits(torch.uint8)
    job = SampleJob(
        neuron=neuron,
        a=a,
        wide=wide,
        samples=request.samples,
        dtype=torch.uint8 if as_bytes else None,
        seed=_seed(request.seed),
    )
    return _charged(job, limits.check_sample(settings, job, as_json))


def admit_mean(request: MeanRequest, settings: Settings, as_json: bool) -> NeuronJob:
    """Admit a request of POST /v1/mean."""
    neuron, a, wide = _decode_inputs(request, settings)
    job = NeuronJob(neuron=neuron, a=a, wide=wide)
    return _charged(job, limits.check_mean(settings, job, as_json))


def admit_forward(request: ForwardRequest, settings: Settings, as_json: bool) -> ForwardJob:
    """Admit a request of POST /v1/forward."""
    events = _decode_events(request, settings)
    estimator = build_estimator("estimator", request.estimator, events.neuron, settings)
    job = ForwardJob(**vars(events), estimator=estimator, seed=_seed(request.seed))
    return _admit_draw(job, request.state, settings, as_json)


def admit_backward(request: BackwardRequest, settings: Settings, as_json: bool) -> BackwardJob:
    """Admit a request of POST /v1/backward."""
    events = _decode_events(request, settings)
    estimator = build_estimator("estimator", request.estimator, events.neuron, settings)
    job = BackwardJob(**vars(events), estimator=estimator, seed=request.seed)
    job = _admit_draw(job, request.state, settings, as_json)
    if request.digest is not None:
        check_digest(job, request.digest)
    losses, least = (estimator.evaluations(job.neuron, job.event), *job.batch), job.wide.dtype
    loss = grad = None
    if request.loss is not None:
        loss = decode_floats("loss", request.loss, request.loss_dtype, losses, settings, json_dtype="float64")
        check_finite("loss", loss.to(least))  # estimators compute some of their parts in the precision of `a`
        loss = loss.to(loss_dtype(loss.dtype, least))
    if request.grad is not None:
        grad = decode_tensor("grad", request.grad, least, settings, (*losses, *job.given_output))
    return replace(job, loss=loss, grad=grad)


def admit_estimate(request: EstimateRequest, settings: Settings, as_json: bool) -> EstimateJob:
    """Admit a request of POST /v1/estimate."""
    events = _decode_events(request, settings)
    job = EstimateJob(
        **vars(events),
        estimator=build_estimator("estimator", request.estimator, events.neuron, settings),
        objective=build_objective(request.objective, events.neuron, events.wide, settings),
        draws=request.draws,
        target_standard_error=request.target_standard_error,
        seed=_seed(request.seed),
    )
    return _charged(job, limits.check_estimate(settings, job, as_json))


def admit_comparison(request: CompareRequest, settings: Settings) -> ComparisonJob:
    """Admit a request of POST /v1/compare, with all affordable estimators if it names none."""
    events = _decode_events(request, settings)
    objective = build_objective(request.objective, events.neuron, events.wide, settings)
    job = ComparisonJob(
        **vars(events), objective=objective, draws=request.draws, seed=_seed(request.seed), estimators=[]
    )
    if request.estimators is None:
        estimators = limits.affordable_estimators(settings, job)
    else:
        limits.check_estimator_count(settings, len(request.estimators))
        estimators = [
            build_estimator(f"estimators.{position}", spec, events.neuron, settings)
            for position, spec in enumerate(request.estimators)
        ]
    job = replace(job, estimators=estimators)
    return _charged(job, limits.check_comparison(settings, job))


def admit_credit(request: CreditRequest, settings: Settings, as_json: bool) -> CreditJob:
    """Admit a request of POST /v1/credit."""
    named = build_any_estimator("estimator", request.estimator, settings)
    loss = decode_floats("loss", request.loss, request.dtype, request.shape, settings, json_dtype="float64")
    loss = loss.to(at_least_float32(loss))
    if loss.ndim == 0:
        raise Problem(422, "loss must be [K, *batch], the losses of K samples, and not a single number.")
    estimator = credited_estimator(named, loss.shape[0])
    features = None
    if request.features is not None:
        given = request.features.dtype if isinstance(request.features, Tensor) else loss.dtype
        features = decode_tensor("features", request.features, torch.promote_types(given, loss.dtype), settings)
    estimator.check_features(loss, features)
    job = CreditJob(estimator=estimator, loss=loss, features=features)
    job = _charged(job, limits.check_credit(settings, job, as_json))
    first = estimator.credit_state(loss, features)
    limits.check_credit_state(settings, first, as_json)
    return (
        job
        if request.state is None
        else replace(job, state=decode_state(estimator.name, request.state, first, settings))
    )


def admit_recommendation(request: RecommendRequest, settings: Settings) -> RecommendationJob:
    """Admit a request of GET /v1/recommend, which reads certificates, or of POST /v1/recommend, which measures."""
    neuron = build_neuron(request.neuron, settings)
    if not isinstance(request, MeasureRequest):
        return RecommendationJob(
            neuron=neuron, criteria=request, evaluations=request.evaluations, measure=None, seed=_seed(None)
        )
    evaluations, seed = request.evaluations or _MEASURED_EVALUATIONS, _seed(request.seed)
    a = decode_tensor("a", request.a, torch.float32, settings)
    wide = check_pre_activations(a, neuron, finite=True)
    objective = build_objective(request.objective, neuron, wide, settings)
    measure = ObjectiveJob(neuron=neuron, a=a, wide=wide, objective=objective, draws=request.draws, seed=seed)
    job = RecommendationJob(neuron=neuron, criteria=request, evaluations=evaluations, measure=measure, seed=seed)
    return _charged(job, limits.check_measurement(settings, measure, evaluations))


def _decode_inputs(request: NeuronRequest, settings: Settings) -> tuple[Neuron, Tensor, Tensor]:
    """Return the neuron, its pre-activations, and the same in at least float32."""
    neuron = build_neuron(request.neuron, settings)
    a = decode_floats("a", request.a, request.dtype, request.shape, settings)
    return neuron, a, check_pre_activations(a, neuron, finite=True)


def _decode_events(request: EventRequest, settings: Settings) -> NeuronJob:
    """Return the neuron and its pre-activations, with each event in the neuron's own shape."""
    neuron = build_neuron(request.neuron, settings)
    a, layout = decode_floats("a", request.a, request.dtype, request.shape, settings), None
    if request.event_dims is not None:
        layout = EventLayout.of(neuron, a, request.event_dims)
        a = layout.flatten(a)
    return NeuronJob(neuron=neuron, a=a, wide=check_pre_activations(a, neuron, finite=True), layout=layout)


def _admit_draw(
    job: AnyEstimatorJob, state: Mapping[str, Any] | None, settings: Settings, as_json: bool
) -> AnyEstimatorJob:
    """Check and charge the draw that both halves of a gradient make, then decode the estimator's state."""
    job = _charged(job, limits.check_estimator(settings, job, as_json))
    job = replace(job, first_state=first_state(job.estimator, job.neuron, job.wide))
    limits.check_state(settings, job, as_json)
    return (
        job if state is None else replace(job, state=decode_state(job.estimator.name, state, job.first_state, settings))
    )


def _charged(job: AnyJob, cost: Cost) -> AnyJob:
    """Charge the work of a job to the caller's key, and return the job with its cost."""
    charge(cost.work)
    return replace(job, cost=cost)


def _seed(seed: int | None) -> int:
    """Return the caller's seed, or a fresh one: not from torch's generator, which starts alike in every new process."""
    return secrets.randbelow(MAX_SEED) if seed is None else seed
