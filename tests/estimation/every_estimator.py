"""Every estimator on one unit of two values or on one of classes, with a loss for it; and those that have a state."""

from __future__ import annotations

import pytest
import torch

import gradest
from tests.losses import mixed

A = torch.tensor([[0.3, -0.5, 1.1], [1.0, 0.2, -0.7]])
LOGITS = torch.tensor([[[0.3, -0.5, 0.1], [1.0, 0.2, -0.3]]])
SEED = 14  # at which no estimator has a gradient of 0, as those that perturb may have


def _cases():
    """Every estimator once, with a neuron that it fits and pre-activations."""
    for name in sorted(gradest.registry.estimators):
        for neuron, a in (("bernoulli", A), ("categorical", LOGITS), ("gaussian", A)):
            if gradest.estimator(name).accepts(gradest.neuron(neuron)):
                yield pytest.param(name, neuron, a, id=name)
                break


def loss_for(neuron):
    return mixed if gradest.neuron(neuron).event_ndim == 1 else lambda h: mixed(h.flatten(-2)[..., [0, 1, 4]])


def gradient_of(f, neuron, estimator, a, **options):
    a = a.clone().requires_grad_()
    value, _ = gradest.expect(f, a, neuron, estimator, SEED, **options)
    value.sum().backward()
    return a.grad


def _stateful():
    for case in _cases():
        name, neuron, a = case.values
        if gradest.estimator(name).init(gradest.neuron(neuron), a):
            yield case


CASES = list(_cases())
STATEFUL = list(_stateful())
BAD = [float("nan"), float("inf"), -float("inf")]
