"""From what a caller names to plugins: built, checked against each other, with errors that repeat nothing the caller sent."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from typing import Any, TypeVar

from pydantic import ValidationError
from torch import Tensor

import gradest
from gradest.contract.estimator import Estimator
from gradest.contract.neuron import Neuron, output_shape
from gradest.contract.objective import Objective, Separable
from gradest.contract.plugin import Plugin
from gradest.errors import GradestError, InvalidInput, InvalidOptions, PluginFault, UnknownPlugin
from gradest.estimation.losses.evaluation import event_misfit
from gradest_service.admit.request_context import is_set_aside
from gradest_service.bodies.tensors import check_options
from gradest_service.problems import Problem, describe_faults
from gradest_service.settings import Settings

__all__ = [
    "build_any_estimator",
    "build_estimator",
    "build_neuron",
    "build_objective",
    "built_in_neurons",
    "only_built_ins",
    "unknown_plugin",
    "without_options",
]

_BUILT_IN = "gradest"  # the distribution of the built-in plugins
_MAX_NAME = 100  # characters
AnyPlugin = TypeVar("AnyPlugin", bound=Plugin)


def only_built_ins() -> bool:
    """Tell whether only gradest's own plugins are registered.

    If not, others' code may be called even for a request that does not name it: an error lists the plugins that fit.
    """
    return all(info.distribution == _BUILT_IN for info in gradest.registry.plugins)


def without_options(plugin: Plugin, but: Collection[str] = ()) -> bool:
    """Tell whether this is one of gradest's own plugins as it is by default, but for options of these names."""
    built_in = any(
        type(plugin) in table.values()
        for info in gradest.registry.plugins
        if info.distribution == _BUILT_IN
        for table in info.tables()
    )
    return built_in and plugin.model_fields_set <= set(but)


def built_in_neurons() -> list[type[Neuron]]:
    """Return gradest's own neurons, which can be tried without calling others' code. Loads all plugins."""
    return [cls for info in gradest.registry.plugins if info.distribution == _BUILT_IN for cls in info.neurons.values()]


def build_neuron(spec: Any, settings: Settings) -> Neuron:
    """Build the neuron that a caller names."""
    return _build("neuron", spec, gradest.registry.neuron, gradest.registry.neurons, settings)


def build_estimator(field: str, spec: Any, neuron: Neuron, settings: Settings) -> Estimator:
    """Build the estimator that a caller names in this field, and check that it fits the neuron."""
    estimator = build_any_estimator(field, spec, settings)
    gradest.registry.check_fit(neuron, estimator)
    return estimator


def build_any_estimator(field: str, spec: Any, settings: Settings) -> Estimator:
    """Build the estimator that a caller names in this field, for whatever neuron."""
    return _build(field, spec, gradest.registry.estimator, gradest.registry.estimators, settings)


def build_objective(spec: Any, neuron: Neuron, a: Tensor, settings: Settings) -> Objective:
    """Build the objective that a caller names, and check its options against the shape of `a`.

    It is evaluated at zero points, which shows what its options do to shapes before anything is allocated for them. One that is
    `pointwise` has no part in shapes.
    """
    objective = _build("objective", spec, gradest.registry.objective, gradest.registry.objectives, settings)
    if isinstance(objective, Separable):
        objective.check_events(neuron)
    if misfit := event_misfit(objective, neuron.output_ndim):
        raise InvalidInput(misfit)
    if objective.pointwise:
        return objective
    no_points = a.new_zeros((0, *output_shape(neuron, a)))
    batch = no_points.shape[: no_points.ndim - neuron.output_ndim]
    has_tensors = any(isinstance(option, Tensor) and option.ndim for option in dict(objective).values())
    try:
        losses = objective(no_points)
    except GradestError:
        raise
    except Exception as error:
        if not has_tensors:
            raise
        raise _misfit(objective, no_points) from error
    if not isinstance(losses, Tensor) or losses.shape != batch:
        raise (
            _misfit(objective, no_points)
            if has_tensors
            else PluginFault(f"{objective.name}.__call__ must return one loss for each point")
        )
    return objective


def _misfit(objective: Objective, no_points: Tensor) -> InvalidInput:
    return InvalidInput(
        f"the options of {objective.name} do not fit points of shape [K, {', '.join(map(str, no_points.shape[1:]))}]; see their "
        "descriptions for the shapes that they must have"
    )


def _build(
    field: str,
    spec: Any,
    build: Callable[[Any], AnyPlugin],
    registered: Mapping[str, type[AnyPlugin]],
    settings: Settings,
) -> AnyPlugin:
    check_options(field, spec, settings)
    name = spec.get("name") if isinstance(spec, dict) else spec
    if isinstance(name, str) and len(name) > _MAX_NAME:
        raise Problem(404, f"{field}: no plugin has a name of more than {_MAX_NAME} characters.")
    if isinstance(name, str) and is_set_aside(name):
        raise Problem(
            503,
            f"{name} is set aside, because its code did not end in several requests. GET /readyz lists such plugins; restart the "
            "service to use it again.",
            headers={"Retry-After": "60"},
        )
    try:
        return build(spec)
    except UnknownPlugin as error:
        raise unknown_plugin(error, str(name)) from error
    except InvalidOptions as error:
        if not isinstance(error.__cause__, ValidationError):
            raise
        options = list(registered[str(name)].model_fields)
        faults = describe_faults(error.__cause__, options, field)
        listed = "; ".join(f"{fault.field}: {fault.message}" for fault in faults)
        raise Problem(422, f"{name} refuses its options: {listed}.", faults) from error


def unknown_plugin(error: UnknownPlugin, name: str) -> Problem:
    """Convert the library's error, with its near matches, to one that does not repeat the name that the caller sent."""
    return Problem(404, str(error).replace(repr(name), "that"))
