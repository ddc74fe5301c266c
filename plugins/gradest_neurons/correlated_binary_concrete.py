"""The correlated binary concrete neuron: relaxed binary units that are correlated by a Gaussian copula."""

from __future__ import annotations

import math
from typing import ClassVar

import torch
from pydantic import Field
from torch import Tensor

from gradest.contract.neuron import Continuous
from gradest.contract.numerics import computable, leading_sum, softplus, spread, widen
from gradest.random import Key
from gradest_neurons._continuous import normalised, sigmoid_at
from gradest_neurons._copula import FACTOR_STREAM, correlated_normals, logit_of_normal, normal_of_logit
from gradest_neurons._normal import count_normal_nodes, normal_nodes
from gradest_neurons.binary_concrete import BinaryConcrete

_STEP = 0.65  # of the grid at level 0, for a function whose slope is at most 1
_SLOPE = 1.6  # of logit Φ(z) at 0


class CorrelatedBinaryConcrete(BinaryConcrete):
    """Groups of n relaxed binary units, the sigmoid of a plus logistic noise, of which any two have a Gaussian copula.

    h_i = σ((a_i + logit u_i)/τ), where u_i = Φ(√ρ f + √(1-ρ) z_i), and the factor f, common to the group, and z_i are standard
    normal. So each unit by itself is the binary concrete unit, with P(h > ½) = σ(a) and dh/da = h (1 - h)/τ, and as τ goes to 0
    the units become binary ones with that copula. a and h are `[*batch, groups, n]`; groups are independent.

    The law of a group is an integral over n normal variables. For n up to 2 it is a sum over a grid, with an error of about 1e-6.
    For larger n 1,024 fixed points of a Sobol sequence are used, with errors of up to 1e-2. E[h] is that of `binary_concrete`,
    and as accurate, for any n.

    Correlated gates by a Gaussian copula, relaxed, with the correlations of the data, select features in Lee, Imrie and van der
    Schaar (2022), Self-Supervision Enhanced Feature Selection with Correlated Gates, ICLR. Only summaries of it could be read;
    that all pairs have one correlation, which is not negative, is gradest's choice.
    """

    name = "correlated_binary_concrete"
    summary = "sigmoid of logistic noise plus a, correlated in groups by a Gaussian copula"
    reference = "Lee, Imrie, van der Schaar 2022; Maddison, Mnih, Teh 2017, arXiv 1611.00712"
    formula = (
        r"h_i = \sigma\!\left(\frac{a_i + \operatorname{logit} u_i}{\tau}\right), \quad "
        r"u_i = \Phi(\sqrt\rho f + \sqrt{1 - \rho}\, z_i), \quad f, z_i \sim \mathcal N(0, 1)"
    )

    event_ndim: ClassVar[int] = 2
    example_events: ClassVar[tuple[tuple[int, ...], ...]] = ((1, 2), (2, 3))

    examples = ({}, {"correlation": 0.9, "temperature": 1.0})

    temperature: float = Field(0.5, ge=0.05, le=1e30, description="temperature τ")
    correlation: float = Field(
        0.5, ge=0, le=0.95, description="correlation ρ of the normal variables of two units of a group"
    )

    def noise(self, key: Key, a: Tensor, draws: int) -> Tensor:
        """Return the correlated logistic noise logit u, `[draws, *a.shape]`."""
        return logit_of_normal(correlated_normals(key, a, draws, self.correlation))

    def sample(self, key: Key, a: Tensor, draws: int) -> Tensor:
        """Draw h, `[draws, *a.shape]`, in one pass if the device has a kernel for it."""
        h = key.fused("correlated_concrete", a, draws, self.event_ndim, *self._options(a))
        return Continuous.sample(self, key, a, draws) if h is None else h

    def pullback(self, key: Key, a: Tensor, h: Tensor, grad_h: Tensor) -> Tensor:
        """Return what `backward` returns, in one pass, which draws the noise again, if the device has a kernel for it."""
        grad, options = computable(grad_h, a), self._options(a)
        found = key.fused("correlated_concrete_pullback", a, len(h), self.event_ndim, grad, *options)
        return Continuous.pullback(self, key, a, h, grad_h) if found is None else found

    def _options(self, a: Tensor) -> tuple[float, ...]:
        """Return what the kernels of this unit take: the size of a group, the stream of factors, both scales, and 1/τ."""
        shared, own = math.sqrt(self.correlation), math.sqrt(1 - self.correlation)
        return a.shape[-1], FACTOR_STREAM, shared, own, 1 / self.temperature

    def mean(self, a: Tensor) -> Tensor:
        """Return E[h], that of each unit by itself."""
        values, weights = super().quadrature(widen(a), 0)
        return leading_sum(values * weights).to(a.dtype)

    def law_size(self, a: Tensor) -> int:
        """Return the number of nodes times the size of `a`."""
        n = a.shape[-1]
        return count_normal_nodes(n, self._step(n)) * a.numel()

    def _largest(self, n: int) -> float:
        """Return the largest eigenvalue of the root of the matrix of correlations."""
        return math.sqrt(1 + (n - 1) * self.correlation)

    def _step(self, n: int) -> float:
        return _STEP / max(1.0, _SLOPE / self.temperature * self._largest(n))

    def quadrature(self, a: Tensor, level: int) -> tuple[Tensor, Tensor]:
        """Return h, `[S, *batch, groups, n]`, at the S nodes of a quadrature over the normal variables, and weights of groups.

        h is fixed at the present value of a; only the density of a + logit u is differentiated in a. The logarithm of that of
        x = logit u is, with z = Φ⁻¹(σ(x)) and the matrix R of correlations, Σ_i (log σ'(x_i) + z_i²/2) - zᵀR⁻¹z/2 + const.
        """
        wide, n = widen(a), a.shape[-1]
        rest, largest = math.sqrt(1 - self.correlation), self._largest(n)
        nodes, weights = normal_nodes(n, self._step(n), level, self.name)
        z = rest * nodes + (largest - rest) / n * nodes.sum(-1, keepdim=True)  # the root of R times the nodes
        still = wide.detach()
        noise = logit_of_normal(z).to(still).reshape(len(z), *[1] * (a.ndim - 1), n)
        values = sigmoid_at(level, (still + noise) / self.temperature)
        share = spread(weights, wide[..., 0]).expand(len(z), *a.shape[:-1])
        if wide.requires_grad and torch.is_grad_enabled():
            density = self._log_density(noise.double() - (wide - still).double())
            share = share * torch.exp(density - density.detach()).to(share.dtype)
        return values.to(a.dtype), normalised(share).to(a.dtype)

    def _log_density(self, x: Tensor) -> Tensor:
        """Return the logarithm of the density of x = logit u, up to a constant, `[..., groups]`."""
        z, n = normal_of_logit(x), x.shape[-1]
        total, squares = z.sum(-1), z.square().sum(-1)
        shared = self.correlation / (1 + (n - 1) * self.correlation)
        inner = (squares - shared * total.square()) / (1 - self.correlation)
        return 0.5 * (squares - inner) - (softplus(x) + softplus(-x)).sum(-1)
