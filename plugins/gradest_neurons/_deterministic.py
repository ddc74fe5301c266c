"""What neurons without noise share."""

from __future__ import annotations

import torch
from torch import Tensor

from gradest.neuron import Neuron
from gradest.random import Key


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
