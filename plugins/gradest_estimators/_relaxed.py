"""Shared parts of the estimators that use relaxed samples.

A sample h has two relaxed outputs: s, at the noise that gave h, and s̃, conditional on h, from fresh noise. For every
differentiable c, E[dc(s)/da] is the gradient of E[c(s)]. If h is summed out first, so is E[c(s̃) score + dc(s̃)/da].
The difference of the two has mean 0, and therefore serves as a control variate.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from gradest.contract.neuron import Binary, Neuron, Relaxable, per_event
from gradest.random import Key


def fresh_noise(neuron: Neuron, key: Key, a: Tensor, draws: int) -> Tensor:
    """Return the noise from which s̃ is made, `[draws, *a.shape]`; it is independent of the noise of h."""
    return neuron.noise(key.with_stream(1), a, draws)


def relaxed_pair(
    neuron: Neuron, a: Tensor, h: Tensor, noise: Tensor, fresh: Tensor, temperature: float
) -> tuple[Tensor, Tensor]:
    """Return s and s̃, differentiable in a with h and the noise held."""
    assert isinstance(neuron, Relaxable)
    return neuron.relax(a, noise, temperature), neuron.conditional_relax(a, h, fresh, temperature)


def control_term(
    network: Callable[[Tensor], Tensor],
    neuron: Neuron,
    a: Tensor,
    h: Tensor,
    noise: Tensor,
    fresh: Tensor,
    temperature: float,
) -> Tensor:
    """Return dc(s)/da - dc(s̃)/da - c(s̃) score, `[draws, *batch, *event]`, of mean 0.

    network: c, from `[*, D]` to `[*]`. It sees the relaxed outputs of all units and classes as one vector, scaled to
        (-1, 1) whatever the unit's values are.
    """
    assert isinstance(neuron, Relaxable)
    with torch.enable_grad():
        moving = a.detach().expand_as(h).requires_grad_()
        c, c_given_h = (
            network(_network_inputs(neuron, x)) for x in relaxed_pair(neuron, moving, h, noise, fresh, temperature)
        )
        (path,) = torch.autograd.grad((c - c_given_h).sum(), moving, create_graph=c.requires_grad)
    return path - per_event(c_given_h, neuron) * neuron.score(h, a)


def _network_inputs(neuron: Neuron, x: Tensor) -> Tensor:
    share = neuron.is_high(x) if isinstance(neuron, Binary) else x
    return (2 * share - 1).flatten(-neuron.event_ndim)
