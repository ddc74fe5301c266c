"""The sigmoid unit, as the deterministic baseline of the binary one."""

from __future__ import annotations

import torch
from torch import Tensor

from gradest.contract.neuron import Reparameterised
from gradest.contract.numerics import logistic_backward, portable, select, widen
from gradest.random import Key
from gradest_neurons._deterministic import Deterministic, repeated


class Sigmoid(Deterministic, Reparameterised):
    """h = σ(a); dh/da = h (1 - h)."""

    name = "sigmoid"
    summary = "deterministic σ(a), a baseline"
    formula = r"h = \sigma(a)"

    def forward(self, a: Tensor, noise: Tensor) -> Tensor:
        """σ(a), once for each draw that the noise has room for."""
        return portable.sigmoid(widen(a + noise)).to(a.dtype)

    def sample(self, key: Key, a: Tensor, draws: int) -> Tensor:
        """In one pass where there is a kernel."""
        h = repeated(a, draws, 2)
        return super().sample(key, a, draws) if h is None else h

    def backward(self, a: Tensor, noise: Tensor, grad_h: Tensor) -> Tensor:
        """grad_h · h (1 - h)."""
        wide = widen(a)
        return logistic_backward(wide, grad_h.to(wide.dtype), 1.0, 1.0).to(a.dtype)

    def pullback(self, key: Key, a: Tensor, h: Tensor, grad_h: Tensor) -> Tensor:
        """In one pass where there is a kernel."""
        wide, kernel = widen(a), select("logistic_backward", a.device)
        return kernel(wide.expand_as(grad_h), grad_h.to(wide.dtype), 1.0, 1.0).to(a.dtype)  # type: ignore[no-any-return]

    def active_probability(self, a: Tensor) -> Tensor:
        """1: the output is positive always."""
        return torch.ones_like(a)
