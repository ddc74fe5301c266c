"""The sigmoid unit, a deterministic baseline for the binary neurons."""

from __future__ import annotations

import torch
from torch import Tensor

from gradest.contract.neuron import Reparameterised
from gradest.contract.numerics import logistic_backward, portable, select, widen
from gradest.random import Key
from gradest_neurons._deterministic import Deterministic, repeat_activation


class Sigmoid(Deterministic, Reparameterised):
    """A deterministic sigmoid unit.

    h = σ(a), with dh/da = h (1 - h).
    """

    name = "sigmoid"
    summary = "deterministic sigmoid σ(a), a baseline"
    formula = r"h = \sigma(a)"

    def forward(self, a: Tensor, noise: Tensor) -> Tensor:
        """Return h = σ(a), broadcast to the draws of the noise, which is zero."""
        return portable.sigmoid(widen(a + noise)).to(a.dtype)

    def sample(self, key: Key, a: Tensor, draws: int) -> Tensor:
        """Return h, `[draws, *a.shape]`, in one pass if the device has a kernel for it."""
        h = repeat_activation(a, draws, 2)
        return super().sample(key, a, draws) if h is None else h

    def backward(self, a: Tensor, noise: Tensor, grad_h: Tensor) -> Tensor:
        """Return grad_h · h (1 - h)."""
        wide = widen(a)
        return logistic_backward(wide, grad_h.to(wide.dtype), 1.0, 1.0).to(a.dtype)

    def threshold(self, a: Tensor, level: float | Tensor) -> Tensor:
        """Return σ(a) where P(h > ½), which is 1[a > 0], is above the level, and 0 elsewhere."""
        wide = widen(a)
        return torch.where((wide > 0).to(wide.dtype) > level, portable.sigmoid(wide), 0).to(a.dtype)

    def pullback(self, key: Key, a: Tensor, h: Tensor, grad_h: Tensor) -> Tensor:
        """Return what `backward` returns, in one pass if the device has a kernel for it."""
        wide, kernel = widen(a), select("logistic_backward", a.device)
        return kernel(wide.expand_as(grad_h), grad_h.to(wide.dtype), 1.0, 1.0).to(a.dtype)  # type: ignore[no-any-return]

    def active_probability(self, a: Tensor) -> Tensor:
        """Return P(h > 0) = 1, because the output is always positive."""
        return torch.ones_like(a)
