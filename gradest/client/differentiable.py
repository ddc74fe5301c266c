"""`expect`: an estimator of the service in the client's autograd graph, with a loss that the client evaluates."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

from gradest.client.arrays import is_tensor
from gradest.client.endpoints import backward, forward
from gradest.client.requests import Call, choose_seed
from gradest.client.results import RemoteDraw, RemoteGradient
from gradest.errors import InvalidInput

if TYPE_CHECKING:
    from torch import Tensor

    from gradest.contract.estimator import State
    from gradest.contract.objective import Loss
    from gradest.discovery.registry import EstimatorSpec, NeuronSpec
    from gradest.estimation.events import EventDims

__all__ = ["expect"]


def expect(
    f: Loss,
    a: Tensor,
    neuron: NeuronSpec = "bernoulli",
    estimator: EstimatorSpec = "rloo",
    seed: int | None = None,
    state: State | None = None,
    *,
    flatten: bool = False,
    event_dims: EventDims | None = None,
) -> Call[tuple[Tensor, State]]:
    """Estimate E[f(h)], `[*batch]`, differentiably, as `gradest.expect` does. f is evaluated in this process.

    The service sends the points and receives the losses, in the precision in which f returns them. Calling backward() on the
    value gives `a` the estimator's gradient, and f's own parameters their ordinary gradient. flatten, event_dims: as for
    `gradest.expect`. Returns the value and the state for the next step. Under torch.no_grad() the state
    is returned unchanged, as an empty one in the first step.

    Autograd is torch's. With an array of another library, call `forward`, evaluate the loss at the points, and call `backward`.

    A second derivative in `a`, which the samples do not give, raises RuntimeError.

    Raises InvalidInput if f returns no losses of the right shape, or if the estimator needs dL/dh and f is not differentiable in
    its points.
    """
    if not is_tensor(a):
        raise InvalidInput(
            f"expect differentiates by torch and takes a torch tensor, not {type(a).__name__}: with other arrays call forward, "
            "evaluate the loss at the points of the draw, and call backward, which returns the gradient"
        )
    import torch

    from gradest.contract.objective import Objective
    from gradest.discovery.registry import registry
    from gradest.estimation.events import EventLayout
    from gradest.estimation.losses.evaluation import (
        flattened,
        losses_at,
        points_of,
        refuse_noise_of_points,
        slope_at,
    )
    from gradest.estimation.losses.repetition import is_recomputed, remember_first_call, state_of_first_call
    from gradest.estimation.second_derivative import forbid_second
    from gradest.kernels import plain_saved_tensors
    from gradest.random import Key

    draws_from = choose_seed(seed, a)
    key, given, repeated = Key(draws_from), state, is_recomputed()
    refuse_noise_of_points(key)
    if state and repeated:
        state = state_of_first_call(key.seed, a, state)
    draw = yield from forward(neuron, estimator, a, draws_from, state, event_dims=event_dims)
    differentiating = torch.is_grad_enabled()
    points, grad = draw.points, None
    if "grad" in draw.needs:
        # the value does not depend on dL/dh, so f need not be differentiable if gradients are disabled
        grad = torch.zeros_like(points)
        points = points.requires_grad_(differentiating)
    event_ndim = points.ndim - 1 - (a.ndim - draw.event_dims)  # an event of h may have other dims than one of a
    f, read = flattened(f, event_ndim, flatten), points
    if isinstance(f, Objective) and event_dims is not None:  # it is written for neurons, and reads their events
        known = registry.neuron(neuron)
        read, event_ndim = EventLayout.of(known, a, event_dims).flatten_output(points), known.output_ndim
    with plain_saved_tensors(), points_of(key):
        loss = losses_at(f, read, event_ndim)
    if grad is not None and differentiating:
        grad = slope_at(points, loss, lambda: "the estimator", keep_graph=True)
    gradient = yield from backward(neuron, estimator, a, draw, loss.detach(), grad, state)
    value = _value(draw, gradient, loss)
    if not differentiating:
        return value, state or {}
    # its value is zero, and its gradient the estimate
    carrier = ((a - a.detach()) * gradient.gradient).flatten(value.ndim).sum(-1)
    if a.requires_grad:
        sources = (a, loss) if loss.requires_grad else (a,)  # what the gradient depends on
        assert carrier.grad_fn is not None
        carrier.grad_fn.register_prehook(partial(forbid_second, sources))
        if value.grad_fn is not None:
            value.grad_fn.register_prehook(partial(forbid_second, (a,)))
    value = value + carrier
    if given and repeated:
        return value, given  # the state moved when the call ran first
    if gradient.state:
        remember_first_call(value, draws_from, a, state or {})
    return value, gradient.state


def _value(draw: RemoteDraw[Tensor], gradient: RemoteGradient[Tensor], loss: Tensor) -> Tensor:
    """Return the estimated value, differentiable in the losses."""
    import torch

    from gradest.kernels.stable import leading_sum

    assert gradient.value is not None
    assert gradient.weights is not None
    weights = gradient.weights[(..., *[None] * (loss.ndim - gradient.weights.ndim))].to(loss.dtype)
    same = gradient.weights.dtype == draw.weights.dtype and gradient.weights.shape == draw.weights.shape
    if same and torch.equal(gradient.weights, draw.weights):
        return leading_sum(weights * loss)
    return gradient.value.to(loss.dtype) + leading_sum(weights * (loss - loss.detach()))
