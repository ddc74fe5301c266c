"""Simultaneous perturbation."""

from __future__ import annotations

from torch import Tensor

from gradest_estimators._perturbation import Perturbation


class Spsa(Perturbation):
    """The finite difference along random signs: Δ_i = ±1, each with probability ½.

    ĝ = (L(f(a + cΔ, z)) - L(f(a - cΔ, z))) / (2c) · Δ. With J = E[L], E[ĝ_i] is the central difference of J in unit i,
    averaged over the signs of the others; for one unit its bias is c² J'''/6. As c grows the variance falls and the
    bias grows; c = 1 moves σ(a) by up to 0.23 to either side.
    """

    name = "spsa"
    summary = "difference of the loss along random signs added to a"
    reference = "Spall 1992"
    formula = r"\hat g = \frac{L(f(a + c\Delta, z)) - L(f(a - c\Delta, z))}{2c}\,\Delta, \quad \Delta_i = \pm 1"

    def direction(self, uniform: Tensor) -> Tensor:
        """Random signs."""
        return (uniform < 0.5).to(uniform.dtype) * 2 - 1
