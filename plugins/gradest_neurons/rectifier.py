"""The rectifier, as the deterministic baseline of the noisy one."""

from __future__ import annotations

import torch
from torch import Tensor

from gradest.contract.neuron import Reparameterised
from gradest.contract.numerics import select, widen
from gradest.random import Key
from gradest_neurons._deterministic import Deterministic, repeated


class Rectifier(Deterministic, Reparameterised):
    """h = max(0, a); dh/da = 1[a > 0]."""

    name = "rectifier"
    summary = "deterministic max(0, a), a baseline"
    reference = "Nair, Hinton 2010"
    formula = r"h = \max(0, a)"

    def forward(self, a: Tensor, noise: Tensor) -> Tensor:
        """max(0, a), once for each draw that the noise has room for."""
        return torch.relu(a + noise).to(a.dtype)

    def sample(self, key: Key, a: Tensor, draws: int) -> Tensor:
        """In one pass where there is a kernel."""
        h = repeated(a, draws, 1)
        return super().sample(key, a, draws) if h is None else h

    def backward(self, a: Tensor, noise: Tensor, grad_h: Tensor) -> Tensor:
        """grad_h · 1[a > 0]."""
        return torch.where(a > 0, grad_h, torch.zeros_like(grad_h)).to(a.dtype)

    def pullback(self, key: Key, a: Tensor, h: Tensor, grad_h: Tensor) -> Tensor:
        """grad_h · 1[h > 0]."""
        wide = widen(h)
        return select("rectified_backward", a.device)(wide, grad_h.to(wide.dtype)).to(a.dtype)  # type: ignore[no-any-return]

    def active_probability(self, a: Tensor) -> Tensor:
        """1[a > 0]."""
        return (a > 0).to(a.dtype)
