"""What keeps the gradient of an estimate from being differentiated: it has a derivative that the samples do not give."""

from __future__ import annotations

from typing import Any, Never

import torch
from torch import Tensor

from gradest.contract.estimator import Estimator, State
from gradest.contract.neuron import Neuron
from gradest.errors import InvalidInput
from gradest.kernels import plain_saved_tensors
from gradest.kernels.stable import widen
from gradest.random import Key

__all__ = ["DifferentiateOnce", "differentiable_again", "differentiable_once", "forbid_second"]

_MESSAGE = (
    "this gradient is an estimate from the samples that were drawn, which cannot be differentiated a second time here. Second "
    "derivatives in the pre-activations come from gradest.expect with create_graph=True and the estimator enumeration or an "
    "unbiased score-function estimator, such as rloo, and only if f itself does not depend on them; see docs/guides/choosing.md"
)


class DifferentiateOnce(torch.autograd.Function):
    """The identity in a gradient, which raises if it is differentiated.

    The gradient was estimated from samples whose law depends on the sources, so it has a derivative in them that nobody knows.
    Without this node torch would take that derivative for 0.
    """

    generate_vmap_rule = True

    @staticmethod
    def forward(gradient: Tensor, *sources: Tensor) -> Tensor:
        """Return the gradient."""
        return gradient.view_as(gradient)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        """Keep nothing."""

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Never:
        """Raise RuntimeError."""
        raise RuntimeError(_MESSAGE)

    @staticmethod
    def jvp(ctx: Any, *tangents: Tensor) -> Never:
        """Raise RuntimeError."""
        raise RuntimeError(_MESSAGE)


def differentiable_once(upstream: Tensor, *sources: Tensor) -> Tensor:
    """Return `upstream`, whose own derivatives flow as ever, while a derivative in a source raises RuntimeError.

    It stands for the part of a gradient that multiplies an estimate: the estimate depends on the sources, and so does its product
    with `upstream`, in a way that nobody knows.
    """
    zero = upstream.detach().new_full((), -0.0)  # -0.0 leaves every number as it is
    guard: Tensor = DifferentiateOnce.apply(zero, *sources)  # type: ignore[no-untyped-call]
    return upstream + guard


def forbid_second(sources: tuple[Tensor, ...], upstream: tuple[Tensor | None, ...]) -> tuple[Tensor | None, ...] | None:
    """Have a gradient raise if it is differentiated in a source.

    It is a hook for a node of autograd, `node.register_prehook(partial(forbid_second, sources))`, and does nothing unless a graph
    of the gradient is created.
    """
    if not torch.is_grad_enabled():
        return None
    return tuple(None if grad is None else differentiable_once(grad, *sources) for grad in upstream)


def differentiable_again(
    estimator: Estimator,
    neuron: Neuron,
    key: Key,
    state: State,
    loss: Tensor,
    a: Tensor,
    writes: int,
    slopes: tuple[Tensor, None],
    upstream: tuple[Tensor],
) -> tuple[Tensor, None] | None:
    """Have an estimate `upstream · gradient` be differentiated by `Estimator.value_in`, or raise if there is none.

    It is a hook for the node of `a * gradient`, by a partial of all but the last two arguments, and does nothing unless a graph
    of the gradient is created. The points, which would take memory until then, are drawn again.

    loss: as the estimator was told it. writes: `a._version` when the points were drawn.
    """
    if not torch.is_grad_enabled():
        return None
    if a._version != writes:
        raise InvalidInput(
            "the pre-activations were written to in place after the points were drawn, so second derivatives at them cannot be "
            "computed; write to a copy, as in a = a + step"
        )
    first, _ = slopes
    with torch.set_grad_enabled(False), plain_saved_tensors():
        draw = estimator.forward(neuron, widen(a.detach()), key, state)
    moving = a.view_as(a)  # apart from the `a` that f may contain, whose derivative the value has already
    value = estimator.value_in(widen(moving), draw, loss, state) if a.numel() else None
    if value is None:
        return differentiable_once(first, *(x for x in (a, loss) if x.requires_grad)), None
    of_event = upstream[0].flatten(-neuron.event_ndim)[..., 0]  # upstream is the same for the entries of an event
    (slope,) = torch.autograd.grad(value, moving, of_event.to(value.dtype), create_graph=True)
    return first.detach() + (slope - slope.detach()), None  # the first derivative keeps its bits
