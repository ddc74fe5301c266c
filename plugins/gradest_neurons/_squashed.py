"""Shared parts of the units that squash a noisy input to the interval (0, 1)."""

from __future__ import annotations

import torch
from torch import Tensor

from gradest.contract.neuron import Reparameterised
from gradest.contract.numerics import leading_sum, widen


class Squashed(Reparameterised):
    """A reparameterised unit whose output is always positive and whose mean is integrated over the nodes of its law."""

    def mean(self, a: Tensor) -> Tensor:
        """Return E[h], the weighted sum over the nodes of `law`."""
        values, weights = self.law(widen(a))
        return leading_sum(values * weights).to(a.dtype)

    def active_probability(self, a: Tensor) -> Tensor:
        """Return P(h > 0) = 1, because the output is always positive."""
        return torch.ones_like(a)
