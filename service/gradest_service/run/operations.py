"""Computes the answers of admitted requests that run alone, by calls to gradest; nothing is kept from one to the next."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

import gradest
from gradest.analysis.results import Comparison
from gradest.estimation.exact import closed_form
from gradest.estimation.results import Estimate
from gradest_service.admit import limits
from gradest_service.admit.jobs import ComparisonJob, CreditJob, EstimateJob, NeuronJob, RecommendationJob
from gradest_service.bodies.schemas import CreditAnswer, EstimateAnswer, Exact, MeanAnswer
from gradest_service.run.cancellation import interruptible, raise_if_cancelled
from gradest_service.settings import Settings

__all__ = ["compare", "credit", "estimate", "mean", "recommend", "to_answer"]


_DRAWS = 1000  # of a recommendation from the certificates, which takes none


def mean(job: NeuronJob, settings: Settings) -> MeanAnswer:
    """Compute a neuron's `mean` and `active_probability`, of so many rows at a time as the limits allow."""
    neuron, rows = job.neuron, limits.rows_of_mean(settings, job)
    with interruptible(job.cost.work):
        if rows >= math.prod(job.batch):
            return MeanAnswer(mean=neuron.mean(job.wide), active_probability=neuron.active_probability(job.wide))
        parts = torch.split(job.wide.flatten(0, len(job.batch) - 1), rows)
        found = [(neuron.mean(part), neuron.active_probability(part)) for part in parts]
    means, probabilities = (torch.cat(columns).reshape(job.output_shape) for columns in zip(*found, strict=True))
    return MeanAnswer(mean=means, active_probability=probabilities)


def credit(job: CreditJob) -> CreditAnswer:
    """Compute `gradest.credit`."""
    with interruptible(job.cost.work):
        weights, state = gradest.credit(job.estimator, job.loss, job.state, job.features)
    return CreditAnswer(weights=weights, state=dict(state))


def estimate(job: EstimateJob, settings: Settings, watch: Callable[[Estimate], None] | None = None) -> EstimateAnswer:
    """Compute `gradest.estimate`, and the exact values if they exist within the limits. `watch` sees the estimate so far."""
    exact = None
    with interruptible(job.cost.work):
        found = gradest.estimate(
            job.objective,
            job.a,
            job.neuron,
            job.estimator,
            job.draws,
            job.seed,
            target_standard_error=job.target_standard_error,
            progress=raise_if_cancelled,
            watch=watch,
        )
        if limits.can_afford_exact(settings, job):
            exact = closed_form(job.objective, job.a, job.neuron, job.estimator.target(), progress=raise_if_cancelled)
    return to_answer(job, found, exact)


def to_answer(job: EstimateJob, found: Estimate, exact: tuple[Tensor, Tensor] | None = None) -> EstimateAnswer:
    """Convert an estimate to the form in which it is sent, with events in the caller's shape."""
    return EstimateAnswer(
        loss=found.loss,
        gradient=job.restore(found.gradient),
        variance=job.restore(found.variance),
        standard_error=job.restore(found.standard_error),
        draws=found.draws,
        evaluations=found.evaluations,
        seconds=found.seconds,
        seed=found.seed,
        state=dict(found.state),
        exact=None if exact is None else Exact(loss=exact[0], gradient=job.restore(exact[1])),
    )


def compare(job: ComparisonJob, progress: Callable[[str, int, int], None]) -> Comparison:
    """Compute `gradest.compare`. `progress` is called with an estimator's name, the draws done and all its draws."""
    with interruptible(job.cost.work):
        found = gradest.compare(
            job.objective, job.a, job.neuron, job.estimators, job.draws, job.seed, progress=progress
        )
    return found if found.exact is None else replace(found, exact=job.restore(found.exact))


def recommend(job: RecommendationJob) -> dict[str, Any]:
    """Compute `gradest.recommend`, from certificates or from a measurement."""
    criteria, measure = job.criteria, job.measure
    with interruptible(job.cost.work):
        return gradest.recommend(
            job.neuron,
            criteria.bring,
            job.evaluations,
            unbiased=criteria.unbiased,
            saturated=criteria.saturated,
            units=criteria.units,
            f=None if measure is None else measure.objective,
            a=None if measure is None else measure.a,
            draws=_DRAWS if measure is None else measure.draws,
            seed=job.seed,
            progress=raise_if_cancelled,
        ).to_dict()
