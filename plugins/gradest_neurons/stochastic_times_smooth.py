"""The stochastic times smooth neuron."""

from __future__ import annotations

import torch
from torch import Tensor

from gradest.contract.neuron import Differentiable, Scored
from gradest.contract.numerics import gated_backward, portable, select, sigmoid, softplus, widen
from gradest.random import Key


class StochasticTimesSmooth(Differentiable, Scored):
    """h = b √p, with p = σ(a) and b = 1[z < √p], z uniform on (0, 1): E[h] = p, P(h > 0) = √p.

    Bengio, Léonard and Courville 2013 write b ~ Binomial(√p), which is one Bernoulli trial. `backward` is
    grad_h · b · d√p/da with b held, d√p/da = √p (1 - p) / 2. b moves with a as well, so this is no unbiased pathwise
    derivative: for a linear loss its mean is exactly half of the true gradient, and for a quadratic one a unit can have the
    wrong sign. The estimator `pathwise_score` adds what is missing.
    """

    name = "stochastic_times_smooth"
    summary = "binary gate times a smooth value: √p with probability √p"
    reference = "Bengio, Léonard, Courville 2013, arXiv 1308.3432"
    formula = r"h = b \sqrt p, \quad p = \sigma(a), \quad b = \mathbf 1[z < \sqrt p]"

    def forward(self, a: Tensor, noise: Tensor) -> Tensor:
        """√p where z < √p, else 0."""
        r = _gate(a)
        return torch.where(noise < r, r, torch.zeros_like(r)).to(a.dtype)

    def sample(self, key: Key, a: Tensor, draws: int) -> Tensor:
        """In one pass where there is a kernel."""
        h = key.fused("gated", a, draws, self.event_ndim)
        return super().sample(key, a, draws) if h is None else h

    def backward(self, a: Tensor, noise: Tensor, grad_h: Tensor) -> Tensor:
        """grad_h · b · √p (1 - p) / 2."""
        r = _gate(a)
        return gated_backward(widen(a), torch.where(noise < r, r, 0), grad_h).to(a.dtype)

    def pullback(self, key: Key, a: Tensor, h: Tensor, grad_h: Tensor) -> Tensor:
        """grad_h · h (1 - p) / 2, where h is as exact as √p."""
        if widen(a).dtype != h.dtype:
            return super().pullback(key, a, h, grad_h)
        return select("gated_backward", a.device)(a, h, grad_h.to(a.dtype))  # type: ignore[no-any-return]

    def score(self, h: Tensor, a: Tensor) -> Tensor:
        """d log P(b)/da = (b - r)(1 + r)/2, r = √p; for b = 1 that is (1 - p)/2, which does not cancel."""
        r = _root(a)
        return torch.where(h > 0, 0.5 * sigmoid(-a), -0.5 * r * (1 + r)).to(a.dtype)

    def mean(self, a: Tensor) -> Tensor:
        """p."""
        return sigmoid(a).to(a.dtype)

    def active_probability(self, a: Tensor) -> Tensor:
        """√p."""
        return _root(a).to(a.dtype)

    def law(self, a: Tensor) -> tuple[Tensor, Tensor]:
        """0 with probability 1 - √p, √p with probability √p."""
        r = _root(a)
        off = sigmoid(-a) / (1 + r)  # 1 - r, without cancellation
        return torch.stack([torch.zeros_like(r), r]), torch.stack([off, r])


def _gate(a: Tensor) -> Tensor:
    """√σ(a) for a comparison with noise, with the bits of the kernel; not below 4e-18, which no noise is below either."""
    return portable.sqrt(portable.sigmoid(widen(a)))


def _root(a: Tensor) -> Tensor:
    """√σ(a), with a finite derivative however small p is."""
    return torch.exp(-0.5 * softplus(-a))
