"""Evolution strategies."""

from __future__ import annotations

import torch
from torch import Tensor

from gradest_estimators._perturbation import Perturbation


class Evolution(Perturbation):
    """Antithetic evolution strategies: the finite difference along Δ ~ N(0, 1) in each unit.

    ĝ = (L(f(a + cΔ, z)) - L(f(a - cΔ, z))) / (2c) · Δ is unbiased for the gradient of E_Δ[J(a + cΔ)], J = E[L]: the loss of
    units with Gaussian noise of standard deviation c on their pre-activations.
    """

    name = "evolution"
    summary = "difference of the loss along Gaussian noise added to a"
    reference = "Nesterov, Spokoiny 2017; Salimans, Ho, Chen, Sidor, Sutskever 2017, arXiv 1703.03864"
    formula = (
        r"\hat g = \frac{L(f(a + c\Delta, z)) - L(f(a - c\Delta, z))}{2c}\,\Delta, \quad \Delta_i \sim "
        r"\mathcal N(0, 1)"
    )

    def direction(self, uniform: Tensor) -> Tensor:
        """Standard normal numbers, by the inverse of their distribution function."""
        delta: Tensor = torch.special.ndtri(uniform)
        return delta
