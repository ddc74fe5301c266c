"""recommend: which estimators fit a case, best first, with reasons; and why the others do not."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import get_args

import torch
from torch import Tensor

from gradest.analysis.bias import LOGITS, event_of
from gradest.analysis.certificates import Certificate, load_certificates
from gradest.analysis.comparison import compare
from gradest.analysis.results import Bring, Excluded, Recommendation, Recommended
from gradest.contract.estimator import Estimator, Target
from gradest.contract.neuron import Discrete, Neuron, event_shape
from gradest.contract.objective import Loss
from gradest.discovery.registry import NeuronSpec, registry
from gradest.errors import InvalidInput, InvalidOptions, TooManyPoints
from gradest.estimation.ask_tell import check_pre_activations

__all__ = ["recommend"]


_UNITS = 10
_CLASSES = 3
_WORDS = {"loss": "the loss", "grad": "dL/dh"}


def recommend(
    neuron: NeuronSpec = "bernoulli",
    bring: Sequence[Bring] = ("loss",),
    evaluations: int | None = None,
    *,
    unbiased: bool = False,
    saturated: bool = False,
    units: int | None = None,
    f: Loss | None = None,
    a: Tensor | None = None,
    draws: int = 1000,
    seed: int | None = None,
    progress: Callable[[str, int, int], None] | None = None,
) -> Recommendation:
    """Rank the estimators that fit the neuron and what the caller can bring.

    bring: of "loss", "grad" (dL/dh) and "relaxed" (L and dL/dh make sense between the neuron's outputs too).
    evaluations: of the loss, that one step may cost; None for any number, and errors are then those of 100.
    unbiased: only estimators without bias. saturated: units are sure of themselves, p within 0.03 of 0 or 1.
    units: of an event, as many as `a` has, else 10; some estimators ask for the loss at points for every unit.
    f, a: the caller's own case. With both, the error is measured there, by `compare` with `draws`, `seed` and `progress`; else
        it is the mean over the losses of the certificates.

    Raises InvalidInput, and what `compare` raises.
    """
    neuron = registry.neuron(neuron)
    _check(bring, evaluations, f, a)
    event = _event(neuron, units, a)
    budget = evaluations or 100
    chosen = []
    rejected = []
    for estimator in registry.fitting(neuron).values():
        obstacles = tuple(_obstacles(estimator, neuron, event, bring, evaluations, unbiased))
        if obstacles:
            rejected.append(Excluded(estimator.name, obstacles))
        else:
            chosen.append(_spend(estimator, neuron, event, evaluations) if evaluations else estimator)
    if f is not None and a is not None:
        source = "measured on the objective given"
        table = compare(f, a, neuron, chosen, draws, seed, progress=progress)
        errors = [row.error(budget) for row in table.rows]
    else:
        source = f"certificates: four losses of two units, {_logits(saturated)} logits"
        errors = [_certified(estimator, neuron, event, _logits(saturated), budget) for estimator in chosen]
    rows = [
        Recommended(
            estimator=estimator.spec(),
            label=estimator.label(),
            claim=str(estimator.bias(neuron)),
            evaluations=estimator.evaluations(neuron, event),
            error=error,
            reasons=tuple(_reasons(estimator, neuron, event, evaluations, saturated)),
        )
        for estimator, error in zip(chosen, errors, strict=True)
    ]
    rows.sort(key=lambda row: (math.inf if row.error is None else row.error, row.evaluations))
    return Recommendation(neuron.label(), source, budget, tuple(rows), tuple(rejected))


def _check(bring: Sequence[Bring], evaluations: int | None, f: Loss | None, a: Tensor | None) -> None:
    if isinstance(bring, str) or not bring or not set(bring) <= set(get_args(Bring)):
        raise InvalidInput(f"bring is a list of {', '.join(get_args(Bring))}, not {bring!r}")
    if evaluations is not None and evaluations < 1:
        raise InvalidInput(f"evaluations is at least 1, not {evaluations}")
    if (f is None) != (a is None):
        raise InvalidInput("to measure on your own case give both f and a")


def _event(neuron: Neuron, units: int | None, a: Tensor | None) -> tuple[int, ...]:
    if a is not None:
        return event_shape(neuron, check_pre_activations(a, neuron))
    if units is not None and units < 1:
        raise InvalidInput(f"units is at least 1, not {units}")
    return (units or _UNITS, _CLASSES)[: neuron.event_ndim]


def _obstacles(
    estimator: Estimator,
    neuron: Neuron,
    event: tuple[int, ...],
    bring: Sequence[Bring],
    evaluations: int | None,
    unbiased: bool,
) -> Iterator[str]:
    """Why the estimator is not for this case."""
    if estimator.target() != Target():
        yield f"estimates the gradient of {estimator.target()}"
    if missing := estimator.needs - set(bring):
        yield f"needs {_words(missing)}"
    if _asks_between_outputs(estimator, neuron) and "relaxed" not in bring:
        yield "asks for the loss between the outputs of the neuron"
    if unbiased and not estimator.bias(neuron).unbiased:
        yield f"its bias: {estimator.bias(neuron)}"
    try:
        asked = estimator.evaluations(neuron, event)
        if evaluations is not None and asked > evaluations:
            yield f"asks for {asked} evaluations"
    except TooManyPoints:
        yield "would enumerate too many outputs"


def _asks_between_outputs(estimator: Estimator, neuron: Neuron) -> bool:
    return estimator.off_support and isinstance(neuron, Discrete)


def _words(needs: Iterable[str]) -> str:
    return " and ".join(_WORDS[need] for need in sorted(needs, reverse=True))


def _spend(estimator: Estimator, neuron: Neuron, event: tuple[int, ...], budget: int) -> Estimator:
    """The estimator with as many `samples`, where it has that option, as the budget pays for."""
    if "samples" not in type(estimator).model_fields:
        return estimator
    for samples in range(budget, 1, -1):
        try:
            larger = type(estimator).build(samples=samples)
        except InvalidOptions:  # not every number is allowed
            continue
        if larger.evaluations(neuron, event) <= budget:
            return larger
    return estimator


def _logits(saturated: bool) -> str:
    moderate, far = LOGITS
    return far if saturated else moderate


def _certificate(estimator: Estimator, neuron: Neuron) -> Certificate | None:
    return next((found for found in load_certificates(type(estimator)) if found.neuron == neuron.name), None)


def _certified(estimator: Estimator, neuron: Neuron, event: tuple[int, ...], logits: str, budget: int) -> float | None:
    found = _certificate(estimator, neuron)
    if found is None:
        return None
    certified = type(estimator)()  # with its default options, of which more draws are had for the budget
    return found.error(logits, budget / certified.evaluations(neuron, event))


def _reasons(
    estimator: Estimator, neuron: Neuron, event: tuple[int, ...], evaluations: int | None, saturated: bool
) -> Iterator[str]:
    """What speaks for it, and what to know."""
    asked = estimator.evaluations(neuron, event)
    claim = estimator.bias(neuron)
    if claim.unbiased:
        yield "unbiased for every loss"
    elif claim.order:
        yield f"exact for losses of degree {claim.order:g} at most"
    elif found := _certificate(estimator, neuron):
        cosines = [record.cosine for record in found.at(_logits(saturated))]
        yield f"biased: its mean has cosines of {min(cosines):.2f} to {max(cosines):.2f} with the gradient"
    yield f"needs {_words(estimator.needs)}{' between outputs too' if _asks_between_outputs(estimator, neuron) else ''}"
    if evaluations is not None and asked * 2 <= evaluations:
        yield f"average {evaluations // asked} draws a step"
    if estimator.init(neuron, torch.zeros((1, *event_of(neuron)))):
        yield "learns from step to step: pass its state on"
