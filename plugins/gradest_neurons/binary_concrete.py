"""The binary concrete unit."""

from __future__ import annotations

from pydantic import Field
from torch import Tensor

from gradest.contract.numerics import gauss_legendre, logistic_backward, portable, sigmoid, spread, widen
from gradest.random import Key
from gradest_neurons._squashed import Squashed

_NODES = 384  # the step of σ(·/τ) is narrower than the density of z
_REACH = 36.0


class BinaryConcrete(Squashed):
    """h = σ((a + z)/τ), z logistic: dh/da = h (1 - h)/τ, P(h > ½) = σ(a), P(h > 0) = 1.

    As τ goes to 0 it becomes the Bernoulli unit. E[h] is an integral by 384 Gauss-Legendre nodes, to about 1e-10
    at τ >= 0.5, and no better than 1e-15.
    """

    name = "binary_concrete"
    summary = "sigmoid of logistic noise plus a, a relaxed binary unit"
    reference = "Maddison, Mnih, Teh 2017, arXiv 1611.00712; Jang, Gu, Poole 2017, arXiv 1611.01144"
    formula = r"h = \sigma\!\left(\frac{a + z}{\tau}\right), \quad z \sim \mathrm{Logistic}"

    temperature: float = Field(0.5, gt=0, allow_inf_nan=False, description="τ")

    def noise(self, key: Key, a: Tensor, draws: int) -> Tensor:
        """z, by the inverse distribution function of the uniform noise."""
        return portable.logit(key.uniform_like(a, draws))

    def forward(self, a: Tensor, noise: Tensor) -> Tensor:
        """σ((a + z)/τ)."""
        return portable.sigmoid((a + noise) * (1 / self.temperature)).to(a.dtype)

    def sample(self, key: Key, a: Tensor, draws: int) -> Tensor:
        """In one pass where there is a kernel."""
        h = key.fused("concrete", a, draws, self.event_ndim, 1 / self.temperature, 0.0, 1.0)
        return super().sample(key, a, draws) if h is None else h

    def backward(self, a: Tensor, noise: Tensor, grad_h: Tensor) -> Tensor:
        """grad_h · h (1 - h)/τ."""
        x, steep = a + noise, 1 / self.temperature
        return logistic_backward(x, grad_h.to(x.dtype), steep, steep).to(a.dtype)

    def pullback(self, key: Key, a: Tensor, h: Tensor, grad_h: Tensor) -> Tensor:
        """In one pass where there is a kernel, which draws the noise again: 1 - h would cancel."""
        steep, grad = 1 / self.temperature, grad_h.to(widen(a).dtype)
        found = key.fused("concrete_pullback", a, len(h), self.event_ndim, grad, steep, steep)
        return super().pullback(key, a, h, grad_h) if found is None else found

    def law(self, a: Tensor) -> tuple[Tensor, Tensor]:
        """Gauss-Legendre nodes over the density of z."""
        x, w = gauss_legendre(_NODES)
        z = _REACH * (2 * x - 1)
        density = 2 * _REACH * w * sigmoid(z) * sigmoid(-z)
        values = sigmoid((a + spread(z, a)) / self.temperature)
        return values, spread(density, a).expand_as(values)
