"""Shapes of events for tests that run over the live registry, whose neurons do not take every shape."""

from gradest.contract.neuron import Neuron, keeps_event


def event_of(neuron: Neuron, units: int, classes: int) -> tuple[int, ...]:
    """Return the shape of an event of so many units; of so many classes, if the neuron has units of any number of classes."""
    if keeps_event(neuron):
        return (units, *[classes] * (neuron.event_ndim - 1))
    return (units, *neuron.example_events[0][1:])
