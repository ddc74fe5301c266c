"""The hard concrete unit."""

from __future__ import annotations

import math
from typing import Self

import torch
from pydantic import Field, model_validator
from torch import Tensor

from gradest.contract.neuron import Reparameterised
from gradest.contract.numerics import (
    concrete_backward,
    gauss_legendre,
    leading_sum,
    logit,
    portable,
    sigmoid,
    spread,
    widen,
)
from gradest.random import Key

_NODES = 64


class HardConcrete(Reparameterised):
    """h = min(1, max(0, γ + (ζ - γ) s)), s = σ((a + z)/τ), z logistic: a binary concrete unit stretched and clipped.

    It is 0 and 1 with positive probability, yet continuous in a: dh/da = (ζ - γ) s (1 - s)/τ between the clips, 0 at them.
    P(h > 0) = σ(a - τ log(-γ/ζ)), whose sum is the expected number of open gates, the L0 penalty. At evaluation the source
    uses `threshold`: the stretched and clipped σ(a).
    """

    name = "hard_concrete"
    summary = "stretched and clipped binary concrete unit, 0 or 1 with positive probability"
    reference = "Louizos, Welling, Kingma 2018, arXiv 1712.01312"
    formula = r"h = \min(1, \max(0, \gamma + (\zeta - \gamma) s)), \quad s = \sigma\!\left(\frac{a + z}{\tau}\right)"

    temperature: float = Field(2 / 3, gt=0, allow_inf_nan=False, description="τ")
    lower: float = Field(-0.1, lt=0, allow_inf_nan=False, description="γ, below 0")
    upper: float = Field(1.1, gt=1, allow_inf_nan=False, description="ζ, above 1")

    @model_validator(mode="after")
    def _check_stretch(self) -> Self:
        if not math.isfinite(self.upper - self.lower):
            raise ValueError("upper - lower must be finite")
        return self

    def noise(self, key: Key, a: Tensor, draws: int) -> Tensor:
        """z, by the inverse distribution function of the uniform noise."""
        return portable.logit(key.uniform_like(a, draws))

    def forward(self, a: Tensor, noise: Tensor) -> Tensor:
        """The stretched and clipped σ((a + z)/τ)."""
        return self._stretch(portable.sigmoid((a + noise) * (1 / self.temperature))).clamp(0, 1).to(a.dtype)

    def sample(self, key: Key, a: Tensor, draws: int) -> Tensor:
        """In one pass where there is a kernel."""
        h = key.fused("concrete", a, draws, self.event_ndim, 1 / self.temperature, self.lower, self.upper - self.lower)
        return super().sample(key, a, draws) if h is None else h

    def backward(self, a: Tensor, noise: Tensor, grad_h: Tensor) -> Tensor:
        """grad_h · (ζ - γ) s (1 - s)/τ between the clips, 0 at them."""
        x = (a + noise) * (1 / self.temperature)
        return concrete_backward(x, grad_h.to(x.dtype), *self._slope()).to(a.dtype)

    def pullback(self, key: Key, a: Tensor, h: Tensor, grad_h: Tensor) -> Tensor:
        """In one pass where there is a kernel, which draws the noise again."""
        steep, grad = 1 / self.temperature, grad_h.to(widen(a).dtype)
        found = key.fused("concrete_pullback", a, len(h), self.event_ndim, grad, steep, *self._slope())
        return super().pullback(key, a, h, grad_h) if found is None else found

    def mean(self, a: Tensor) -> Tensor:
        """E[h]."""
        values, weights = self.law(widen(a))
        return leading_sum(values * weights).to(a.dtype)

    def active_probability(self, a: Tensor) -> Tensor:
        """σ(a - τ log(-γ/ζ))."""
        return sigmoid(widen(a) - self._edge(0.0)).to(a.dtype)

    def expected_l0(self, a: Tensor) -> Tensor:
        """Σ_i P(h_i > 0), `[*batch]`: the expected number of units that are not 0, differentiable in a."""
        return self.active_probability(a).contiguous().sum(-1)

    def threshold(self, a: Tensor, level: float | Tensor) -> Tensor:
        """The stretched and clipped σ(a) where P(h > 0) > level, and 0 elsewhere."""
        h = self._stretch(sigmoid(a)).clamp(0, 1).to(a.dtype)
        return torch.where(self.active_probability(a) > level, h, torch.zeros_like(h))

    def law(self, a: Tensor) -> tuple[Tensor, Tensor]:
        """The atoms at 0 and 1, and Gauss-Legendre nodes over the density between them: about 1e-12 at the default options."""
        x, w = gauss_legendre(_NODES)
        s = (x - self.lower) / (self.upper - self.lower)
        z = spread(self.temperature * logit(s), a) - a
        jacobian = spread(w * self.temperature / (s * (1 - s) * (self.upper - self.lower)), a)  # dz/dh
        density = sigmoid(z) * sigmoid(-z) * jacobian
        values = spread(torch.cat([torch.tensor([0.0], dtype=x.dtype), x, torch.tensor([1.0], dtype=x.dtype)]), a)
        closed, opened = sigmoid(self._edge(0.0) - a), sigmoid(a - self._edge(1.0))
        return values.expand(-1, *a.shape), torch.cat([closed[None], density, opened[None]])

    def _stretch(self, s: Tensor) -> Tensor:
        return self.lower + (self.upper - self.lower) * s

    def _slope(self) -> tuple[float, float, float]:
        """(ζ - γ)/τ, γ and ζ - γ."""
        width = self.upper - self.lower
        return width * (1 / self.temperature), self.lower, width

    def _edge(self, h: float) -> float:
        """The a + z at which the stretched unit is h."""
        return self.temperature * math.log((h - self.lower) / (self.upper - h))
