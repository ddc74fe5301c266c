"""What keeps the gradient of an estimate from being differentiated: it has a derivative that the samples do not give."""

from __future__ import annotations

from typing import Any, Never

import torch
from torch import Tensor

__all__ = ["DifferentiateOnce", "differentiable_once", "forbid_second"]

_MESSAGE = (
    "this gradient is an estimate from the samples that were drawn, which cannot be differentiated a second time; where second "
    "derivatives are needed, use the estimator enumeration with gradest.expect, or take differences of gradest.exact at two "
    "pre-activations"
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
