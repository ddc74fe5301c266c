"""The noisy sigmoid neuron."""

from __future__ import annotations

import torch
from pydantic import Field
from torch import Tensor

from gradest.contract.numerics import normal_cdf, panels, portable, sigmoid
from gradest.random import Key
from gradest_neurons._continuous import Squashed, nodes_at, normalised, reach_at, sigmoid_at


class NoisySigmoid(Squashed):
    """A sigmoid unit with Gaussian noise of standard deviation s added to its input.

    h = σ(a + s z) with z standard normal, so dh/da = h (1 - h) and P(h > 0) = 1.

    E[h] has no closed form. It is integrated numerically, with nodes that are dense where h rises and where the noise is
    likely, on the scale of each. The absolute error is about 1e-12 at s <= 1, 1e-9 at s <= 5 and 1e-6 at s <= 50, in
    float64.

    A baseline in Bengio, Léonard and Courville (2013), Estimating or Propagating Gradients Through Stochastic Neurons
    for Conditional Computation, arXiv 1308.3432.
    """

    name = "noisy_sigmoid"
    summary = "sigmoid unit with Gaussian noise added to its input"
    reference = "Bengio, Léonard, Courville 2013, arXiv 1308.3432 (baseline)"
    formula = r"h = \sigma(a + s z), \quad z \sim \mathcal N(0, 1)"

    std: float = Field(1.0, ge=1e-6, le=1e6, description="standard deviation s of the noise")

    def noise(self, key: Key, a: Tensor, draws: int) -> Tensor:
        """Return s z, `[draws, *a.shape]`, from uniform noise by the normal quantile function."""
        return self.std * portable.ndtri(key.uniform_like(a, draws))

    def forward(self, a: Tensor, noise: Tensor) -> Tensor:
        """Return h = σ(a + s z)."""
        return portable.sigmoid(a + noise).to(a.dtype)

    def sample(self, key: Key, a: Tensor, draws: int) -> Tensor:
        """Draw h, `[draws, *a.shape]`, in one pass if the device has a kernel for it."""
        h = key.fused("normal", a, draws, self.event_ndim, self.std, 2)
        return super().sample(key, a, draws) if h is None else h

    def backward(self, a: Tensor, noise: Tensor, grad_h: Tensor) -> Tensor:
        """Return grad_h · h (1 - h)."""
        x = a + noise
        return (grad_h.to(x.dtype) * portable.sigmoid_slope(x)).to(a.dtype)

    def pullback(self, key: Key, a: Tensor, h: Tensor, grad_h: Tensor) -> Tensor:
        """Return what `backward` returns, in one pass if the device has a kernel for it.

        The kernel draws noise again only where h is so near to 1 that 1 - h has lost its digits, or if h was rounded to 16 bits.
        """
        grad = grad_h.to(torch.promote_types(a.dtype, torch.float32))
        kept = h if h.dtype == grad.dtype else None
        found = key.fused("normal_pullback", a, len(h), self.event_ndim, grad, kept, self.std)
        return super().pullback(key, a, h, grad_h) if found is None else found

    def threshold(self, a: Tensor, level: float | Tensor) -> Tensor:
        """Return σ(a), the output without noise, where P(h > ½) = Φ(a/s) > level, and 0 elsewhere."""
        return torch.where(normal_cdf(a / self.std) > level, sigmoid(a), 0).to(a.dtype)

    def quadrature(self, a: Tensor, level: int) -> tuple[Tensor, Tensor]:
        """Return h at nodes of a + s z, weighted with the normal density."""
        reach = reach_at("gaussian", level) * self.std
        lower, upper = a.detach() - reach, a.detach() + reach
        x, z, dx = panels(a, lower, upper, (0.0, 1.0), self.std, nodes_at(level))
        return sigmoid_at(level, x), normalised(dx * torch.exp(-0.5 * (z / self.std) ** 2))
