"""exact: the expectation of a loss and its gradient, as a sum over the joint law of the units."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from gradest.contract.estimator import Target
from gradest.contract.law import MAX_POINTS, configurations, count_configurations
from gradest.contract.neuron import Neuron, event_shape
from gradest.contract.objective import Loss, Objective
from gradest.discovery.registry import NeuronSpec, registry
from gradest.errors import TooManyPoints
from gradest.estimation.ask_tell import (
    CHUNK,
    at_least_float32,
    check_pre_activations,
    losses_at,
)
from gradest.estimation.events import EventDims, EventLayout
from gradest.estimation.loss_checks import checked_loss

__all__ = ["closed_form", "exact", "exact_checked"]


def exact(
    f: Loss,
    a: Tensor,
    neuron: NeuronSpec = "bernoulli",
    target: Target | None = None,
    *,
    event_dims: EventDims | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> tuple[Tensor, Tensor]:
    """Compute E[f(h)] `[*batch]` and its gradient in `a` `[*batch, *event]` as a sum over the joint law of the units, in chunks.

    The result is exact for units with finitely many outputs, up to 20 binary units. For other units it is as accurate as their
    `law`, which for continuous units is a quadrature, up to 3 units. f is evaluated in the dtype of `a`; the sum is in float64.

    Raises TooManyPoints if it would take more than 2^20 points, and InvalidInput if f is random (dropout), normalises over points
    (BatchNorm in training mode), or if rows of the batch share a loss, which `event_dims` is for. f is checked for these once, at
    a few points. Buffers of the modules that f refers to are left as they were.

    target: another quantity than E[f(h)], such as `estimator.target()`. One of n samples takes the n-th power of the points.
    event_dims: as for `expect`. The gradient has the shape of `a`.
    progress: progress(done, points) is called after each chunk. An exception that it raises ends the computation.
    """
    neuron = registry.neuron(neuron)
    if event_dims is not None:
        layout = EventLayout.of(neuron, a, event_dims)
        value, slope = exact(layout.loss(f), layout.flatten(a), neuron, target, progress=progress)
        return value, layout.restore(slope)
    wide = check_pre_activations(a, neuron)
    with checked_loss(f, wide, neuron, a.dtype, refuse=True):
        return exact_checked(f, a, neuron, target, progress)


def exact_checked(
    f: Loss,
    a: Tensor,
    neuron: Neuron,
    target: Target | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> tuple[Tensor, Tensor]:
    """Do what `exact` does, for a loss that has been checked."""
    wide = check_pre_activations(a, neuron).double().requires_grad_()
    event = event_shape(neuron, wide)
    with torch.enable_grad():
        values, _ = neuron.law(wide)
        moves = values.requires_grad  # the outputs move with a, so the gradient contains dL/dh too
        total = count_configurations(neuron, event, values.shape[0])
        del values
        if target is not None and target.samples > 1:
            return _exact_of_samples(f, a, wide, neuron, total, target, progress)
        chunk = max(1, CHUNK // max(1, wide.numel()))
        loss = torch.zeros(wide.shape[: wide.ndim - neuron.event_ndim], dtype=torch.float64, device=a.device)
        gradient = torch.zeros_like(wide)
        for first in range(0, total, chunk):
            points, weights = configurations(neuron, wide, neuron.law(wide), first, min(first + chunk, total))
            at = points.to(a.dtype)
            losses = losses_at(f, at if moves else at.detach(), neuron.event_ndim).double()
            part = (weights * (losses if moves else losses.detach())).sum(0)
            if part.requires_grad:  # otherwise nothing in the law depends on a
                (step,) = torch.autograd.grad(part.sum(), wide)
                gradient += step
            loss += part.detach()
            if progress:
                progress(min(first + chunk, total), total)
    dtype = at_least_float32(a)
    return loss.to(dtype), gradient.detach().to(dtype)


def _exact_of_samples(
    f: Loss,
    a: Tensor,
    wide: Tensor,
    neuron: Neuron,
    total: int,
    target: Target,
    progress: Callable[[int, int], None] | None,
) -> tuple[Tensor, Tensor]:
    """Compute `exact` for a target of several samples: losses of all configurations, then every way to draw that many."""
    ways = total**target.samples
    if ways > MAX_POINTS:
        raise TooManyPoints(f"{target} over {total} configurations has {ways} terms; the limit is 2^20")
    points, weights = configurations(neuron, wide, neuron.law(wide), 0, total)
    losses = losses_at(f, points.to(a.dtype), neuron.event_ndim).double()
    given = [x.detach().requires_grad_() for x in (weights, losses)]
    value = torch.zeros_like(losses[0]).detach()
    slopes = [torch.zeros_like(x) for x in given]
    place = total ** torch.arange(target.samples, device=a.device)[:, None]
    chunk = max(1, CHUNK // max(1, value.numel()))
    for first in range(0, ways, chunk):
        way = torch.arange(first, min(first + chunk, ways), device=a.device)
        drawn = way.div(place, rounding_mode="floor") % total  # [samples, n]
        probability, loss = (x[drawn] for x in given)
        part = (probability.prod(0) * target.combine(loss)).sum(0)
        value += part.detach()
        steps = torch.autograd.grad(part.sum(), given)
        slopes = [slope + step for slope, step in zip(slopes, steps, strict=True)]
        if progress:
            progress(min(first + chunk, ways), ways)
    moving = [(x, slope) for x, slope in zip((weights, losses), slopes, strict=True) if x.requires_grad]
    gradient = torch.zeros_like(wide)
    if moving:
        (gradient,) = torch.autograd.grad([x for x, _ in moving], wide, [slope for _, slope in moving])
    dtype = at_least_float32(a)
    return value.to(dtype), gradient.detach().to(dtype)


def closed_form(
    f: Loss,
    a: Tensor,
    neuron: Neuron,
    target: Target | None = None,
    *,
    checked: bool = False,
    progress: Callable[[int, int], None] | None = None,
) -> tuple[Tensor, Tensor] | None:
    """Return the result of `exact`, by the objective's closed form if it has one.

    checked: whether f is known to be what `exact` asks for. Returns None if there is no closed form and the sum has too many
    points.
    """
    try:
        if isinstance(f, Objective) and (target is None or target.samples == 1):
            wide = check_pre_activations(a, neuron).double().requires_grad_()
            with torch.enable_grad():
                loss = f.expectation(neuron, wide)
                if loss is not None:
                    still = torch.zeros_like(wide)
                    (gradient,) = torch.autograd.grad(loss.sum(), wide) if loss.requires_grad else (still,)
                    dtype = at_least_float32(a)
                    return loss.detach().to(dtype), gradient.to(dtype)
        if checked:
            return exact_checked(f, a, neuron, target, progress)
        return exact(f, a, neuron, target, progress=progress)
    except TooManyPoints:
        return None
