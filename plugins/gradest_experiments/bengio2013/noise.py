"""Noise on pre-activations."""

from __future__ import annotations

from torch import Tensor, nn

from gradest.random import Key, fresh_seed

__all__ = ["BetaNoise"]


class BetaNoise(nn.Module):
    """A layer that adds z ~ Beta(1, β) in training, and the mean of z, 1 / (1 + β), in evaluation.

    Bengio et al. (2013) add Beta noise, with β about 40 and no other parameter named, to the input of the sigmoid in stochastic
    times smooth. By the inverse of its distribution function, z is 1 - u^(1/β) with u uniform.
    """

    def __init__(self, beta: float) -> None:
        super().__init__()
        self.beta = beta

    def forward(self, a: Tensor) -> Tensor:
        """Return a + z, in the shape of a; the seed of z is drawn from torch's global generator."""
        if not self.training:
            return a + 1 / (1 + self.beta)
        u = Key(fresh_seed()).uniform_like(a, 1)[0]
        return a + (1 - u ** (1 / self.beta)).to(a.dtype)
