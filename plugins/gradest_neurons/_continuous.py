"""Shared parts of the units whose law is a quadrature."""

from __future__ import annotations

import torch
from torch import Tensor

from gradest.contract.neuron import Continuous, Reparameterised
from gradest.contract.numerics import leading_sum, widen

NODES = 24  # at level 0, in each of the four parts of `numerics.panels`
REACH = {"logistic": 40.0, "gaussian": 9.0}  # of the noise, in scales; the probability beyond it is below 1e-17


class Smooth(Continuous, Reparameterised):
    """A reparameterised unit whose mean is the weighted sum over the nodes of its law."""

    def mean(self, a: Tensor) -> Tensor:
        """Return E[h], the weighted sum over the nodes of `law`."""
        values, weights = self.law(widen(a))
        return leading_sum(values * weights).to(a.dtype)


class Squashed(Smooth):
    """A unit whose output is always positive, because a sigmoid or a softmax comes last."""

    def active_probability(self, a: Tensor) -> Tensor:
        """Return P(h > 0) = 1, because the output is always positive."""
        return torch.ones_like(a)


def nodes_at(level: int) -> int:
    """Return the number of nodes in each part at this level, at least 3."""
    return max(3, round(NODES * 2.0**level))


def normalised(weights: Tensor) -> Tensor:
    """Return weights `[S, ...]`, divided by their sum over S."""
    return weights / leading_sum(weights)
