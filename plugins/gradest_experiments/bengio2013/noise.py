"""Noise on pre-activations."""

from __future__ import annotations

from torch import Tensor, nn

from gradest.random import Key, fresh_seed

__all__ = ["BetaNoise"]


class BetaNoise(nn.Module):
    """a + z, z ~ Beta(1, β) in training and its mean, 1 / (1 + β), in evaluation.

    The source adds Beta noise to the sigmoid's input of stochastic times smooth, with β about 40, and names no other parameter.
    z is 1 - u^(1/β), u uniform: by the inverse of its distribution function.
    """

    def __init__(self, beta: float) -> None:
        super().__init__()
        self.beta = beta

    def forward(self, a: Tensor) -> Tensor:
        """Of the shape of a; noise comes from torch's global generator."""
        if not self.training:
            return a + 1 / (1 + self.beta)
        u = Key(fresh_seed()).uniform_like(a, 1)[0]
        return a + (1 - u ** (1 / self.beta)).to(a.dtype)
