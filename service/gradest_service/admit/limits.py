"""What is refused before anything is allocated for it. A request multiplies: samples, draws, an estimator's K, outputs^units."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

import torch
from torch import Tensor

from gradest.comparison import comparable
from gradest.enumeration import MAX_POINTS, count
from gradest.errors import PluginFault, TooManyPoints
from gradest.estimator import Estimator, Target, event_shape
from gradest.neuron import Neuron
from gradest.objective import Objective
from gradest.wire import SAFETENSORS
from gradest_service.problems import Problem
from gradest_service.settings import Settings

__all__ = [
    "check_answer",
    "check_draws",
    "check_elements",
    "check_estimators",
    "check_json_body",
    "check_points",
    "check_samples",
    "exact_work",
    "exceeds_work",
    "measurement_work",
    "size",
    "work",
]

_FAST = f"Send tensors as safetensors, with Content-Type: {SAFETENSORS}."
_WARM_UP = 100  # steps that a stateful estimator takes before its draws


def size(shape: Iterable[int]) -> int:
    """The number of elements, a dim of 0 counted as 1: an empty dim does not make the others free."""
    return math.prod(max(1, dim) for dim in shape)


def check_json_body(settings: Settings, size: int) -> None:
    """The cap on a body, or a part of it, that is parsed as JSON."""
    if size > settings.max_json_bytes:
        raise Problem(413, f"JSON may have {settings.max_json_bytes} bytes. {_FAST} Or send fewer rows in a request.")


def check_elements(settings: Settings, field: str, shape: Sequence[int], as_json: bool) -> None:
    """The cap on one tensor of a request."""
    if as_json and size(shape) > settings.max_json_elements:
        raise Problem(
            413,
            f"{field} may have {settings.max_json_elements} elements in JSON. {_FAST} Or send fewer rows in a request.",
        )
    if size(shape) > settings.max_elements:
        raise Problem(
            413, f"{field} may have {settings.max_elements} elements. Send fewer rows in a request, and more requests."
        )


def check_answer(settings: Settings, elements: int, what: str, as_json: bool) -> None:
    """The cap on one tensor of an answer."""
    if as_json and elements > settings.max_json_elements:
        raise Problem(
            413,
            f"{what} would be {_show(elements)} elements; an answer in JSON holds {settings.max_json_elements}. "
            f"Ask for safetensors, with Accept: {SAFETENSORS}, or for less in a request.",
        )
    if elements > settings.max_elements:
        raise Problem(
            413,
            f"{what} would be {_show(elements)} elements; an answer holds {settings.max_elements}. "
            "Send fewer rows, or ask for less in a request, and send more requests.",
        )


def check_samples(settings: Settings, samples: int, a: Tensor, as_json: bool) -> None:
    """The cap on samples, and on the answer that they make."""
    if samples > settings.max_samples:
        raise Problem(
            413, f"samples may be {settings.max_samples} at most. Send more requests, each with its own seed."
        )
    check_answer(settings, samples * size(a.shape), "samples x a", as_json)


def check_draws(settings: Settings, draws: int) -> None:
    """The cap on draws."""
    if draws > settings.max_draws:
        raise Problem(413, f"draws may be {settings.max_draws} at most. Send more requests, each with its own seed.")


def check_estimators(settings: Settings, estimators: int) -> None:
    """The cap on the estimators of a comparison."""
    if estimators > settings.max_estimators:
        raise Problem(413, f"estimators may be {settings.max_estimators} at most. Send more requests.")


def check_points(settings: Settings, neuron: Neuron, estimator: Estimator, a: Tensor) -> int:
    """The cap on what one draw holds in memory; returns its size, K x size of a. Raises TooManyPoints too."""
    evaluations = estimator.evaluations(neuron, event_shape(neuron, a))
    if not isinstance(evaluations, int) or evaluations < 1:
        raise PluginFault(f"{estimator.name}.evaluations must give a whole number above 0")
    points = evaluations * size(a.shape)
    if points > settings.max_points:
        raise Problem(
            413,
            f"A draw of {estimator.name} would hold K x a = {_show(points)} elements; the limit is {settings.max_points}. "
            "Send fewer rows or units, or choose options or an estimator with fewer evaluations.",
        )
    return points


def work(settings: Settings, neuron: Neuron, estimator: Estimator, objective: Objective, a: Tensor, draws: int) -> int:
    """The elements that an estimate goes through."""
    steps = draws + (_WARM_UP if estimator.init(neuron, a) else 0)
    points = check_points(settings, neuron, estimator, a) // size(event_shape(neuron, a))
    return steps * points * _point_work(neuron, objective, a)


def measurement_work(
    settings: Settings, neuron: Neuron, objective: Objective, a: Tensor, draws: int, evaluations: int
) -> int:
    """The most elements that measuring every estimator goes through, of so many evaluations a draw at most."""
    rows = size(a.shape) // size(event_shape(neuron, a))
    of_one = (draws + _WARM_UP) * evaluations * rows * _point_work(neuron, objective, a)
    return of_one * len(comparable(neuron))


def exact_work(neuron: Neuron, objective: Objective, a: Tensor, target: Target) -> int:
    """The elements that the exact gradient goes through; 0 where it comes in closed form or is not to be had."""
    event = event_shape(neuron, a)
    rows = torch.cat([a.new_zeros(1, *event), a.reshape(a.shape[: a.ndim - len(event)].numel(), *event)])
    try:
        if target.samples == 1 and objective.expectation(neuron, a) is not None:
            return 0
        values, _ = neuron.law(rows.amax(0))  # the number of outputs may grow with a
        points = count(neuron, event, values.shape[0])
    except TooManyPoints:
        return 0
    points = math.prod([points] * target.samples)
    if points > MAX_POINTS:
        return 0
    return points * size(a.shape) // size(event) * _point_work(neuron, objective, a)


def exceeds_work(settings: Settings, elements: int) -> bool:
    """Whether this is more than one request may ask for."""
    return elements > settings.max_work


def _point_work(neuron: Neuron, objective: Objective, a: Tensor) -> int:
    """The elements of one point, and of the objective's tensors that are not a mere weight or target of them."""
    options = [value for value in dict(objective).values() if isinstance(value, Tensor)]
    beyond = [option.numel() for option in options if not _broadcasts(option.shape, a.shape)]
    return size(event_shape(neuron, a)) + sum(beyond)


def _broadcasts(shape: Sequence[int], onto: Sequence[int]) -> bool:
    pairs = zip(reversed(shape), reversed(onto), strict=False)
    return len(shape) <= len(onto) and all(small in (1, large) for small, large in pairs)


def _show(number: int) -> str:
    return str(number) if number < 10**15 else "over 10^15"
