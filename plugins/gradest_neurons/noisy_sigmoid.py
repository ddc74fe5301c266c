"""A sigmoid unit with gaussian noise on its input."""

from __future__ import annotations

import math

import torch
from pydantic import Field
from torch import Tensor

from gradest.contract.numerics import gauss_legendre, logistic_backward, portable, sigmoid, spread, widen
from gradest.random import Key
from gradest_neurons._squashed import Squashed

_NODES = 96
_REACH = 8.5  # standard deviations; what lies beyond has a probability below 2e-17


class NoisySigmoid(Squashed):
    """h = σ(a + s z), z standard normal: dh/da = h (1 - h), P(h > 0) = 1.

    E[h] has no closed form. It is the integral of σ(a + s z) φ(z) by 96 Gauss-Legendre nodes, to about 1e-12 at s <= 1.
    """

    name = "noisy_sigmoid"
    summary = "sigmoid unit with gaussian noise added to its input"
    reference = "Bengio, Léonard, Courville 2013, arXiv 1308.3432 (baseline)"
    formula = r"h = \sigma(a + s z), \quad z \sim \mathcal N(0, 1)"

    std: float = Field(1.0, gt=0, allow_inf_nan=False, description="of the noise")

    def noise(self, key: Key, a: Tensor, draws: int) -> Tensor:
        """s z, by the inverse distribution function of the uniform noise."""
        return self.std * portable.ndtri(key.uniform_like(a, draws))

    def forward(self, a: Tensor, noise: Tensor) -> Tensor:
        """σ(a + s z)."""
        return portable.sigmoid(a + noise).to(a.dtype)

    def sample(self, key: Key, a: Tensor, draws: int) -> Tensor:
        """In one pass where there is a kernel."""
        h = key.fused("normal", a, draws, self.event_ndim, self.std, 2)
        return super().sample(key, a, draws) if h is None else h

    def backward(self, a: Tensor, noise: Tensor, grad_h: Tensor) -> Tensor:
        """grad_h · h (1 - h)."""
        x = a + noise
        return logistic_backward(x, grad_h.to(x.dtype), 1.0, 1.0).to(a.dtype)

    def pullback(self, key: Key, a: Tensor, h: Tensor, grad_h: Tensor) -> Tensor:
        """In one pass where there is a kernel, which draws the noise again: 1 - h would cancel."""
        grad = grad_h.to(widen(a).dtype)
        found = key.fused("normal_pullback", a, len(h), self.event_ndim, grad, self.std)
        return super().pullback(key, a, h, grad_h) if found is None else found

    def law(self, a: Tensor) -> tuple[Tensor, Tensor]:
        """Gauss-Legendre nodes over the density of z."""
        x, w = gauss_legendre(_NODES)
        z = _REACH * (2 * x - 1)
        density = 2 * _REACH * w * torch.exp(-0.5 * z * z) / math.sqrt(2 * math.pi)
        values = sigmoid(a + self.std * spread(z, a))
        return values, spread(density, a).expand_as(values)
