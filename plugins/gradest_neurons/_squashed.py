"""What units that squash a noisy input to (0, 1) share."""

from __future__ import annotations

import torch
from torch import Tensor

from gradest.contract.neuron import Reparameterised
from gradest.contract.numerics import leading_sum, widen


class Squashed(Reparameterised):
    """A unit whose output is positive always, and whose mean is an integral over its law."""

    def mean(self, a: Tensor) -> Tensor:
        """E[h]."""
        values, weights = self.law(widen(a))
        return leading_sum(values * weights).to(a.dtype)

    def active_probability(self, a: Tensor) -> Tensor:
        """1: the output is positive always."""
        return torch.ones_like(a)
