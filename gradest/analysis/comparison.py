"""Compare the bias, variance and cost of estimators on one loss."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Executor

import torch
from torch import Tensor

from gradest.analysis.rare_outputs import share_of_rare_outputs
from gradest.analysis.results import Comparison, ComparisonRow, Excluded
from gradest.contract.estimator import Bias, Estimator
from gradest.contract.neuron import Neuron, event_shape
from gradest.contract.objective import Loss
from gradest.contract.target import Target
from gradest.discovery.registry import EstimatorSpec, NeuronSpec, registry
from gradest.errors import Inexact, InvalidInput, NotDifferentiable, PluginFault, TooManyPoints
from gradest.estimation.arguments import check_count, check_pre_activations
from gradest.estimation.estimate import estimate_checked
from gradest.estimation.events import EventDims, EventLayout
from gradest.estimation.exact import check_outside_transforms, exact_or_raise
from gradest.estimation.losses.checks import checked_loss
from gradest.estimation.losses.evaluation import flattened
from gradest.estimation.results import Estimate
from gradest.random import fresh_seed
from gradest.seeds import check_seed

__all__ = ["bias_in_standard_errors", "comparable_estimators", "compare", "cosine_similarity", "within_point_limit"]


def compare(
    f: Loss,
    a: Tensor,
    neuron: NeuronSpec = "bernoulli",
    estimators: Sequence[EstimatorSpec] | None = None,
    draws: int = 1000,
    seed: int | None = None,
    *,
    flatten: bool = False,
    allow_inf: bool = False,
    warm_up: int = 100,
    event_dims: EventDims | None = None,
    executor: Executor | None = None,
    progress: Callable[[str, int, int], None] | None = None,
) -> Comparison:
    """Run `estimate` for each estimator with one seed, and compare each mean gradient with the exact gradient.

    Returns a table with a row for each estimator, in the order given.

    f: the loss, from points `[K, *batch, *event]` to losses `[K, *batch]`.
    a: pre-activations `[*batch, *event]`.
    estimators: by default every registered estimator that fits the neuron and estimates the gradient of E[f(h)], with its default
        options, except those that would evaluate f at more points than the limit of enumeration. An estimator with another
        `target` can be named; it is compared with the exact gradient of that target, which its claim then names.
    flatten, allow_inf: as for `expect`. An infinite loss gives rows with infinite or NaN figures; the estimators must be
        stateless.
    draws, warm_up, executor: as for `estimate`, for each estimator. Only `seconds` depends on the executor.
    event_dims: as for `expect`. The exact gradient has the shape of `a`.
    seed: the seed of all estimators. If omitted, a new seed is drawn, and the table has it.
    progress: progress(estimator, done, draws) is called as draws are made, and progress("exact", done, points) as the exact
        gradient is enumerated.

    If the exact gradient takes too many points, or its quadrature is not accurate for f, the figures that need it are None, and
    `no_exact` of the table gives the reason. They are also None if f is random or depends on the other points of a call, of which
    a GradestWarning tells, as that of `estimate` does. An estimator whose code fails, or that of the neuron under it, has no row
    but an entry in `failures`, with file and line. One that needs dL/dh, which f does not have, is left out even if it is named:
    `skipped` gives the reason. Where outputs too rare for so many draws may explain the difference from the exact
    gradient, the standard error is too small, and `unresolved` says that the bias is not established.

    Raises InvalidInput if `estimators` is not a list or if rows of the batch share a loss, Incompatible if an estimator that is
    named does not fit the neuron and inside a transform of torch.func, PluginFault if all estimators fail, and what `estimate`
    raises.

    >>> import torch, gradest
    >>> table = gradest.compare(lambda h: h.sum(-1), torch.zeros(3), "bernoulli", ["rloo", "disarm"], draws=100, seed=7)
    >>> [row.estimator for row in table.rows]
    ['rloo', 'disarm']
    """
    check_outside_transforms("compare")
    neuron = registry.neuron(neuron)
    layout = None if event_dims is None else EventLayout.of(neuron, a, event_dims)
    if layout is not None:
        f, a = layout.loss(flattened(f, len(layout.output_given), flatten)), layout.flatten(a)
    else:
        f = flattened(f, neuron.output_ndim, flatten)
    wide = check_pre_activations(a, neuron)
    seed = fresh_seed() if seed is None else check_seed(seed)
    failures: dict[str, PluginFault] = {}
    chosen = _chosen_estimators(estimators, neuron, a, failures)
    check_count("draws", draws, least=1)
    exact_progress = (lambda done, points: progress("exact", done, points)) if progress else None
    rows = []
    measured: list[tuple[str, Estimate]] = []
    skipped: list[Excluded] = []
    reasons: dict[str, None] = {}
    with checked_loss(f, wide, neuron, a.dtype) as is_function:
        if not is_function:
            reasons["the loss is random, or depends on the other points of a call"] = None
        known = _exact(f, a, neuron, Target(), allow_inf, exact_progress, reasons) if is_function else None
        exact = None if known is None else known[1]
        truths = {Target(): exact}
        for estimator in chosen:
            label = registry.label(estimator)
            report = (lambda done, total, label=label: progress(label, done, total)) if progress else None
            with registry.containing(failures, label):
                try:
                    found = estimate_checked(
                        f,
                        a,
                        neuron,
                        estimator,
                        draws,
                        seed,
                        None,
                        allow_inf,
                        warm_up,
                        executor=executor,
                        progress=report,
                    )
                except NotDifferentiable as error:
                    skipped.append(Excluded(label, (str(error),)))
                    continue
                target = estimator.target()
                if target == Target():
                    measured.append((label, found))
                if is_function and target not in truths:
                    other = _exact(f, a, neuron, target, allow_inf, exact_progress, reasons)
                    truths[target] = None if other is None else other[1]
                rows.append(_comparison_row(estimator, neuron, found, truths.get(target)))
        unresolved = () if known is None else _unresolved(f, a, neuron, known, draws, seed, measured)
    if failures and not rows and not skipped:
        fault = next(iter(failures.values()))
        raise fault from fault.__cause__
    if exact is not None and layout is not None:
        exact = layout.restore(exact)
    excluded = [Excluded(label, (str(fault),)) for label, fault in failures.items()]
    return Comparison(
        registry.label(neuron),
        draws,
        seed,
        tuple(rows),
        exact,
        tuple(excluded),
        no_exact="; ".join(reasons) or None,
        skipped=tuple(skipped),
        unresolved=unresolved,
    )


_MOST_SE = 5.0  # standard errors that noise explains
_OWN_TERMS = 10.0  # an estimator's terms at rare outputs, such as a control variate, may exceed those of the gradient


def _unresolved(
    f: Loss,
    a: Tensor,
    neuron: Neuron,
    known: tuple[Tensor, Tensor],
    draws: int,
    seed: int,
    measured: list[tuple[str, Estimate]],
) -> tuple[Excluded, ...]:
    """Return the estimators that differ from the exact gradient by no more than what rare outputs may contribute.

    known: E[f(h)] and its gradient.
    """
    exact = known[1]
    differing = [
        (label, found)
        for label, found in measured
        if exact.numel() and float(bias_in_standard_errors(found, exact).abs().max()) > _MOST_SE
    ]
    rare = None
    if differing:
        with registry.containing({}, registry.label(neuron)):
            rare = share_of_rare_outputs(f, a, neuron, *known, draws, seed)
    if rare is None:
        return ()
    return tuple(
        Excluded(label, (_TOO_RARE.format(draws),))
        for label, found in differing
        if bool(((found.gradient - exact).abs() <= _OWN_TERMS * rare + _MOST_SE * _least_error(found, exact)).all())
    )


_TOO_RARE = (
    "the difference from the exact gradient may be due to outputs that {} draws are expected to show less than 10 times, so that "
    "the standard error is too small; take more draws"
)


def comparable_estimators(neuron: Neuron) -> list[Estimator]:
    """Return every registered estimator, with its default options, that fits the neuron and estimates the gradient of E[f(h)].

    Those whose code fails when it is asked are left out.
    """
    return _comparable_estimators(neuron, {})


def _comparable_estimators(neuron: Neuron, failures: dict[str, PluginFault]) -> list[Estimator]:
    """Return `comparable_estimators`, and add the faults of the others to `failures`."""
    fitting, faults = registry.ask_fitting(neuron)
    failures.update(faults)
    comparable = []
    for name, estimator in fitting.items():
        with registry.containing(failures, name):
            if registry.call(estimator, "target", kind=Target) == Target():
                comparable.append(estimator)
    return comparable


def _default_estimators(neuron: Neuron, a: Tensor, failures: dict[str, PluginFault]) -> list[Estimator]:
    chosen = []
    for estimator in _comparable_estimators(neuron, failures):
        with registry.containing(failures, estimator.name):
            if within_point_limit(estimator, neuron, a):
                chosen.append(estimator)
    return chosen


def _chosen_estimators(
    estimators: Sequence[EstimatorSpec] | None, neuron: Neuron, a: Tensor, failures: dict[str, PluginFault]
) -> list[Estimator]:
    if estimators is None:
        return _default_estimators(neuron, a, failures)
    if isinstance(estimators, (str, Mapping, Estimator)):
        raise InvalidInput(f"estimators must be a list of estimators, such as ['rloo'], not {estimators!r}")
    chosen = []
    for spec in estimators:
        with registry.containing(failures, str(spec.get("name") if isinstance(spec, Mapping) else spec)):
            estimator = registry.estimator(spec)
            registry.check_fit(neuron, estimator)
            chosen.append(estimator)
    return chosen


def bias_in_standard_errors(found: Estimate, exact: Tensor) -> Tensor:
    """Return (gradient - exact) / standard error for each coordinate, `[*batch, *event]`.

    The standard error is taken to be at least the rounding error of the row's mean, so that an estimator without variance is not
    said to be biased. Each row has its own, so that a row of large losses does not hide the bias of another.
    """
    return (found.gradient - exact) / _least_error(found, exact)


def _least_error(found: Estimate, exact: Tensor) -> Tensor:
    """Return the standard error of each coordinate, at least the rounding error of its row, `[*batch, *event]`."""
    limits, batch = torch.finfo(exact.dtype), found.loss.shape
    if not exact.numel():
        return torch.ones_like(exact)
    largest = exact.abs().flatten(len(batch)).amax(-1)
    rounding = (8 * limits.eps * (largest + found.loss.abs())).clamp(min=limits.tiny)
    return found.standard_error.maximum(rounding[(..., *[None] * (exact.ndim - len(batch)))])


def cosine_similarity(one: Tensor, two: Tensor) -> float:
    """Return the cosine of the angle between two tensors of one shape, taken as vectors; NaN if one of them is 0."""
    one, two = one.double(), two.double()
    norms = float(one.norm() * two.norm())
    return float((one * two).sum()) / norms if norms else math.nan


def _exact(
    f: Loss,
    a: Tensor,
    neuron: Neuron,
    target: Target,
    allow_inf: bool,
    progress: Callable[[int, int], None] | None,
    reasons: dict[str, None],
) -> tuple[Tensor, Tensor] | None:
    """Return the exact value and gradient, or add the reason why there is none to `reasons` and return None."""
    try:
        return exact_or_raise(f, a, neuron, target, allow_inf=allow_inf, checked=True, progress=progress)
    except (TooManyPoints, Inexact, NotDifferentiable) as error:
        reasons[str(error)] = None
        return None


def within_point_limit(estimator: Estimator, neuron: Neuron, a: Tensor) -> bool:
    """Return whether one draw at `a` `[*batch, *event]` evaluates the loss at no more points than the limit of enumeration."""
    try:
        registry.call(estimator, "evaluations", neuron, event_shape(neuron, a), kind=int)
    except TooManyPoints:
        return False
    return True


def _comparison_row(estimator: Estimator, neuron: Neuron, found: Estimate, exact: Tensor | None) -> ComparisonRow:
    variance = float(found.variance.double().mean()) if found.variance.numel() else 0.0
    spread, size = math.sqrt(variance * found.variance.numel()), float(found.gradient.double().norm())
    bias = bias_in_se = cosine = None
    if exact is not None:
        bias = _root_mean_square(found.gradient - exact)
        bias_in_se = _root_mean_square(bias_in_standard_errors(found, exact))
        cosine = cosine_similarity(found.gradient, exact)
    return ComparisonRow(
        estimator=registry.call(estimator, "label", kind=str),
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
    claim, target = str(registry.call(estimator, "bias", neuron, kind=Bias)), estimator.target()
    return claim if target == Target() else f"{claim}, of {target}"


def _root_mean_square(x: Tensor) -> float:
    return float(x.double().square().mean().sqrt()) if x.numel() else 0.0
