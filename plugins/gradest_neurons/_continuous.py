"""Shared parts of the units whose law is a quadrature."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from gradest.contract.cost import Cost
from gradest.contract.neuron import Continuous, Reparameterised
from gradest.contract.numerics import leading_sum, normal_cdf, sigmoid, widen

NODES = 24  # at level 0, in each of the four parts of `numerics.panels`


class Smooth(Continuous, Reparameterised):
    """A reparameterised unit whose mean is the weighted sum over the nodes of its law."""

    def mean_cost(self, event: tuple[int, ...], batch: tuple[int, ...]) -> Cost:
        """Return the cost of four parts of `NODES` nodes for each output."""
        return super().mean_cost(event, batch) * (4 * NODES)

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


def reach_at(distribution: str, level: int) -> float:
    """Return how far from the middle of the noise the nodes of a level reach, in scales of the noise.

    At level 0 the probability beyond is below 1e-17. Each level reaches further, so that a loss which gives weight to what lies
    beyond the nodes shows as a difference of two levels, and up to level 9 the density at the last node does not underflow.
    """
    if distribution == "logistic":
        return 40 * 1.36**level
    return 9 + 3 * level if level >= 0 else 7.5


def sigmoid_at(level: int, x: Tensor) -> Tensor:
    """Return σ(x) at the nodes of a level. Beyond level 0 it underflows to 0, where `sigmoid` is clamped.

    So the levels do not converge for a loss whose expectation is infinite, such as 1/h; with a clamp it would be finite.
    """
    return sigmoid(x) if level <= 0 else (1 + torch.exp(-x)).reciprocal()


def normalised(weights: Tensor) -> Tensor:
    """Return weights `[S, ...]`, divided by their sum over S."""
    return weights / leading_sum(weights)


def rectified_normal_mean(x: Tensor) -> Tensor:
    """Return E[max(0, x + z)] = x Φ(x) + φ(x) for z standard normal, in float32 or float64, with full relative accuracy.

    The two terms cancel in the lower tail, which is therefore computed by Mills' ratio Φ(x)/φ(x).
    """
    below = x.clamp(max=0)
    density = torch.exp(-0.5 * x * x) / math.sqrt(2 * math.pi)
    mills = math.sqrt(math.pi / 2) * torch.special.erfcx(-below / math.sqrt(2))
    return torch.where(x < 0, density * (1 + below * mills).clamp(min=0), x * normal_cdf(x) + density)
