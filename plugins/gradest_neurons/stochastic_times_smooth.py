"""The stochastic times smooth neuron."""

from __future__ import annotations

import torch
from torch import Tensor

from gradest.contract.neuron import Differentiable, Scored
from gradest.contract.numerics import portable, select, sigmoid, softplus, times_smooth_backward, widen
from gradest.random import Key


class StochasticTimesSmooth(Differentiable, Scored):
    """A binary gate times a smooth value: √p with probability √p and 0 otherwise, where p = σ(a).

    h = b √p with b = 1[z < √p] and z uniform on (0, 1), so E[h] = p and P(h > 0) = √p.

    `backward` holds the gate b and differentiates the smooth value: grad_h · b · d√p/da, with d√p/da = √p (1 - p)/2.
    Because b depends on a as well, this is not an unbiased pathwise derivative. For a linear loss its mean is exactly
    half of the true gradient, and for a quadratic loss a unit can have the wrong sign. The estimator `pathwise_score`
    adds the missing term.

    Introduced by Bengio, Léonard and Courville (2013), Estimating or Propagating Gradients Through Stochastic Neurons
    for Conditional Computation, arXiv 1308.3432. The paper writes b ~ Binomial(√p), which means one Bernoulli trial.
    """

    name = "stochastic_times_smooth"
    summary = "binary gate times a smooth value: √p with probability √p"
    reference = "Bengio, Léonard, Courville 2013, arXiv 1308.3432"
    formula = r"h = b \sqrt p, \quad p = \sigma(a), \quad b = \mathbf 1[z < \sqrt p]"

    def forward(self, a: Tensor, noise: Tensor) -> Tensor:
        """Return h, which is √p where z < √p and 0 elsewhere."""
        r = _portable_sqrt_sigmoid(a)
        return torch.where(noise < r, r, torch.zeros_like(r)).to(a.dtype)

    def sample(self, key: Key, a: Tensor, draws: int) -> Tensor:
        """Draw h, `[draws, *a.shape]`, in one pass if the device has a kernel for it."""
        h = key.fused("times_smooth", a, draws, self.event_ndim)
        return super().sample(key, a, draws) if h is None else h

    def backward(self, a: Tensor, noise: Tensor, grad_h: Tensor) -> Tensor:
        """Return grad_h · b · √p (1 - p)/2, with the gate b held."""
        r = _portable_sqrt_sigmoid(a)
        return times_smooth_backward(widen(a), torch.where(noise < r, r, 0), grad_h).to(a.dtype)

    def pullback(self, key: Key, a: Tensor, h: Tensor, grad_h: Tensor) -> Tensor:
        """Return grad_h · h (1 - p)/2, computed from h alone unless h was rounded to 16 bits."""
        if h.dtype.itemsize == 2:
            return super().pullback(key, a, h, grad_h)
        return select("times_smooth_backward", a.device)(a, h, grad_h.to(a.dtype))  # type: ignore[no-any-return]

    def score(self, h: Tensor, a: Tensor) -> Tensor:
        """Return d log P(b)/da = (b - r)(1 + r)/2, where r = √p.

        For b = 1 it is computed as (1 - p)/2, which does not cancel at saturation.
        """
        r = _sqrt_sigmoid(a)
        return torch.where(h > 0, 0.5 * sigmoid(-a), -0.5 * r * (1 + r)).to(a.dtype)

    def mean(self, a: Tensor) -> Tensor:
        """Return E[h] = p."""
        return sigmoid(a).to(a.dtype)

    def active_probability(self, a: Tensor) -> Tensor:
        """Return P(h > 0) = √p."""
        return _sqrt_sigmoid(a).to(a.dtype)

    def law(self, a: Tensor) -> tuple[Tensor, Tensor]:
        """Return the two atoms: 0 with probability 1 - √p, and √p with probability √p."""
        r = _sqrt_sigmoid(a)
        off = torch.exp(-softplus(a)) / (1 + r)  # equal to 1 - r, without cancellation; 0 where it underflows
        return torch.stack([torch.zeros_like(r), r]), torch.stack([off, r])


def _portable_sqrt_sigmoid(a: Tensor) -> Tensor:
    """Return √σ(a) with the same bits as the kernel, for the comparison with noise.

    It is never below 4e-18, but no noise is below that either.
    """
    return portable.sqrt(portable.sigmoid(widen(a)))


def _sqrt_sigmoid(a: Tensor) -> Tensor:
    """Return √σ(a), whose derivative stays finite however small σ(a) is."""
    return torch.exp(-0.5 * softplus(-a))
