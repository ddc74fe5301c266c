"""compare: bias, variance and cost of estimators on one loss, side by side."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from concurrent.futures import Executor

import torch
from torch import Tensor

from gradest.analysis.results import Comparison, ComparisonRow
from gradest.contract.estimator import Estimator, Target
from gradest.contract.neuron import Neuron, event_shape
from gradest.contract.objective import Loss
from gradest.discovery.registry import EstimatorSpec, NeuronSpec, registry
from gradest.errors import TooManyPoints
from gradest.estimation.ask_tell import check_pre_activations
from gradest.estimation.estimate import estimate
from gradest.estimation.exact import closed_form
from gradest.estimation.results import Estimate
from gradest.random import check_seed, fresh_seed

__all__ = ["comparable", "compare", "cosine_of", "in_standard_errors", "is_feasible"]


def compare(
    f: Loss,
    a: Tensor,
    neuron: NeuronSpec = "bernoulli",
    estimators: Sequence[EstimatorSpec] | None = None,
    draws: int = 1000,
    seed: int | None = None,
    *,
    warm_up: int = 100,
    executor: Executor | None = None,
    progress: Callable[[str, int, int], None] | None = None,
) -> Comparison:
    """Run `estimate` for each estimator, all from one seed, and hold each against the exact gradient.

    estimators: by default every registered one that fits and estimates the gradient of E[f(h)], with its default options, but
    for those that would need to enumerate too many points. One with another target that is named here is held against the
    exact gradient of that, and its row says so. progress(estimator, done, draws) is called as draws are made,
    and with "exact" and points where the exact gradient takes many. executor: as for
    `estimate`; the figures do not depend on it, but for the seconds. Raises what `estimate` raises.
    """
    neuron = registry.neuron(neuron)
    check_pre_activations(a, neuron)
    seed = fresh_seed() if seed is None else check_seed(seed)
    if estimators is None:
        chosen = [estimator for estimator in comparable(neuron) if is_feasible(estimator, neuron, a)]
    else:
        chosen = [registry.estimator(spec) for spec in estimators]
        for estimator in chosen:
            registry.check_fit(neuron, estimator)
    on_exact = (lambda done, points: progress("exact", done, points)) if progress else None
    exact = _exact_gradient(f, a, neuron, Target(), on_exact)
    rows = []
    for estimator in chosen:
        label = estimator.label()
        report = (lambda done, total, label=label: progress(label, done, total)) if progress else None
        found = estimate(f, a, neuron, estimator, draws, seed, warm_up=warm_up, executor=executor, progress=report)
        target = estimator.target()
        truth = exact if target == Target() else _exact_gradient(f, a, neuron, target, on_exact)
        rows.append(_row(estimator, neuron, found, truth))
    return Comparison(neuron.label(), draws, seed, tuple(rows), exact)


def comparable(neuron: Neuron) -> list[Estimator]:
    """Every registered estimator, with its default options, that fits the neuron and estimates the gradient of E[f(h)]."""
    return [estimator for estimator in registry.fitting(neuron).values() if estimator.target() == Target()]


def in_standard_errors(found: Estimate, exact: Tensor) -> Tensor:
    """(gradient - exact) / standard error, per coordinate. The error is at least what rounding makes of it."""
    size = sum(float(x.abs().max()) for x in (exact, found.loss) if x.numel())
    rounding = max(8 * torch.finfo(exact.dtype).eps * size, torch.finfo(exact.dtype).tiny)
    return (found.gradient - exact) / found.standard_error.clamp(min=rounding)


def cosine_of(one: Tensor, two: Tensor) -> float:
    """Of the angle between them; NaN where one of them is 0."""
    one, two = one.double(), two.double()
    norms = float(one.norm() * two.norm())
    return float((one * two).sum()) / norms if norms else math.nan


def _exact_gradient(
    f: Loss, a: Tensor, neuron: Neuron, target: Target, progress: Callable[[int, int], None] | None
) -> Tensor | None:
    found = closed_form(f, a, neuron, target, progress=progress)
    return None if found is None else found[1]


def is_feasible(estimator: Estimator, neuron: Neuron, a: Tensor) -> bool:
    """Whether a draw at `a` takes no more points than the limit of an enumeration."""
    try:
        estimator.evaluations(neuron, event_shape(neuron, a))
    except TooManyPoints:
        return False
    return True


def _row(estimator: Estimator, neuron: Neuron, found: Estimate, exact: Tensor | None) -> ComparisonRow:
    variance = float(found.variance.double().mean()) if found.variance.numel() else 0.0
    spread, size = math.sqrt(variance * found.variance.numel()), float(found.gradient.double().norm())
    bias = bias_in_se = cosine = None
    if exact is not None:
        bias = _rms(found.gradient - exact)
        bias_in_se = _rms(in_standard_errors(found, exact))
        cosine = cosine_of(found.gradient, exact)
    return ComparisonRow(
        estimator=estimator.label(),
        claim=_claim(estimator, neuron),
        evaluations=found.evaluations,
        bias=bias,
        bias_in_se=bias_in_se,
        variance=variance,
        snr=size / spread if spread else math.inf,
        cosine=cosine,
        efficiency=1 / (variance * found.evaluations) if variance else math.inf,
        seconds=found.seconds,
    )


def _claim(estimator: Estimator, neuron: Neuron) -> str:
    claim, target = str(estimator.bias(neuron)), estimator.target()
    return claim if target == Target() else f"{claim}, of {target}"


def _rms(x: Tensor) -> float:
    return float(x.double().square().mean().sqrt()) if x.numel() else 0.0
