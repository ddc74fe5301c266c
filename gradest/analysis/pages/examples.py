"""A program that uses a plugin, as its page shows it and tests run it."""

from __future__ import annotations

from gradest.contract.estimator import Estimator
from gradest.contract.neuron import Discrete, Neuron
from gradest.contract.objective import Objective
from gradest.contract.plugin import Plugin
from gradest.discovery.registry import registry

__all__ = ["example_of"]


def example_of(cls: type[Plugin]) -> str:
    """Return a program that draws from a neuron, or estimates a gradient by an estimator or of an objective."""
    if issubclass(cls, Neuron):
        return _of_neuron(cls)
    if issubclass(cls, Estimator):
        return _of_estimator(cls)
    assert issubclass(cls, Objective)
    return _of_objective(cls)


def _of_neuron(cls: type[Neuron]) -> str:
    event = ", ".join(map(str, cls.example_events[0]))
    outputs = ", ".join(map(str, cls().output_event(tuple(cls.example_events[0]))))
    return f"""\
import torch, gradest

a = torch.zeros(3, {event})  # pre-activations of three rows
h = gradest.sample("{cls.name}", a, samples=4, seed=7)
assert h.shape == (4, 3, {outputs})
"""


def _of_estimator(cls: type[Estimator]) -> str:
    estimator = registry.build_default(cls)
    fitting = (one for one in map(registry.build_default, registry.neurons.values()) if estimator.accepts(one))
    neuron = next(fitting, None)
    if neuron is None:
        return f'import gradest\n\nestimator = gradest.estimator("{cls.name}")  # no registered neuron fits it\n'
    event = ", ".join(map(str, neuron.example_events[0]))
    dims = ", ".join(str(dim) for dim in range(-neuron.output_ndim, 0))
    return f"""\
import torch, gradest


def loss(h):  # points [K, batch, *event] to losses [K, batch]
    return (h - 0.45).square().sum(({dims},))


a = torch.zeros(3, {event}, requires_grad=True)  # pre-activations of three rows
value, state = gradest.expect(loss, a, neuron="{neuron.name}", estimator="{cls.name}", seed=7)
value.sum().backward()  # a.grad holds the estimate; pass state to the next call
assert a.grad.shape == a.shape
"""


def _of_objective(cls: type[Objective]) -> str:
    options = cls.examples[0] if cls.examples else {}
    given = "".join(f", {name}={value!r}" for name, value in options.items())
    event_ndim = getattr(cls.build(**options), "event_ndim", 1)
    built = map(registry.build_default, registry.neurons.values())
    neuron = next(one for one in built if isinstance(one, Discrete) and one.event_ndim == one.output_ndim == event_ndim)
    event = ", ".join(map(str, neuron.example_events[0]))
    return f"""\
import torch, gradest

f = gradest.objective("{cls.name}"{given})
a = torch.zeros(3, {event})
value, gradient = gradest.exact(f, a, "{neuron.name}")
assert gradient.shape == a.shape
"""
