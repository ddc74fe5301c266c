"""The noisy rectifier neuron."""

from __future__ import annotations

import math
from typing import Literal, Self

import torch
from pydantic import Field, model_validator
from torch import Tensor

from gradest.contract.neuron import Continuous, Reparameterised
from gradest.contract.numerics import normal_cdf, panels, portable, select, sigmoid, softplus, widen
from gradest.random import Key
from gradest_neurons._continuous import nodes_at, normalised, reach_at, rectified_normal_mean


class NoisyRectifier(Continuous, Reparameterised):
    """A rectifier with logistic noise, or Gaussian noise of standard deviation s, added to its input.

    h = max(0, a + z). With logistic noise E[h] = softplus(a) and P(h > 0) = σ(a). With Gaussian noise
    E[h] = a Φ(a/s) + s φ(a/s) and P(h > 0) = Φ(a/s). At fixed noise dh/da = 1[a + z > 0]. Because h is continuous in a,
    the expectation of this pathwise derivative is the derivative of the expected loss.

    Introduced by Bengio, Léonard and Courville (2013), Estimating or Propagating Gradients Through Stochastic Neurons
    for Conditional Computation, arXiv 1308.3432.
    """

    name = "noisy_rectifier"
    summary = "rectifier with noise added to its input"
    reference = "Bengio, Léonard, Courville 2013, arXiv 1308.3432"
    formula = r"h = \max(0, a + z), \quad z \sim \mathrm{Logistic}\ \text{or}\ \mathcal N(0, s^2)"

    examples = ({}, {"distribution": "gaussian"}, {"distribution": "gaussian", "std": 0.5})

    distribution: Literal["logistic", "gaussian"] = Field("logistic", description="distribution of the noise")
    std: float | None = Field(None, ge=1e-6, le=1e6, description="standard deviation of Gaussian noise; 1 if omitted")

    @model_validator(mode="after")
    def _check_std(self) -> Self:
        if self.std is not None and self.distribution == "logistic":
            raise ValueError('std requires distribution="gaussian"; logistic noise always has scale 1')
        return self

    @property
    def scale(self) -> float:
        """Return the standard deviation s of Gaussian noise."""
        return 1.0 if self.std is None else self.std

    def noise(self, key: Key, a: Tensor, draws: int) -> Tensor:
        """Return the noise z, `[draws, *a.shape]`, from uniform noise by the quantile function of its distribution."""
        u = key.uniform_like(a, draws)
        return portable.logit(u) if self.distribution == "logistic" else self.scale * portable.ndtri(u)

    def forward(self, a: Tensor, noise: Tensor) -> Tensor:
        """Return h = max(0, a + z)."""
        return torch.relu(a + noise).to(a.dtype)

    def sample(self, key: Key, a: Tensor, draws: int) -> Tensor:
        """Draw h, `[draws, *a.shape]`, in one pass if the device has a kernel for it."""
        if self.distribution == "logistic":
            h = key.fused("rectified", a, draws, self.event_ndim)
        else:
            h = key.fused("normal", a, draws, self.event_ndim, self.scale, 1)
        return super().sample(key, a, draws) if h is None else h

    def backward(self, a: Tensor, noise: Tensor, grad_h: Tensor) -> Tensor:
        """Return grad_h · 1[a + z > 0]."""
        return torch.where(a + noise > 0, grad_h, torch.zeros_like(grad_h)).to(a.dtype)

    def pullback(self, key: Key, a: Tensor, h: Tensor, grad_h: Tensor) -> Tensor:
        """Return grad_h · 1[h > 0], which needs no noise."""
        if h.dtype.itemsize == 2:  # nothing is computed, so that torch needs no wider numbers
            return torch.where(h > 0, grad_h, 0).to(a.dtype)
        return select("rectified_backward", a.device)(h, grad_h.to(h.dtype)).to(a.dtype)  # type: ignore[no-any-return]

    def mean(self, a: Tensor) -> Tensor:
        """Return E[h]: softplus(a) for logistic noise, a Φ(a/s) + s φ(a/s) for Gaussian noise."""
        if self.distribution == "logistic":
            return softplus(a).to(a.dtype)
        return (self.scale * rectified_normal_mean(widen(a) / self.scale)).to(a.dtype)

    def active_probability(self, a: Tensor) -> Tensor:
        """Return P(h > 0): σ(a) for logistic noise, Φ(a/s) for Gaussian noise."""
        return self._cdf(widen(a)).to(a.dtype)

    def threshold(self, a: Tensor, level: float | Tensor) -> Tensor:
        """Return max(0, a), the output without noise, where P(h > 0) > level, and 0 elsewhere.

        At the level ½ this is the plain rectifier.
        """
        return torch.where(self.active_probability(a) > level, torch.relu(a), torch.zeros_like(a))

    def quadrature(self, a: Tensor, level: int) -> tuple[Tensor, Tensor]:
        """Return the atom at 0, and nodes of h > 0, weighted with its density.

        The nodes are fixed at the present value of a; only the density at them is differentiated in a.
        """
        reach = reach_at(self.distribution, level) * self.scale
        lower, upper = (a.detach() - reach).clamp(min=0), a.detach().clamp(min=0) + reach
        h, z, dh = panels(a, lower, upper, (0.0, self.scale), self.scale, nodes_at(level))
        values = torch.cat([torch.zeros_like(a)[None], h])
        closed = torch.exp(-softplus(a)) if self.distribution == "logistic" else self._cdf(-a)  # 0 where it underflows
        return values, normalised(torch.cat([closed[None], dh * self._pdf(z)]))

    def _cdf(self, x: Tensor) -> Tensor:
        return sigmoid(x) if self.distribution == "logistic" else normal_cdf(x / self.scale)

    def _pdf(self, z: Tensor) -> Tensor:
        if self.distribution == "logistic":
            return sigmoid(z) * sigmoid(-z)
        return torch.exp(-0.5 * (z / self.scale) ** 2) / (self.scale * math.sqrt(2 * math.pi))
