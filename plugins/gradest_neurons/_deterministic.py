"""What neurons without noise share."""

from __future__ import annotations

import torch
from torch import Tensor

from gradest.contract.neuron import Neuron
from gradest.contract.numerics import fused, widen
from gradest.random import Key


def repeated(a: Tensor, draws: int, shape: int) -> Tensor | None:
    """`draws` times 1[a > 0] for shape 0, max(0, a) for 1, σ(a) for 2, in one pass; None where this device has no such kernel, or
    autograd would want to see inside it.
    """
    kernel = None if a.requires_grad and torch.is_grad_enabled() else fused("repeated", a.device)
    return None if kernel is None else kernel(draws, widen(a), shape).to(a.dtype)


class Deterministic(Neuron):
    """A unit whose output is a function of a alone: E[h] = h."""

    def noise(self, key: Key, a: Tensor, draws: int) -> Tensor:
        """Zeros: there is no noise."""
        return a.new_zeros(()).expand(draws, *a.shape)

    def mean(self, a: Tensor) -> Tensor:
        """h itself."""
        return self.forward(a, a.new_zeros(()))

    def law(self, a: Tensor) -> tuple[Tensor, Tensor]:
        """One atom, h, of weight 1."""
        h = self.mean(a)[None]
        return h, torch.ones_like(h)
