"""The rectifier, a deterministic baseline for the noisy rectifier."""

from __future__ import annotations

import torch
from torch import Tensor

from gradest.contract.neuron import Reparameterised
from gradest.contract.numerics import select, widen
from gradest.random import Key
from gradest_neurons._deterministic import Deterministic, repeat_activation


class Rectifier(Deterministic, Reparameterised):
    """A deterministic rectifier.

    h = max(0, a), with dh/da = 1[a > 0].

    Introduced by Nair and Hinton (2010), Rectified Linear Units Improve Restricted Boltzmann Machines, ICML.
    """

    name = "rectifier"
    summary = "deterministic rectifier max(0, a), a baseline"
    reference = "Nair, Hinton 2010"
    formula = r"h = \max(0, a)"

    def forward(self, a: Tensor, noise: Tensor) -> Tensor:
        """Return h = max(0, a), broadcast to the draws of the noise, which is zero."""
        return torch.relu(a + noise).to(a.dtype)

    def sample(self, key: Key, a: Tensor, draws: int) -> Tensor:
        """Return h, `[draws, *a.shape]`, in one pass: torch's own for one draw, a kernel's for several if there is one."""
        h = torch.relu(a)[None] if draws == 1 else repeat_activation(a, draws, 1)
        return super().sample(key, a, draws) if h is None else h

    def backward(self, a: Tensor, noise: Tensor, grad_h: Tensor) -> Tensor:
        """Return grad_h · 1[a > 0]."""
        return torch.where(a > 0, grad_h, torch.zeros_like(grad_h)).to(a.dtype)

    def pullback(self, key: Key, a: Tensor, h: Tensor, grad_h: Tensor) -> Tensor:
        """Return grad_h · 1[h > 0]."""
        wide = widen(h)
        return select("rectified_backward", a.device)(wide, grad_h.to(wide.dtype)).to(a.dtype)  # type: ignore[no-any-return]

    def active_probability(self, a: Tensor) -> Tensor:
        """Return P(h > 0), which is 1 where a > 0 and 0 elsewhere."""
        return (a > 0).to(a.dtype)
