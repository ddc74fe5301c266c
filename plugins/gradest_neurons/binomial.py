"""A count unit: how many of several Bernoulli trials succeed."""

from __future__ import annotations

import math

import torch
from pydantic import Field
from torch import Tensor

from gradest.contract.neuron import Discrete
from gradest.contract.numerics import portable, sigmoid, softplus, widen
from gradest.random import Key


class Binomial(Discrete):
    """h ~ Binomial(n, σ(a)), by the inverse of its distribution function: E[h] = n p, P(h > 0) = 1 - (1-p)^n, dh/da = 0.

    score = h - n p. One trial is the Bernoulli unit, mirrored in the noise.
    """

    name = "binomial"
    summary = "count of successes in n trials of probability σ(a)"
    reference = "Williams 1992"
    formula = r"h \sim \mathrm{Binomial}(n, \sigma(a)), \quad \mathbb E[h] = n\,\sigma(a)"

    examples = ({}, {"trials": 1}, {"trials": 9})

    trials: int = Field(4, ge=1, le=1000, description="n")

    def forward(self, a: Tensor, noise: Tensor) -> Tensor:
        """The number of k < n with F(k) <= z, F the distribution function; in float64, whatever the dtype of a.

        P(k + 1) = P(k) (n - k)/(k + 1) p/(1 - p) goes up from P(0) = (1-p)^n where p is at most ½. Where it is more, failures
        are counted, at noise 1 - z.
        """
        ratio = portable.exp(-a.abs().double())
        term = 1 / portable.power(1 + ratio, self.trials)
        is_likely = a > 0
        noise = torch.where(is_likely, 1 - noise, noise)
        below, h = torch.zeros_like(term), torch.zeros_like(noise)
        for k in range(self.trials):
            below = below + term
            h = h + (noise >= below)
            term = term * (ratio * ((self.trials - k) / (k + 1)))
        return torch.where(is_likely, self.trials - h, h).to(a.dtype)

    def sample(self, key: Key, a: Tensor, draws: int) -> Tensor:
        """In one pass where there is a kernel."""
        h = key.fused("binomial", a, draws, self.event_ndim, self.trials)
        return super().sample(key, a, draws) if h is None else h

    def backward(self, a: Tensor, noise: Tensor, grad_h: Tensor) -> Tensor:
        """0: a count does not move with a."""
        return torch.zeros_like(grad_h, dtype=a.dtype)

    def mean(self, a: Tensor) -> Tensor:
        """n p."""
        return (self.trials * sigmoid(a)).to(a.dtype)

    def active_probability(self, a: Tensor) -> Tensor:
        """1 - (1-p)^n."""
        return (-torch.expm1(-self.trials * softplus(a))).to(a.dtype)

    def support(self) -> Tensor:
        """0 to n."""
        return torch.arange(self.trials + 1.0)

    def log_prob(self, h: Tensor, a: Tensor) -> Tensor:
        """log C(n, h) + h log p + (n - h) log(1 - p)."""
        return self._log_prob(widen(h), widen(a)).to(a.dtype)

    def score(self, h: Tensor, a: Tensor) -> Tensor:
        """h - n p, as h (1 - p) - (n - h) p, which does not cancel at saturation."""
        return (widen(h) * sigmoid(-a) - (self.trials - widen(h)) * sigmoid(a)).to(a.dtype)

    def _log_prob(self, h: Tensor | float, a: Tensor) -> Tensor:
        n = self.trials
        h = torch.as_tensor(h, dtype=a.dtype, device=a.device)
        choices = math.lgamma(n + 1) - torch.lgamma(h + 1) - torch.lgamma(n - h + 1)
        return choices - h * softplus(-a) - (n - h) * softplus(a)
