"""Computes the answers of admitted requests that run alone, by calls to gradest; nothing is kept from one to the next."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

from torch import Tensor

import gradest
from gradest.analysis.results import Comparison
from gradest.contract.neuron import Neuron
from gradest.estimation.exact import closed_form
from gradest.estimation.results import Estimate
from gradest_service.admit import limits
from gradest_service.admit.jobs import ComparisonJob, CreditJob, EstimateJob, NeuronJob, RecommendationJob
from gradest_service.bodies.schemas import CreditAnswer, EstimateAnswer, Exact, MeanAnswer
from gradest_service.run.cancellation import interruptible, raise_if_cancelled
from gradest_service.run.device import CPU, Device
from gradest_service.settings import Settings

__all__ = ["compare", "credit", "estimate", "mean", "recommend", "to_answer"]


_DRAWS = 1000  # of a recommendation from the certificates, which takes none


def mean(job: NeuronJob, settings: Settings, device: Device = CPU) -> MeanAnswer:
    """Compute a neuron's `mean` and `active_probability`, of so many rows at a time as the limits allow."""
    neuron, rows = job.neuron, limits.rows_of_mean(settings, job)
    with interruptible(limits.are_brief([job])), device.computing():
        if rows >= math.prod(job.batch):
            means, probabilities = _moments(neuron, job.wide, device)
            return MeanAnswer(mean=means, active_probability=probabilities)
        flat = job.wide.flatten(0, len(job.batch) - 1)
        found: list[Tensor] = []
        for begin in range(0, len(flat), rows):
            part = _moments(neuron, flat[begin : begin + rows], device)
            # in memory of their own: results that are kept between the parts would split what these free, and the next need more
            found = found or [x.new_empty(len(flat), *x.shape[1:]) for x in part]
            for whole, x in zip(found, part, strict=True):
                whole[begin : begin + rows] = x
    means, probabilities = (x.reshape(job.output_shape) for x in found)
    return MeanAnswer(mean=means, active_probability=probabilities)


def _moments(neuron: Neuron, rows: Tensor, device: Device) -> tuple[Tensor, Tensor]:
    a = device.put(rows)
    return device.fetch(neuron.mean(a)), device.fetch(neuron.active_probability(a))


def credit(job: CreditJob, device: Device = CPU) -> CreditAnswer:
    """Compute `gradest.credit`."""
    with interruptible(limits.are_brief([job])), device.computing():
        features = None if job.features is None else device.put(job.features)
        weights, state = gradest.credit(job.estimator, device.put(job.loss), device.put_all(job.state), features)
        return CreditAnswer(weights=device.fetch(weights), state=device.fetch_all(state))


def estimate(
    job: EstimateJob, settings: Settings, device: Device = CPU, watch: Callable[[Estimate], None] | None = None
) -> EstimateAnswer:
    """Compute `gradest.estimate`, and the exact values if they exist within the limits. `watch` sees the estimate so far."""
    exact = None
    with interruptible(limits.are_brief([job])), device.computing():
        a = device.put(job.a)
        found = gradest.estimate(
            job.objective,
            a,
            job.neuron,
            job.estimator,
            job.draws,
            job.seed,
            target_standard_error=job.target_standard_error,
            progress=raise_if_cancelled,
            watch=watch,
        )
        if limits.can_afford_exact(settings, job):
            exact = closed_form(job.objective, a, job.neuron, job.estimator.target(), progress=raise_if_cancelled)
        return to_answer(job, found, exact, device)


def to_answer(
    job: EstimateJob, found: Estimate, exact: tuple[Tensor, Tensor] | None = None, device: Device = CPU
) -> EstimateAnswer:
    """Convert an estimate of the device to the form in which it is sent, with events in the caller's shape."""

    def restored(x: Tensor) -> Tensor:
        return job.restore(device.fetch(x))

    return EstimateAnswer(
        loss=device.fetch(found.loss),
        gradient=restored(found.gradient),
        variance=restored(found.variance),
        standard_error=restored(found.standard_error),
        draws=found.draws,
        evaluations=found.evaluations,
        seconds=found.seconds,
        seed=found.seed,
        state=device.fetch_all(found.state),
        exact=None if exact is None else Exact(loss=device.fetch(exact[0]), gradient=restored(exact[1])),
    )


def compare(job: ComparisonJob, progress: Callable[[str, int, int], None], device: Device = CPU) -> Comparison:
    """Compute `gradest.compare`. `progress` is called with an estimator's name, the draws done and all its draws."""
    with interruptible(limits.are_brief([job])), device.computing():
        a = device.put(job.a)
        found = gradest.compare(job.objective, a, job.neuron, job.estimators, job.draws, job.seed, progress=progress)
        return found if found.exact is None else replace(found, exact=job.restore(device.fetch(found.exact)))


def recommend(job: RecommendationJob, device: Device = CPU) -> dict[str, Any]:
    """Compute `gradest.recommend`, from certificates, the map of variance or a measurement."""
    criteria, measure = job.criteria, job.measure
    with interruptible(limits.are_brief([job])), device.computing():
        return gradest.recommend(
            job.neuron,
            criteria.bring,
            job.evaluations,
            unbiased=criteria.unbiased,
            saturated=criteria.saturated,
            units=criteria.units,
            p=criteria.p,
            curvature=criteria.curvature,
            f=None if measure is None else measure.objective,
            a=None if measure is None else device.put(measure.a),
            draws=_DRAWS if measure is None else measure.draws,
            seed=job.seed,
            progress=raise_if_cancelled,
        ).to_dict()
