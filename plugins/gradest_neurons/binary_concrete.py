"""The binary concrete neuron, a continuous relaxation of the Bernoulli neuron."""

from __future__ import annotations

from pydantic import Field
from torch import Tensor

from gradest.contract.numerics import gauss_legendre, logistic_backward, portable, sigmoid, spread, widen
from gradest.random import Key
from gradest_neurons._squashed import Squashed

_NODES = 384  # so many because, at a small τ, σ(·/τ) rises within a small part of the interval of z
_HALF_WIDTH = 36.0  # of the interval of z that is integrated over; the probability outside it is 5e-16


class BinaryConcrete(Squashed):
    """A relaxed binary unit: the sigmoid of a plus logistic noise, with both divided by a temperature τ.

    h = σ((a + z)/τ) with z standard logistic, so P(h > ½) = σ(a), P(h > 0) = 1, and dh/da = h (1 - h)/τ. As τ goes to 0
    the unit becomes the Bernoulli unit.

    E[h] is integrated numerically with 384 Gauss-Legendre nodes. The absolute error is about 1e-10 at τ >= 0.5, and
    never below 1e-15, because the tails of the noise are cut off.

    Introduced by Maddison, Mnih and Teh (2017), The Concrete Distribution: A Continuous Relaxation of Discrete Random
    Variables, arXiv 1611.00712, and by Jang, Gu and Poole (2017), Categorical Reparameterization with Gumbel-Softmax,
    arXiv 1611.01144.
    """

    name = "binary_concrete"
    summary = "sigmoid of logistic noise plus a, a relaxed binary unit"
    reference = "Maddison, Mnih, Teh 2017, arXiv 1611.00712; Jang, Gu, Poole 2017, arXiv 1611.01144"
    formula = r"h = \sigma\!\left(\frac{a + z}{\tau}\right), \quad z \sim \mathrm{Logistic}"

    temperature: float = Field(0.5, gt=0, allow_inf_nan=False, description="temperature τ")

    def noise(self, key: Key, a: Tensor, draws: int) -> Tensor:
        """Return the logistic noise z, `[draws, *a.shape]`: the logit of uniform noise."""
        return portable.logit(key.uniform_like(a, draws))

    def forward(self, a: Tensor, noise: Tensor) -> Tensor:
        """Return h = σ((a + z)/τ)."""
        return portable.sigmoid((a + noise) * (1 / self.temperature)).to(a.dtype)

    def sample(self, key: Key, a: Tensor, draws: int) -> Tensor:
        """Draw h, `[draws, *a.shape]`, in one pass if the device has a kernel for it."""
        h = key.fused("concrete", a, draws, self.event_ndim, 1 / self.temperature, 0.0, 1.0)
        return super().sample(key, a, draws) if h is None else h

    def backward(self, a: Tensor, noise: Tensor, grad_h: Tensor) -> Tensor:
        """Return grad_h · h (1 - h)/τ."""
        x, steep = a + noise, 1 / self.temperature
        return logistic_backward(x, grad_h.to(x.dtype), steep, steep).to(a.dtype)

    def pullback(self, key: Key, a: Tensor, h: Tensor, grad_h: Tensor) -> Tensor:
        """Return what `backward` returns, in one pass if the device has a kernel for it.

        The kernel draws the noise again. It cannot use 1 - h, which loses its digits where h is near 1.
        """
        steep, grad = 1 / self.temperature, grad_h.to(widen(a).dtype)
        found = key.fused("concrete_pullback", a, len(h), self.event_ndim, grad, steep, steep)
        return super().pullback(key, a, h, grad_h) if found is None else found

    def law(self, a: Tensor) -> tuple[Tensor, Tensor]:
        """Return h at Gauss-Legendre nodes of z, weighted with the logistic density."""
        x, w = gauss_legendre(_NODES)
        z = _HALF_WIDTH * (2 * x - 1)
        density = 2 * _HALF_WIDTH * w * sigmoid(z) * sigmoid(-z)
        values = sigmoid((a + spread(z, a)) / self.temperature)
        return values, spread(density, a).expand_as(values)
