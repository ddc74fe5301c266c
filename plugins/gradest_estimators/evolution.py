"""Antithetic evolution strategies."""

from __future__ import annotations

import torch
from torch import Tensor

from gradest_estimators._perturbation import Perturbation


class Evolution(Perturbation):
    """A finite difference of the loss along a Gaussian direction: antithetic evolution strategies.

    ĝ = (L(f(a + cΔ, z)) - L(f(a - cΔ, z))) / (2c) · Δ, with Δ ~ N(0, 1) in each unit, where f is the neuron and z its
    noise.

    Biased by O(c²) for the gradient of J(a) = E[L], but unbiased for that of E_Δ[J(a + cΔ)]: the expected loss of units
    with Gaussian noise of standard deviation c added to their pre-activations.

    Introduced by Nesterov and Spokoiny (2017), Random Gradient-Free Minimization of Convex Functions, Foundations of
    Computational Mathematics 17, and by Salimans, Ho, Chen, Sidor and Sutskever (2017), Evolution Strategies as a
    Scalable Alternative to Reinforcement Learning, arXiv 1703.03864.
    """

    name = "evolution"
    summary = "finite difference of the loss along Gaussian noise added to a"
    reference = "Nesterov, Spokoiny 2017; Salimans, Ho, Chen, Sidor, Sutskever 2017, arXiv 1703.03864"
    formula = (
        r"\hat g = \frac{L(f(a + c\Delta, z)) - L(f(a - c\Delta, z))}{2c}\,\Delta, \quad \Delta_i \sim "
        r"\mathcal N(0, 1)"
    )

    def direction(self, uniform: Tensor) -> Tensor:
        """Return standard normal numbers, by the quantile function of the normal distribution."""
        delta: Tensor = torch.special.ndtri(uniform)
        return delta
