"""What the estimators that go through relaxed samples share.

Of a sample h there are two: s, at the noise that gave h, and s̃, given h, from fresh noise. E[dc(s)/da] is the gradient of
E[c(s)] and so is, h summed out first, E[c(s̃) score + dc(s̃)/da], for every differentiable c: their difference has mean 0.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from gradest.contract.estimator import State
from gradest.contract.neuron import Binary, Neuron, Relaxable, event_shape, per_event
from gradest.random import Key
from gradest_estimators._learning import network, new_network


def fresh_noise(neuron: Neuron, key: Key, a: Tensor, draws: int) -> Tensor:
    """The noise of s̃."""
    return neuron.noise(key.with_stream(1), a, draws)


def relaxed(
    neuron: Neuron, a: Tensor, h: Tensor, noise: Tensor, fresh: Tensor, temperature: float
) -> tuple[Tensor, Tensor]:
    """s and s̃, differentiable in a, h held."""
    assert isinstance(neuron, Relaxable)
    return neuron.relax(a, noise, temperature), neuron.conditional_relax(a, h, fresh, temperature)


def new_control(neuron: Neuron, a: Tensor, hidden: int) -> State:
    """The parameters of a network of relaxed outputs; it starts as the zero function."""
    return new_network(math.prod(event_shape(neuron, a)), hidden, a.device)


def control(
    parameters: State, neuron: Neuron, a: Tensor, h: Tensor, noise: Tensor, fresh: Tensor, temperature: float
) -> Tensor:
    """dc(s)/da - dc(s̃)/da - c(s̃) score, of mean 0, `[draws, *batch, *event]`, for c a network of these parameters.

    The network sees relaxed outputs scaled to (-1, 1), whatever the values of the unit are, the classes of units side by side.
    """
    assert isinstance(neuron, Relaxable)
    with torch.enable_grad():
        moving = a.detach().expand_as(h).requires_grad_()
        c, c_given_h = (
            network(parameters, _scaled(neuron, x)) for x in relaxed(neuron, moving, h, noise, fresh, temperature)
        )
        (path,) = torch.autograd.grad((c - c_given_h).sum(), moving, create_graph=c.requires_grad)
    return path - per_event(c_given_h, neuron) * neuron.score(h, a)


def _scaled(neuron: Neuron, x: Tensor) -> Tensor:
    share = neuron.is_high(x) if isinstance(neuron, Binary) else x
    return (2 * share - 1).flatten(-neuron.event_ndim)
