"""The binary concrete neuron, a continuous relaxation of the Bernoulli neuron."""

from __future__ import annotations

from pydantic import Field
from torch import Tensor

from gradest.contract.numerics import computable, logistic_backward, panels, portable, sigmoid
from gradest.random import Key
from gradest_neurons._continuous import Squashed, nodes_at, normalised, reach_at, sigmoid_at


class BinaryConcrete(Squashed):
    """A relaxed binary unit: the sigmoid of a plus logistic noise, with both divided by a temperature τ.

    h = σ((a + z)/τ) with z standard logistic, so P(h > ½) = σ(a), P(h > 0) = 1, and dh/da = h (1 - h)/τ. As τ goes to 0
    the unit becomes the Bernoulli unit.

    E[h] is integrated numerically, with nodes that are dense where h rises and where the noise is likely, on the scale of
    each. The absolute error is at most 1e-10 at τ >= 0.5, 1e-7 at τ >= 0.01 and 1e-5 at any τ, in float64.

    Introduced by Maddison, Mnih and Teh (2017), The Concrete Distribution: A Continuous Relaxation of Discrete Random
    Variables, arXiv 1611.00712, and by Jang, Gu and Poole (2017), Categorical Reparameterization with Gumbel-Softmax,
    arXiv 1611.01144.
    """

    name = "binary_concrete"
    summary = "sigmoid of logistic noise plus a, a relaxed binary unit"
    reference = "Maddison, Mnih, Teh 2017, arXiv 1611.00712; Jang, Gu, Poole 2017, arXiv 1611.01144"
    formula = r"h = \sigma\!\left(\frac{a + z}{\tau}\right), \quad z \sim \mathrm{Logistic}"

    temperature: float = Field(0.5, ge=1e-30, le=1e30, description="temperature τ")

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
        steep, grad = 1 / self.temperature, computable(grad_h, a)
        found = key.fused("concrete_pullback", a, len(h), self.event_ndim, grad, steep, steep)
        return super().pullback(key, a, h, grad_h) if found is None else found

    def threshold(self, a: Tensor, level: float | Tensor) -> Tensor:
        """Return 1 where P(h > ½) = σ(a) > level, else 0: what the Bernoulli unit does, the limit of τ to 0."""
        return (sigmoid(a) > level).to(a.dtype)

    def quadrature(self, a: Tensor, level: int) -> tuple[Tensor, Tensor]:
        """Return h at nodes of a + z, weighted with the logistic density."""
        reach = reach_at("logistic", level)
        lower, upper = a.detach() - reach, a.detach() + reach
        x, z, dx = panels(a, lower, upper, (0.0, self.temperature), 1.0, nodes_at(level))
        return sigmoid_at(level, x / self.temperature), normalised(dx * sigmoid(z) * sigmoid(-z))
