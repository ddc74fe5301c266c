"""Losses that several tests take: functions of points `[K, *batch, *event]`, or of one point, to a loss for each."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

import gradest

SEPARABLE: dict[str, Callable[[Tensor], Tensor]] = {
    "square": lambda h: (h - 0.2) ** 2,
    "exp": lambda h: torch.exp(1.5 * h),
}
"""Losses of one unit, by name."""


def mixed(h: Tensor) -> Tensor:
    """A loss of three units that is not symmetric in them, with interactions of all orders."""
    return torch.sin(h[..., 0] + 2 * h[..., 1]) + h[..., 1] * h[..., 2] * h[..., 0] + 0.5 * h[..., 2]


def squares(points: Tensor, event_ndim: int = 1, target: float = 0.499) -> Tensor:
    """The squared distance from a target, in the dtype of the points."""
    return ((points - target) ** 2).flatten(points.ndim - event_ndim).sum(-1)


def cubes(points: Tensor, event_ndim: int = 1) -> Tensor:
    """The sum of third powers, which no estimator finds linear."""
    return ((points.flatten(points.ndim - event_ndim) - 0.3) ** 3).sum(-1)


def with_gradient(f: Callable[[Tensor, int], Tensor], points: Tensor, event_ndim: int) -> tuple[Tensor, Tensor]:
    """f(points) and its derivative in the points."""
    points = points.detach().requires_grad_()
    loss = f(points, event_ndim)
    (gradient,) = torch.autograd.grad(loss.sum(), points)
    return loss.detach(), gradient


def sine_for(neuron: str) -> Callable[[Tensor], Tensor]:
    """The sine of a squared distance, as a closure for events of this neuron."""
    event = tuple(range(-gradest.neuron(neuron).output_ndim, 0))
    return lambda h: ((h - 0.3) ** 2).sum(event).sin()
