"""The sigmoid unit, as the deterministic baseline of the binary one."""

from __future__ import annotations

import torch
from torch import Tensor

from gradest.kernels.reference import sigmoid
from gradest.neuron import Reparameterised
from gradest_neurons._deterministic import Deterministic


class Sigmoid(Deterministic, Reparameterised):
    """h = σ(a); dh/da = h (1 - h)."""

    name = "sigmoid"
    summary = "deterministic σ(a), a baseline"
    formula = r"h = \sigma(a)"

    def forward(self, a: Tensor, noise: Tensor) -> Tensor:
        """σ(a), once for each draw that the noise has room for."""
        return sigmoid(a + noise).to(a.dtype)

    def backward(self, a: Tensor, noise: Tensor, grad_h: Tensor) -> Tensor:
        """grad_h · h (1 - h)."""
        return (grad_h * sigmoid(a) * sigmoid(-a)).to(a.dtype)

    def active_probability(self, a: Tensor) -> Tensor:
        """1: the output is positive always."""
        return torch.ones_like(a)
