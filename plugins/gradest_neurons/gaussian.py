"""A unit with additive gaussian noise."""

from __future__ import annotations

import math

import torch
from pydantic import Field
from torch import Tensor

from gradest.contract.neuron import Reparameterised
from gradest.contract.numerics import gauss_legendre, normal_cdf, portable, spread
from gradest.random import Key

_NODES = 96
_REACH = 8.5  # standard deviations; what lies beyond has a probability below 2e-17


class Gaussian(Reparameterised):
    """h = a + s z, z standard normal: E[h] = a, P(h > 0) = Φ(a/s), dh/da = 1."""

    name = "gaussian"
    summary = "a plus gaussian noise"
    reference = "Kingma, Welling 2014, arXiv 1312.6114"
    formula = r"h = a + s z, \quad z \sim \mathcal N(0, 1)"

    examples = ({}, {"std": 0.3})

    std: float = Field(1.0, gt=0, allow_inf_nan=False, description="of the noise")

    def noise(self, key: Key, a: Tensor, draws: int) -> Tensor:
        """s z, by the inverse distribution function of the uniform noise."""
        return self.std * portable.ndtri(key.uniform_like(a, draws))

    def forward(self, a: Tensor, noise: Tensor) -> Tensor:
        """a + s z."""
        return (a + noise).to(a.dtype)

    def sample(self, key: Key, a: Tensor, draws: int) -> Tensor:
        """In one pass where there is a kernel."""
        h = key.fused("normal", a, draws, self.event_ndim, self.std, 0)
        return super().sample(key, a, draws) if h is None else h

    def backward(self, a: Tensor, noise: Tensor, grad_h: Tensor) -> Tensor:
        """grad_h."""
        return grad_h.to(a.dtype)

    def pullback(self, key: Key, a: Tensor, h: Tensor, grad_h: Tensor) -> Tensor:
        """grad_h, whatever the noise."""
        return grad_h.to(a.dtype)

    def mean(self, a: Tensor) -> Tensor:
        """a."""
        return a

    def active_probability(self, a: Tensor) -> Tensor:
        """Φ(a/s)."""
        return normal_cdf(a / self.std).to(a.dtype)

    def law(self, a: Tensor) -> tuple[Tensor, Tensor]:
        """Gauss-Legendre nodes over the density of z below and above h = 0, so that sign(h) is integrated as well.

        The nodes are held where a stands now; the density at them moves with a.
        """
        x, w = gauss_legendre(_NODES // 2)
        ends = [a.detach() - _REACH * self.std, a.detach() + _REACH * self.std]
        middle = torch.zeros_like(a).clamp(min=ends[0], max=ends[1])
        values, weights = [], []
        for lower, upper in ((ends[0], middle), (middle, ends[1])):
            h = lower + (upper - lower) * spread(x, a)
            z = (h - a) / self.std
            values.append(h)
            weights.append(
                spread(w, a) * (upper - lower) * torch.exp(-0.5 * z * z) / (self.std * math.sqrt(2 * math.pi))
            )
        return torch.cat(values), torch.cat(weights)
