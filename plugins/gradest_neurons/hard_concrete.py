"""The hard concrete neuron, a stretched and clipped binary concrete neuron."""

from __future__ import annotations

import math
from typing import Self

import torch
from pydantic import Field, model_validator
from torch import Tensor

from gradest.contract.numerics import (
    computable,
    concrete_backward,
    panels,
    portable,
    sigmoid,
    softplus,
    widen,
)
from gradest.random import Key
from gradest_neurons._continuous import Smooth, nodes_at, normalised, reach_at


class HardConcrete(Smooth):
    """A binary concrete unit s, stretched to (γ, ζ) and clipped to [0, 1].

    h = min(1, max(0, γ + (ζ - γ) s)) with s = σ((a + z)/τ) and z standard logistic. h is exactly 0 or exactly 1 with
    positive probability, and yet it is continuous in a: dh/da = (ζ - γ) s (1 - s)/τ between the clips, and 0 where h is
    clipped. The sum of P(h > 0) = σ(a - τ log(-γ/ζ)) over units is the expected number of open gates, the L0 penalty of
    Louizos et al. (2018). For evaluation they use the stretched and clipped σ(a); `threshold` also sets it to 0 where
    P(h > 0) is at most the level.

    Introduced by Louizos, Welling and Kingma (2018), Learning Sparse Neural Networks through L0 Regularization,
    arXiv 1712.01312.
    """

    name = "hard_concrete"
    summary = "stretched and clipped binary concrete unit, 0 or 1 with positive probability"
    reference = "Louizos, Welling, Kingma 2018, arXiv 1712.01312"
    formula = r"h = \min(1, \max(0, \gamma + (\zeta - \gamma) s)), \quad s = \sigma\!\left(\frac{a + z}{\tau}\right)"

    temperature: float = Field(2 / 3, ge=1e-30, le=1e30, description="temperature τ")
    lower: float = Field(-0.1, lt=0, allow_inf_nan=False, description="lower end γ of the stretched interval, below 0")
    upper: float = Field(1.1, gt=1, allow_inf_nan=False, description="upper end ζ of the stretched interval, above 1")

    @model_validator(mode="after")
    def _check_stretch(self) -> Self:
        if not math.isfinite(self.upper - self.lower):
            raise ValueError("upper - lower must be finite")
        return self

    def noise(self, key: Key, a: Tensor, draws: int) -> Tensor:
        """Return the logistic noise z, `[draws, *a.shape]`: the logit of uniform noise."""
        return portable.logit(key.uniform_like(a, draws))

    def forward(self, a: Tensor, noise: Tensor) -> Tensor:
        """Return h, the stretched and clipped σ((a + z)/τ)."""
        return self._stretch(portable.sigmoid((a + noise) * (1 / self.temperature))).clamp(0, 1).to(a.dtype)

    def sample(self, key: Key, a: Tensor, draws: int) -> Tensor:
        """Draw h, `[draws, *a.shape]`, in one pass if the device has a kernel for it."""
        h = key.fused("concrete", a, draws, self.event_ndim, 1 / self.temperature, self.lower, self.upper - self.lower)
        return super().sample(key, a, draws) if h is None else h

    def backward(self, a: Tensor, noise: Tensor, grad_h: Tensor) -> Tensor:
        """Return grad_h · (ζ - γ) s (1 - s)/τ between the clips, and 0 where h is clipped."""
        x = (a + noise) * (1 / self.temperature)
        return concrete_backward(x, grad_h.to(x.dtype), *self._kernel_arguments()).to(a.dtype)

    def pullback(self, key: Key, a: Tensor, h: Tensor, grad_h: Tensor) -> Tensor:
        """Return what `backward` returns, in one pass if the device has a kernel for it, which draws the noise again."""
        steep, grad = 1 / self.temperature, computable(grad_h, a)
        found = key.fused("concrete_pullback", a, len(h), self.event_ndim, grad, steep, *self._kernel_arguments())
        return super().pullback(key, a, h, grad_h) if found is None else found

    def active_probability(self, a: Tensor) -> Tensor:
        """Return P(h > 0) = σ(a - τ log(-γ/ζ))."""
        return sigmoid(widen(a) - self._input_at(0.0)).to(a.dtype)

    def expected_l0(self, a: Tensor) -> Tensor:
        """Return Σ_i P(h_i > 0), `[*batch]`: the expected number of units that are not 0, differentiable in a."""
        return self.active_probability(a).contiguous().sum(-1)

    def threshold(self, a: Tensor, level: float | Tensor) -> Tensor:
        """Return the stretched and clipped σ(a) where P(h > 0) > level, and 0 elsewhere."""
        h = self._stretch(sigmoid(a)).clamp(0, 1).to(a.dtype)
        return torch.where(self.active_probability(a) > level, h, torch.zeros_like(h))

    def quadrature(self, a: Tensor, level: int) -> tuple[Tensor, Tensor]:
        """Return the atoms at 0 and 1, and nodes of h between them, weighted with its density.

        The nodes are fixed at the present value of a; only the density at them is differentiated in a.
        """
        start, end, reach = self._input_at(0.0), self._input_at(1.0), reach_at("logistic", level)
        lower, upper = ((a.detach() + side * reach).clamp(start, end) for side in (-1, 1))
        x, z, dx = panels(a, lower, upper, (0.0, self.temperature), 1.0, nodes_at(level))
        h = self._stretch(sigmoid(x / self.temperature)).clamp(0, 1)
        # sigmoid, which is clamped, would not underflow to 0
        closed, opened = torch.exp(-softplus(a - start))[None], torch.exp(-softplus(end - a))[None]
        values = torch.cat([torch.zeros_like(closed), h, torch.ones_like(opened)])
        return values, normalised(torch.cat([closed, dx * sigmoid(z) * sigmoid(-z), opened]))

    def _stretch(self, s: Tensor) -> Tensor:
        return self.lower + (self.upper - self.lower) * s

    def _kernel_arguments(self) -> tuple[float, float, float]:
        """Return (ζ - γ)/τ, γ and ζ - γ: the height, lower end and width that the backward kernels take."""
        width = self.upper - self.lower
        return width * (1 / self.temperature), self.lower, width

    def _input_at(self, h: float) -> float:
        """Return the value of a + z at which the stretched unit equals h."""
        return self.temperature * math.log((h - self.lower) / (self.upper - h))
