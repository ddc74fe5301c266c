"""Neuron: a unit with random output h = f(a, z), and the capabilities that estimators ask for.

Shapes: `a` is `[*batch, *event]`, where the event is the last `event_ndim` dims. h is `[draws, *batch, *event']`, where event' is
`neuron.output_event(event)`: the event itself for most neurons, and another where a unit has several pre-activations or outputs.
What belongs to outputs has event': samples, the mean, the values of the law, dL/dh. What belongs to pre-activations has the
event: scores and gradients. Noise is `[draws, *batch, *event]` unless a neuron states another shape. Every method keeps the
dtype of `a` and is pure.
"""

from gradest.contract.neuron.base import (
    Continuous,
    Density,
    Differentiable,
    Discrete,
    Neuron,
    PoissonCount,
    Relaxable,
    Reparameterised,
    Scored,
    Subset,
    TopGates,
    UnbiasedRounding,
    event_shape,
    keeps_event,
    output_shape,
    per_event,
)
from gradest.contract.neuron.binary import Binary, LogisticBinary, LogisticStep, Step
from gradest.contract.neuron.one_hot import OneHot, RandomOneHot, SoftmaxOneHot

__all__ = [
    "Binary",
    "Continuous",
    "Density",
    "Differentiable",
    "Discrete",
    "LogisticBinary",
    "LogisticStep",
    "Neuron",
    "OneHot",
    "PoissonCount",
    "RandomOneHot",
    "Relaxable",
    "Reparameterised",
    "Scored",
    "SoftmaxOneHot",
    "Step",
    "Subset",
    "TopGates",
    "UnbiasedRounding",
    "event_shape",
    "keeps_event",
    "output_shape",
    "per_event",
]
