"""The binomial neuron: the number of successes in several Bernoulli trials."""

from __future__ import annotations

import math

import torch
from pydantic import Field
from torch import Tensor

from gradest.contract.neuron import Discrete
from gradest.contract.numerics import portable, sigmoid, softplus, widen
from gradest.random import Key


class Binomial(Discrete):
    """A count unit: the number of successes in n Bernoulli trials, each with probability p = σ(a).

    h ~ Binomial(n, p) is drawn by inverting its distribution function, so E[h] = n p, P(h > 0) = 1 - (1 - p)^n, and the
    score is h - n p. At fixed noise h is constant in a almost everywhere: dh/da = 0. With n = 1 it has the law of the
    Bernoulli unit, but uses the noise the other way round: h = 1[z >= 1 - p].

    Exponential families such as this one are treated by Williams (1992), Simple Statistical Gradient-Following
    Algorithms for Connectionist Reinforcement Learning, Machine Learning 8.
    """

    name = "binomial"
    summary = "count of successes in n trials of probability σ(a)"
    reference = "Williams 1992"
    formula = r"h \sim \mathrm{Binomial}(n, \sigma(a)), \quad \mathbb E[h] = n\,\sigma(a)"

    examples = ({}, {"trials": 1}, {"trials": 9})

    trials: int = Field(4, ge=1, le=1000, description="number n of trials")

    def forward(self, a: Tensor, noise: Tensor) -> Tensor:
        """Return the number of k < n with F(k) <= z, where F is the distribution function.

        The terms follow from P(0) = (1 - p)^n by P(k + 1) = P(k) (n - k)/(k + 1) p/(1 - p), in float64 for every dtype
        of a. Where p > ½, failures are counted instead, at noise 1 - z, so that the first term is at least 2^-n and
        does not underflow.
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
        """Draw h, `[draws, *a.shape]`, in one pass if the device has a kernel for it."""
        h = key.fused("binomial", a, draws, self.event_ndim, self.trials)
        return super().sample(key, a, draws) if h is None else h

    def backward(self, a: Tensor, noise: Tensor, grad_h: Tensor) -> Tensor:
        """Return 0, because a count is constant in a almost everywhere."""
        return torch.zeros_like(grad_h, dtype=a.dtype)

    def mean(self, a: Tensor) -> Tensor:
        """Return E[h] = n p."""
        return (self.trials * sigmoid(a)).to(a.dtype)

    def active_probability(self, a: Tensor) -> Tensor:
        """Return P(h > 0) = 1 - (1 - p)^n."""
        return (-torch.expm1(-self.trials * softplus(a))).to(a.dtype)

    def support(self) -> Tensor:
        """Return the possible counts 0 to n, `[n + 1]`."""
        return torch.arange(self.trials + 1.0, device="cpu")

    def log_prob(self, h: Tensor, a: Tensor) -> Tensor:
        """Return log P(h | a) = log C(n, h) + h log p + (n - h) log(1 - p), in float64, because the terms cancel."""
        n, h, wide = self.trials, h.double(), a.double()
        choices = math.lgamma(n + 1) - torch.lgamma(h + 1) - torch.lgamma(n - h + 1)
        return (choices - h * softplus(-wide) - (n - h) * softplus(wide)).to(a.dtype)

    def law(self, a: Tensor) -> tuple[Tensor, Tensor]:
        """Return the counts and their probabilities, which are computed in float64."""
        values, weights = super().law(a.double())
        return values.to(a.dtype), weights.to(a.dtype)

    def score(self, h: Tensor, a: Tensor) -> Tensor:
        """Return h - n p, computed as h (1 - p) - (n - h) p, which does not cancel at saturation."""
        return (widen(h) * sigmoid(-a) - (self.trials - widen(h)) * sigmoid(a)).to(a.dtype)
