"""Checks of objectives: are losses one number a point and row, and does a closed form agree with enumeration?"""

from __future__ import annotations

import torch

from gradest.contract.neuron import Discrete
from gradest.contract.objective import Objective
from gradest.discovery.registry import registry
from gradest.estimation.exact import exact
from gradest.estimation.losses.evaluation import losses_at
from gradest.testing.assertions import ExpectUnchanged, expect_close, expect_like, expect_same_bits
from gradest.testing.inputs import DTYPES, random_points, random_pre_activations

__all__ = ["objective_expectation_agrees", "objective_shapes_and_values"]


def objective_shapes_and_values(objective: Objective) -> None:
    """Check that losses are `[K, *batch]` in the dtype of the points, and that a row's loss depends on that row alone.

    The objective must not change the points. One that is `pointwise` is called for each, and may return wider numbers. The
    derivative of one that is `differentiable` must agree with differences of its losses.
    """
    ndim = getattr(objective, "event_ndim", 1)
    for batch in ((), (3,), (2, 3), (0,)):
        for dtype in DTYPES:
            points = random_points(objective, (4, *batch), dtype)
            with ExpectUnchanged("__call__", points):
                loss = losses_at(objective, points, ndim)
            expect_like("loss", loss, (4, *batch), loss if objective.pointwise else points)
    rows = 20 if objective.pointwise else 1000
    points = random_points(objective, (4, rows))
    whole = losses_at(objective, points, ndim)
    for row in (0, rows // 2 - 1, rows - 1):
        expect_same_bits(
            "the loss of a row depends on the rest of the batch",
            losses_at(objective, points[:, row : row + 1].clone(), ndim)[:, 0],
            whole[:, row],
        )
    if objective.differentiable:
        _expect_derivative(objective, ndim)


def _expect_derivative(objective: Objective, ndim: int) -> None:
    """Compare dL/dh with differences of the losses, in float64, along one direction."""
    points = random_points(objective, (4, 3), torch.float64).requires_grad_()
    direction = points.detach().roll(1, 0).cos()
    loss = losses_at(objective, points, ndim)
    if loss.requires_grad:
        (grad,) = torch.autograd.grad(loss.sum(), points, materialize_grads=True)
    else:
        grad = torch.zeros_like(points)  # right for a constant
    slope = (grad * direction).flatten(2).sum(-1)
    upper, lower = (losses_at(objective, points.detach() + s * 1e-5 * direction, ndim) for s in (1, -1))
    found = (upper - lower).double() / 2e-5
    scale = float(found.abs().max()) + float(loss.detach().abs().max())
    expect_close(
        "differences of the losses and dL/dh, unless differentiable = False,", slope, found, 1e-5 * (1 + scale)
    )


def objective_expectation_agrees(objective: Objective) -> None:
    """Check that `expectation` and its gradient, if there is a closed form, agree with a sum over all outputs of finite units."""
    event_ndim = getattr(objective, "event_ndim", 1)
    for neuron in (cls() for cls in registry.neurons.values()):
        if not isinstance(neuron, Discrete) or not neuron.finite or neuron.output_ndim != event_ndim:
            continue
        a = random_pre_activations(neuron, (3,), torch.float64).requires_grad_()
        with ExpectUnchanged("expectation", a):
            stated = objective.expectation(neuron, a)
        if stated is None:
            return
        wanted, gradient = exact(objective, a.detach(), neuron)
        scale = 1 + float(wanted.abs().max())
        expect_close(
            f"expectation and the sum over the outputs of {neuron.label()}", stated.detach(), wanted, 1e-6 * scale
        )
        found = torch.autograd.grad(stated.sum(), a)[0] if stated.requires_grad else torch.zeros_like(a)
        expect_close(f"the gradients of these two for {neuron.label()}", found, gradient, 1e-6 * scale)
