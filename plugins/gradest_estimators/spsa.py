"""Simultaneous perturbation stochastic approximation (SPSA)."""

from __future__ import annotations

from torch import Tensor

from gradest_estimators._perturbation import Perturbation


class Spsa(Perturbation):
    """A finite difference of the loss along random signs: Δ_i = ±1, each with probability ½.

    ĝ = (L(f(a + cΔ, z)) - L(f(a - cΔ, z))) / (2c) · Δ, where f is the neuron and z its noise.

    Biased by O(c²): with J = E[L], E[ĝ_i] is the central difference of J in unit i, averaged over the signs of the
    other units; for a single unit the bias is c² J'''/6 to leading order. As c grows, the variance falls and the bias
    grows. c = 1 moves σ(a) by up to 0.23 to either side.

    Introduced by Spall (1992), Multivariate Stochastic Approximation Using a Simultaneous Perturbation Gradient
    Approximation, IEEE Transactions on Automatic Control 37.
    """

    name = "spsa"
    summary = "finite difference of the loss along random signs added to a"
    reference = "Spall 1992"
    formula = r"\hat g = \frac{L(f(a + c\Delta, z)) - L(f(a - c\Delta, z))}{2c}\,\Delta, \quad \Delta_i = \pm 1"

    def direction(self, uniform: Tensor) -> Tensor:
        """Return random signs."""
        return (uniform < 0.5).to(uniform.dtype) * 2 - 1
