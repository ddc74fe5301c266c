"""The Gaussian neuron: the pre-activation plus Gaussian noise."""

from __future__ import annotations

import torch
from pydantic import Field
from torch import Tensor

from gradest.contract.neuron import Density
from gradest.contract.numerics import normal_cdf, panels, portable
from gradest.random import Key
from gradest_neurons._continuous import nodes_at, normalised, reach_at


class Gaussian(Density):
    """A linear unit with additive Gaussian noise of standard deviation s.

    h = a + s z with z standard normal, so E[h] = a, P(h > 0) = Φ(a/s), and dh/da = 1.

    Used by Kingma and Welling (2014), Auto-Encoding Variational Bayes, arXiv 1312.6114.
    """

    name = "gaussian"
    summary = "a plus Gaussian noise"
    reference = "Kingma, Welling 2014, arXiv 1312.6114"
    formula = r"h = a + s z, \quad z \sim \mathcal N(0, 1)"

    examples = ({}, {"std": 0.3})

    std: float = Field(1.0, ge=1e-6, le=1e6, description="standard deviation s of the noise")

    def noise(self, key: Key, a: Tensor, draws: int) -> Tensor:
        """Return s z, `[draws, *a.shape]`, from uniform noise by the normal quantile function."""
        return self.std * portable.ndtri(key.uniform_like(a, draws))

    def forward(self, a: Tensor, noise: Tensor) -> Tensor:
        """Return h = a + s z."""
        return (a + noise).to(a.dtype)

    def sample(self, key: Key, a: Tensor, draws: int) -> Tensor:
        """Draw h, `[draws, *a.shape]`, in one pass if the device has a kernel for it."""
        h = key.fused("normal", a, draws, self.event_ndim, self.std, 0)
        return super().sample(key, a, draws) if h is None else h

    def backward(self, a: Tensor, noise: Tensor, grad_h: Tensor) -> Tensor:
        """Return grad_h, because dh/da = 1."""
        return grad_h.to(a.dtype)

    def pullback(self, key: Key, a: Tensor, h: Tensor, grad_h: Tensor) -> Tensor:
        """Return grad_h, which does not depend on the noise."""
        return grad_h.to(a.dtype)

    def density_score(self, a: Tensor, noise: Tensor) -> Tensor:
        """Return z/s, the derivative of -(h - a)²/(2s²) in a."""
        return (noise / self.std / self.std).to(a.dtype)

    def mean(self, a: Tensor) -> Tensor:
        """Return E[h] = a."""
        return a

    def active_probability(self, a: Tensor) -> Tensor:
        """Return P(h > 0) = Φ(a/s)."""
        return normal_cdf(a / self.std).to(a.dtype)

    def quadrature(self, a: Tensor, level: int) -> tuple[Tensor, Tensor]:
        """Return nodes of h, weighted with its density.

        The nodes below and above h = 0 are separate, so that functions which jump at 0, such as sign(h), are integrated
        accurately too. The nodes are fixed at the present value of a; only the density at them is differentiated in a.
        """
        reach = reach_at("gaussian", level) * self.std
        lower, upper = a.detach() - reach, a.detach() + reach
        h, z, dh = panels(a, lower, upper, (0.0, self.std), self.std, nodes_at(level))
        return h, normalised(dh * torch.exp(-0.5 * (z / self.std) ** 2))
