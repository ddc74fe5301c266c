"""Shared parts of the neurons that have no noise."""

from __future__ import annotations

import torch
from torch import Tensor

from gradest.contract.neuron import Neuron
from gradest.contract.numerics import fused, widen
from gradest.random import Key


def repeat_activation(a: Tensor, draws: int, activation: int) -> Tensor | None:
    """Return an activation of a, repeated for every draw, `[draws, *a.shape]`, in one pass; None where that is not possible.

    `activation` selects 1[a > 0] (0), max(0, a) (1) or σ(a) (2). The result is None if the device has no such kernel
    ready, or if autograd records the operation, because it could not differentiate through the kernel.
    """
    kernel = None if a.requires_grad and torch.is_grad_enabled() else fused("repeated", a.device)
    h: Tensor | None = None if kernel is None else kernel(draws, widen(a), activation)
    return None if h is None else h.to(a.dtype)


class Deterministic(Neuron):
    """A unit whose output h is a function of a alone, so that E[h] = h."""

    def noise(self, key: Key, a: Tensor, draws: int) -> Tensor:
        """Return zeros, `[draws, *a.shape]`, because the unit has no noise."""
        return a.new_zeros(()).expand(draws, *a.shape)

    def mean(self, a: Tensor) -> Tensor:
        """Return h itself."""
        return self.forward(a, a.new_zeros(()))

    def law(self, a: Tensor) -> tuple[Tensor, Tensor]:
        """Return the law of h: a single atom at h, with weight 1."""
        h = self.mean(a)[None]
        return h, torch.ones_like(h)
