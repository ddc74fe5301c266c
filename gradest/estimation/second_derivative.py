"""DifferentiateOnce: what keeps the gradient of an estimate from being differentiated."""

from __future__ import annotations

from typing import Any, Never

import torch
from torch import Tensor

__all__ = ["DifferentiateOnce"]


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
        raise RuntimeError(
            "this gradient is an estimate from the samples that were drawn, which cannot be differentiated a second time; where "
            "second derivatives are needed, differentiate gradest.exact or the neuron's mean"
        )
