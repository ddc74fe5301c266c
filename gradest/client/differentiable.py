"""`expect`: the service's estimator in this side's autograd, with the loss on this side."""

from __future__ import annotations

import torch
from torch import Tensor

from gradest.client.calls import backward, forward
from gradest.client.requests import Call
from gradest.client.results import RemoteDraw, RemoteGradient
from gradest.contract.estimator import State
from gradest.contract.objective import Loss
from gradest.discovery.registry import EstimatorSpec, NeuronSpec
from gradest.errors import InvalidInput
from gradest.kernels.stable import leading_sum

__all__ = ["expect"]


def expect(
    f: Loss,
    a: Tensor,
    neuron: NeuronSpec = "bernoulli",
    estimator: EstimatorSpec = "rloo",
    seed: int | None = None,
    state: State | None = None,
) -> Call[tuple[Tensor, State]]:
    """`gradest.expect`: an estimate of E[f(h)], `[*batch]`, that is differentiable, with f evaluated on this side.

    The points come from the service and the losses go to it. Backward puts the estimator's gradient on `a`, and f's own
    parameters get their ordinary gradient. Returns the value and the next state. Under torch.no_grad() the state comes back as
    it was; an empty one stands for the first step.

    Raises InvalidInput if the estimator needs dL/dh and f is not differentiable in its points.
    """
    draw = yield from forward(neuron, estimator, a, seed, state)
    differentiating = torch.is_grad_enabled()
    points, grad = draw.points, None
    if "grad" in draw.needs:
        # what the value is does not depend on it, so without gradients f need not be differentiable
        grad = torch.zeros_like(points)
        points = points.requires_grad_(differentiating)
    loss = f(points)
    if not isinstance(loss, Tensor) or not loss.ndim or loss.shape != points.shape[: loss.ndim]:
        got = list(loss.shape) if isinstance(loss, Tensor) else type(loss).__name__
        raise InvalidInput(f"f must map points {list(points.shape)} to losses [K, *batch], but it gave {got}")
    if grad is not None and differentiating:
        if not loss.requires_grad:
            raise InvalidInput("the estimator needs dL/dh, but f is not differentiable in its points")
        (found,) = torch.autograd.grad(loss.sum(), points, retain_graph=True, allow_unused=True)
        grad = grad if found is None else found
    told = yield from backward(neuron, estimator, a, draw.seed, loss.detach(), grad, state)
    value = _value(draw, told, loss)
    if not differentiating:
        return value, state or {}
    # zero in value, and the estimate in gradient
    carrier = ((a - a.detach()) * told.gradient).flatten(value.ndim).sum(-1)
    return value + carrier, told.state


def _value(draw: RemoteDraw, told: RemoteGradient, loss: Tensor) -> Tensor:
    """The value that the losses gave, differentiable in them."""
    assert told.value is not None
    assert told.weights is not None
    weights = told.weights[(..., *[None] * (loss.ndim - told.weights.ndim))].to(loss.dtype)
    if told.weights.shape == draw.weights.shape and torch.equal(told.weights, draw.weights):
        return leading_sum(weights * loss)
    return told.value.to(loss.dtype) + leading_sum(weights * (loss - loss.detach()))
