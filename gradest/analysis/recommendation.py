"""Recommend estimators for a case: those that fit, best first, and the others with the reasons why they do not fit."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Any, get_args

import torch
from torch import Tensor

from gradest.analysis.bias import LOGIT_REGIMES, UNITS, measurement_event_shape
from gradest.analysis.certificates import Certificate, load_certificates, options_of
from gradest.analysis.comparison import compare
from gradest.analysis.results import Excluded, LossAccess, Recommendation, Recommended
from gradest.analysis.variance_map import MapPlace, describe_places, load_variance_map
from gradest.contract.estimator import Bias, Estimator
from gradest.contract.neuron import Discrete, Neuron, event_shape, keeps_event
from gradest.contract.objective import Loss
from gradest.contract.plugin import Plugin
from gradest.contract.target import Target
from gradest.discovery.registry import NeuronSpec, registry
from gradest.errors import InvalidInput, InvalidOptions, PluginFault, TooManyPoints
from gradest.estimation.arguments import check_count, check_pre_activations

__all__ = ["recommend"]


_DEFAULT_UNITS = 10
_CARRIES = 4  # the largest ratio of numbers of units for which a measurement still says something about the order
_MAP_MODERATE, _MAP_SATURATED = 0.3, 0.03  # the probabilities of the rarer output that stand for the regimes of logits
_MAP_CURVATURES = (0.1, 0.5, 0.9)  # those over which the error is averaged if the case says none
_NEED_NAMES = {"loss": "the loss", "grad": "dL/dh"}


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
    f: Loss | None = None,
    a: Tensor | None = None,
    draws: int = 1000,
    seed: int | None = None,
    progress: Callable[[str, int, int], None] | None = None,
) -> Recommendation:
    """Rank the estimators that fit the neuron and what the caller can compute.

    Returns the estimators that fit, by rising relative error, and the others with the reasons against them. An error is that of
    the mean of as many whole draws as the evaluations pay for, at least one.

    Errors from certificates were measured for the number of units that `source` states, the nearest to the case's for which all
    estimators that fit were measured. A case with more than four times as many units, or less than a quarter, is out of their
    reach: `source` says so, and estimators that learn come after the others, because what a control variate gains after 100
    steps at fixed pre-activations of a few units does not carry that far.

    For Bernoulli units such a case has its errors from the map of variance, and so has one with `p` or `curvature`. The map has
    figures for 2 to 200 units, between whose cells they are interpolated. An estimator that is not on it has the error of its
    certificate, and comes last unless it is exact. On 153 held-out losses the first on the list had at most 1.5 times the error
    of the best in 148 cases, and half of the errors on the list were within 3 % of those that were measured.

    bring: what the caller can compute: "loss" (L), "grad" (dL/dh), and "relaxed" if L and dL/dh make sense between the neuron's
        outputs too.
    evaluations: the most evaluations of the loss that one training step may cost. An estimator with the option `samples` gets the
        largest number that stays within it. If omitted, any number is allowed, and the errors are those for 100 evaluations.
    unbiased: whether to recommend only estimators that are unbiased for every loss, or for every loss that is continuous and
        differentiable almost everywhere; the reasons say which.
    saturated: whether the units are nearly certain, with probabilities within 0.03 of 0 or 1; this chooses the certificates.
    units: the number of units of an event, by default 10. `a`, if given, decides instead. Some estimators evaluate the loss at
        points for every unit.
    p: for Bernoulli units, the probability of the rarer output of a unit, 0 or 1, averaged over units. If omitted, 0.3, or 0.03
        with `saturated`.
    curvature: for Bernoulli units, the share of the variance of L over the draws of h that is not that of a sum of functions of
        single units: 1 - R² of a linear regression of L on h. It is 0 for a sum over units. If omitted, the error is the mean
        over 0.1, 0.5 and 0.9.
    f, a: the caller's own loss and pre-activations `[*batch, *event]`. With both, errors are measured there, by `compare` with
        `draws`, `seed` and `progress`. Without them, they are the mean over the losses of the estimators' certificates, and None
        for an estimator that has no certificate for this neuron.

    Raises InvalidInput if an argument is wrong, if only one of f and a is given, or if p or curvature is given for a neuron that
    is not on the map; and what `compare` raises.

    >>> import gradest
    >>> found = gradest.recommend("bernoulli", bring=["loss"], evaluations=2, unbiased=True)
    >>> all(row.claim == "none" for row in found.rows)
    True
    """
    neuron = registry.neuron(neuron)
    _check_arguments(bring, evaluations, f, a)
    _check_place(neuron, p, curvature, measured=f is not None)
    event = _case_event_shape(neuron, units, a)
    budget = evaluations or 100
    chosen: list[Estimator] = []
    rejected = []
    fitting, failures = registry.ask_fitting(neuron)
    for estimator in fitting.values():
        with registry.containing(failures, estimator.name):
            reasons = tuple(_exclusion_reasons(estimator, neuron, event, bring, evaluations, unbiased))
            if reasons:
                rejected.append(Excluded(estimator.name, reasons))
            else:
                chosen.append(_largest_affordable(estimator, neuron, event, evaluations) if evaluations else estimator)
    if f is not None and a is not None:
        table = compare(f, a, neuron, chosen, draws, seed, progress=progress)
        measured = {row.estimator: row.error(budget) for row in table.rows}
        rejected += [*table.failures, *table.skipped]
        chosen = [one for one in chosen if registry.label(one) in measured]
        errors = _Errors("measured on the objective given", lambda estimator: measured[estimator.label()])
    else:
        case = _Case(neuron, event, budget, p, curvature, saturated)
        errors = _errors_of_case(case, chosen)
    ranked: list[tuple[tuple[bool, float, int], Recommended]] = []
    for estimator in chosen:
        with registry.containing(failures, estimator.name):
            error = errors.of(estimator)
            row = Recommended(
                estimator=registry.call(estimator, "spec", kind=dict),
                label=registry.call(estimator, "label", kind=str),
                claim=str(_claim(estimator, neuron)),
                evaluations=_evaluations(estimator, neuron, event),
                error=error,
                reasons=tuple(_recommendation_reasons(estimator, neuron, event, evaluations, budget, saturated)),
            )
            ranked.append(((errors.comes_last(estimator), math.inf if error is None else error, row.evaluations), row))
    rejected += [Excluded(name, (str(fault),)) for name, fault in failures.items()]
    ranked.sort(key=lambda pair: pair[0])
    return Recommendation(
        registry.label(neuron), errors.source, budget, tuple(row for _, row in ranked), tuple(rejected)
    )


def _check_arguments(bring: Sequence[LossAccess], evaluations: int | None, f: Loss | None, a: Tensor | None) -> None:
    if isinstance(bring, str) or not bring or not set(bring) <= set(get_args(LossAccess)):
        raise InvalidInput(f"bring must be a list of {', '.join(get_args(LossAccess))}, not {bring!r}")
    if evaluations is not None:
        check_count("evaluations", evaluations, least=1)
    if (f is None) != (a is None):
        raise InvalidInput("to measure errors on your own case, give both f and a")


def _check_place(neuron: Neuron, p: float | None, curvature: float | None, *, measured: bool) -> None:
    if p is None and curvature is None:
        return
    if p is not None and not (_is_number(p) and 0 < p < 1):
        raise InvalidInput(f"p must be between 0 and 1, not {p!r}")
    if curvature is not None and not (_is_number(curvature) and 0 <= curvature <= 1):
        raise InvalidInput(f"curvature must be from 0 to 1, not {curvature!r}")
    if not measured and not load_variance_map(registry.label(neuron)):
        raise InvalidInput(
            f"p and curvature choose a place on a map of variance, and {registry.label(neuron)} has none: omit them, or measure "
            "on your own case, with f and a"
        )


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _case_event_shape(neuron: Neuron, units: int | None, a: Tensor | None) -> tuple[int, ...]:
    if a is not None:
        event = event_shape(neuron, check_pre_activations(a, neuron))
        if not event[0]:
            raise InvalidInput(f"a must have at least one unit to measure on, but has the shape {list(a.shape)}")
        return event
    if units is not None:
        check_count("units", units, least=1)
    first, *within = neuron.example_events[0]
    event = (units or _DEFAULT_UNITS, *within)
    if not keeps_event(neuron):
        try:
            neuron.output_event(event)
        except InvalidInput:
            if units is not None:
                raise
            return first, *within  # the neuron takes no events of so many units
    return event


def _exclusion_reasons(
    estimator: Estimator,
    neuron: Neuron,
    event: tuple[int, ...],
    bring: Sequence[LossAccess],
    evaluations: int | None,
    unbiased: bool,
) -> Iterator[str]:
    """The reasons why the estimator does not fit the case; none if it fits."""
    if (target := registry.call(estimator, "target", kind=Target)) != Target():
        yield f"estimates the gradient of {target}"
    if missing := estimator.needs - set(bring):
        yield f"needs {_describe_needs(missing)}"
    if _evaluates_off_support(estimator, neuron) and "relaxed" not in bring:
        yield "asks for the loss between the outputs of the neuron"
    if unbiased and not (claim := _claim(estimator, neuron)).unbiased:
        yield f"its bias: {claim}"
    try:
        asked = _evaluations(estimator, neuron, event)
        if evaluations is not None and asked > evaluations:
            yield f"asks for {asked} evaluations"
    except TooManyPoints:
        yield "would enumerate too many outputs"


def _claim(estimator: Estimator, neuron: Neuron) -> Bias:
    claim: Bias = registry.call(estimator, "bias", neuron, kind=Bias)
    return claim


def _evaluations(estimator: Estimator, neuron: Neuron, event: tuple[int, ...]) -> int:
    evaluations: int = registry.call(estimator, "evaluations", neuron, event, kind=int)
    return evaluations


def _evaluates_off_support(estimator: Estimator, neuron: Neuron) -> bool:
    """Whether the estimator evaluates the loss between the outputs of a neuron with discrete ones."""
    return estimator.off_support and isinstance(neuron, Discrete)


def _describe_needs(needs: Iterable[str]) -> str:
    return " and ".join(_NEED_NAMES[need] for need in sorted(needs, reverse=True))


def _largest_affordable(estimator: Estimator, neuron: Neuron, event: tuple[int, ...], budget: int) -> Estimator:
    """The estimator with the most `samples` that the budget of evaluations allows, if it has that option."""
    if "samples" not in type(estimator).model_fields:
        return estimator
    for samples in range(budget, 1, -1):
        try:
            larger = type(estimator).build(samples=samples)
        except InvalidOptions:  # some estimators take only certain numbers, such as even ones
            continue
        if _evaluations(larger, neuron, event) <= budget:
            return larger
    return estimator


def _logit_regime(saturated: bool) -> str:
    moderate, near_certain = LOGIT_REGIMES
    return near_certain if saturated else moderate


def _find_certificate(estimator: Estimator, neuron: Neuron) -> Certificate | None:
    """Return the certificate of these options, or else of the default ones of the estimator, of the neuron, or of both."""
    found = load_certificates(type(estimator), type(neuron))
    own, of_neuron = _options(estimator), _options(neuron)
    asked: tuple[tuple[dict[str, Any], dict[str, Any]], ...] = ((own, of_neuron), ({}, of_neuron), (own, {}), ({}, {}))
    return next((one for options in asked for one in found if (one.options, one.neuron_options) == options), None)


def _options(plugin: Plugin) -> dict[str, Any]:
    """Return `options_of`, or none if the code of the plugin fails, which is said elsewhere."""
    try:
        return options_of(plugin)
    except PluginFault:
        return {}


def _nearest_units(certificates: Sequence[Certificate], units: int) -> int:
    """The number of units, nearest to `units` in ratio, for which all the certificates have measurements."""
    common = set.intersection(*({*found.units} for found in certificates)) if certificates else {UNITS}
    return min(sorted(common), key=lambda measured: abs(math.log(measured / units)))


# --- where errors come from ---


@dataclass(frozen=True)
class _Errors:
    """The errors by which estimators are ranked, and what `Recommendation.source` says of them."""

    source: str
    of: Callable[[Estimator], float | None]
    comes_last: Callable[[Estimator], bool] = lambda estimator: False


@dataclass(frozen=True)
class _Case:
    """A case that is described and not measured. p, curvature: None if they are not given."""

    neuron: Neuron
    event: tuple[int, ...]
    budget: int
    p: float | None
    curvature: float | None
    saturated: bool

    def draws(self, estimator: Estimator, measured: Mapping[str, Any]) -> float:
        """The draws of an estimator with other options that the budget's whole draws count as.

        The estimator that was measured may have fewer samples in a draw; a draw of more counts as several of its draws.
        """
        asked = _evaluations(estimator, self.neuron, self.event)
        of_measured = _evaluations(type(estimator).build(**measured), self.neuron, self.event)
        return max(1, self.budget // asked) * asked / of_measured

    def places(self) -> list[MapPlace]:
        """The places on the map of variance whose mean error is that of the case."""
        p = self.p if self.p is not None else _MAP_SATURATED if self.saturated else _MAP_MODERATE
        curvatures = _MAP_CURVATURES if self.curvature is None else (self.curvature,)
        return [MapPlace(min(p, 1 - p), self.event[0], curvature) for curvature in curvatures]


def _errors_of_case(case: _Case, chosen: Sequence[Estimator]) -> _Errors:
    """The errors from the map of variance if it has the neuron and the certificates do not reach the case; else from these."""
    certificates = {registry.label(one): _find_certificate(one, case.neuron) for one in chosen}
    units = _nearest_units([found for found in certificates.values() if found], case.event[0])
    far = not case.event[0] / _CARRIES <= units <= case.event[0] * _CARRIES
    logits = _logit_regime(case.saturated)

    def certified(estimator: Estimator) -> float | None:
        found = certificates[registry.label(estimator)]
        return None if found is None else found.error(logits, case.draws(estimator, found.options), units)

    mapped = load_variance_map(registry.label(case.neuron))
    if mapped and (far or case.p is not None or case.curvature is not None):
        places = case.places()

        def on_map(estimator: Estimator) -> float | None:
            label = registry.label(estimator)
            found = mapped.get(label) or mapped.get(estimator.name)
            if found is None:
                return certified(estimator)
            draws = case.draws(estimator, options_of(estimator) if label in mapped else {})
            return fmean(found.error(place, draws) for place in places)

        missing = {one.name for one in chosen if not mapped.keys() & {registry.label(one), one.name}}
        source = describe_places(mapped, places, sorted(missing))
        return _Errors(source, on_map, lambda estimator: estimator.name in missing and on_map(estimator) != 0)
    source = f"certificates: four losses of {units} units, {logits} logits"
    if far:
        source += (
            f"; they say little of the order for {case.event[0]} units, so estimators that learn come last: measure on your own "
            "case, with f and a"
        )
    return _Errors(source, certified, lambda estimator: far and _learns(estimator, case.neuron))


def _learns(estimator: Estimator, neuron: Neuron) -> bool:
    return bool(
        registry.call(estimator, "init", neuron, torch.zeros((1, *measurement_event_shape(neuron))), kind=Mapping)
    )


def _recommendation_reasons(
    estimator: Estimator, neuron: Neuron, event: tuple[int, ...], evaluations: int | None, budget: int, saturated: bool
) -> Iterator[str]:
    """What speaks for the estimator, and what to know before using it."""
    asked = _evaluations(estimator, neuron, event)
    claim = _claim(estimator, neuron)
    if claim.unbiased:
        yield f"unbiased for {claim.condition}"
    elif claim.order:
        yield f"exact for losses of degree {claim.order:g} at most"
    elif found := _find_certificate(estimator, neuron):
        cosines = [record.cosine for record in found.records_at(_logit_regime(saturated))]
        yield f"biased: its mean has cosines of {min(cosines):.2f} to {max(cosines):.2f} with the gradient"
    yield f"needs {_describe_needs(estimator.needs)}{' between outputs too' if _evaluates_off_support(estimator, neuron) else ''}"
    if evaluations is not None and asked * 2 <= evaluations:
        yield f"average {evaluations // asked} draws a step"
    if asked > budget:
        yield f"the error is that of one draw of {asked} evaluations"
    if _learns(estimator, neuron):
        yield "learns from step to step (the error is that after 100 steps): pass its state on"
