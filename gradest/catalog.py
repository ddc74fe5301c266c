"""Descriptions of what is registered, in plain data: the command line prints them and the service sends them."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from gradest.errors import TooManyPoints
from gradest.estimator import Estimator
from gradest.neuron import Neuron
from gradest.objective import Objective
from gradest.plugin import Plugin
from gradest.registry import registry

__all__ = ["describe", "describe_estimator", "describe_neuron", "describe_objective", "describe_plugins"]

_UNITS = (1, 2, 4, 8, 16, 32)  # the event sizes for which evaluations are told
_CLASSES = 3  # the size of the further event dims there, of neurons that have some


def describe_neuron(cls: type[Neuron]) -> dict[str, Any]:
    """The neuron, and the estimators that fit it with default options."""
    return {**_describe(cls, Neuron), "event_ndim": cls.event_ndim, "estimators": list(registry.fitting(cls()))}


def describe_estimator(cls: type[Estimator]) -> dict[str, Any]:
    """The estimator with default options on every neuron with default options that it accepts.

    bias: its claim, by neuron. evaluations: K by neuron and number of units, None where it would be too many.
    """
    estimator = cls()
    neurons = {name: neuron() for name, neuron in registry.neurons.items()}
    fitting = {name: neuron for name, neuron in neurons.items() if estimator.accepts(neuron)}
    return {
        **_describe(cls, Estimator),
        "needs": sorted(cls.needs, reverse=True),
        "needs_capabilities": [capability.__name__ for capability in cls.capabilities if capability is not Neuron],
        "neurons": list(fitting),
        "bias": {name: str(estimator.bias(neuron)) for name, neuron in fitting.items()},
        "evaluations": {name: _evaluations(estimator, neuron) for name, neuron in fitting.items()},
    }


def describe_objective(cls: type[Objective]) -> dict[str, Any]:
    """The objective."""
    return _describe(cls, Objective)


def describe_plugins() -> dict[str, Any]:
    """What each distribution registered, and what did not load, with the reason."""
    plugins = [
        {
            "distribution": info.distribution,
            "version": info.version,
            "neurons": list(info.neurons),
            "estimators": list(info.estimators),
            "objectives": list(info.objectives),
        }
        for info in registry.plugins
    ]
    return {"plugins": plugins, "failures": [asdict(failure) for failure in registry.failures]}


def describe(cls: type[Plugin]) -> dict[str, Any]:
    """The description of a class of any kind."""
    if issubclass(cls, Neuron):
        return describe_neuron(cls)
    if issubclass(cls, Estimator):
        return describe_estimator(cls)
    assert issubclass(cls, Objective)
    return describe_objective(cls)


def _describe(cls: type[Plugin], base: type[Plugin]) -> dict[str, Any]:
    parents = [parent for parent in cls.__mro__ if parent not in base.__mro__]
    return {
        "name": cls.name,
        "summary": cls.summary,
        "reference": cls.reference,
        "options": cls.model_json_schema(),
        # the contract's own classes between this one and the base of its kind
        "capabilities": sorted(parent.__name__ for parent in parents if parent.__module__ == base.__module__),
    }


def _evaluations(estimator: Estimator, neuron: Neuron) -> dict[str, int | None]:
    found: dict[str, int | None] = {}
    for units in _UNITS:
        try:
            found[str(units)] = estimator.evaluations(neuron, (units, *[_CLASSES] * (neuron.event_ndim - 1)))
        except TooManyPoints:
            found[str(units)] = None
    return found
