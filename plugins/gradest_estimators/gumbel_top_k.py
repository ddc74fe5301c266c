"""The straight-through estimator by the relaxation of Gumbel top-k."""

from __future__ import annotations

import torch
from pydantic import Field
from torch import Tensor

from gradest.contract.estimator import Bias, Draw, Feedback, MonteCarlo, State
from gradest.contract.neuron import Neuron, Subset
from gradest.contract.numerics import leading_mean
from gradest.random import Key
from gradest_estimators._subset import largest


class GumbelTopK(MonteCarlo):
    """The derivative of the loss at the k largest of a + G, passed back through a relaxation s of the same noise.

    ĝ = L'(h) · ds/da, where h is 1 at the k largest of a + G, with Gumbel noise G, and s = p¹ + ... + pᵏ with
    p^j = softmax(α^j/τ), α¹ = a + G and α^(j+1) = α^j + log(1 - p^j). The entries of s sum to k, and s tends to h as τ
    goes to 0; at τ = 1 and above an item that is certain may be counted more than once. For k = 1 it is
    `straight_through_gumbel`.

    Biased, even for linear losses, and for two reasons: the relaxation is not the unit, and h is drawn by successive
    sampling (Plackett-Luce without the order), not by the law of the unit; see `k_subset`. So the value is biased, too.

    The relaxation is that of Xie and Ermon (2019), Reparameterizable Subset Sampling via Continuous Relaxations,
    arXiv 1901.10517; Gumbel top-k sampling goes back to Yellott (1977), The Relationship Between Luce's Choice Axiom,
    Thurstone's Theory of Comparative Judgment, and the Double Exponential Distribution.
    """

    name = "gumbel_top_k"
    summary = "dL/dh at the top k of a plus Gumbel noise, passed through k softmaxes of the same noise"
    reference = "Xie, Ermon 2019, arXiv 1901.10517"
    formula = (
        r"\hat g = L'(h)\,\frac{ds}{da}, \quad s = \sum_{j=1}^k \mathrm{softmax}\!\left(\frac{\alpha^j}{\tau}\right), \quad "
        r"\alpha^1 = a + G, \quad \alpha^{j+1} = \alpha^j + \log(1 - p^j)"
    )
    needs = frozenset({"grad"})
    capabilities = (Subset,)

    examples = ({}, {"temperature": 0.2, "samples": 3})

    temperature: float = Field(0.5, ge=1e-30, le=1e30, description="temperature τ of the relaxation")

    def bias(self, neuron: Neuron) -> Bias:
        """Return `Bias.BIASED`: neither the relaxation nor the sampler has the mean of the unit."""
        return Bias.BIASED

    def forward(self, neuron: Neuron, a: Tensor, key: Key, state: State) -> Draw:
        """Ask for the loss at the k largest of a + G, for independent G."""
        assert isinstance(neuron, Subset)
        noisy = _perturbed(neuron, a, key, self.samples)
        return Draw(neuron, a, key, largest(noisy, neuron.size).to(a.dtype))

    def backward(self, draw: Draw, feedback: Feedback, state: State) -> tuple[Tensor, State]:
        """Return the mean over samples of L'(h) times the derivative of the relaxation."""
        assert isinstance(draw.neuron, Subset)
        noisy = _perturbed(draw.neuron, draw.a, draw.key, self.samples)
        with torch.enable_grad():
            moving = noisy.detach().requires_grad_()
            relaxed = relaxed_top_k(moving, draw.neuron.size, self.temperature)
            (slope,) = torch.autograd.grad(relaxed, moving, feedback.get_grad().to(relaxed))
        return leading_mean(slope).to(draw.a.dtype), state


def relaxed_top_k(x: Tensor, k: int, temperature: float) -> Tensor:
    """Return s, the sum of k softmaxes over the last dimension, each of which lowers what the one before has chosen.

    log(1 - p) of the largest entry comes from the sum of the others, so that it does not cancel where p is near 1.
    """
    total = torch.zeros_like(x)
    for _ in range(k):
        scaled = x / temperature
        log_p = torch.log_softmax(scaled, -1)
        p = log_p.exp()
        total = total + p
        is_largest = torch.zeros_like(x, dtype=torch.bool).scatter(-1, scaled.argmax(-1, keepdim=True), True)
        others = torch.logsumexp(log_p.masked_fill(is_largest, -torch.inf), -1, keepdim=True)
        x = x + torch.where(is_largest, others, torch.log1p(-p.masked_fill(is_largest, 0)))
    return total


def _perturbed(neuron: Neuron, a: Tensor, key: Key, samples: int) -> Tensor:
    """Return a + G, `[samples, *a.shape]`, in float64."""
    noise = key.uniform_like(a, samples, neuron.event_ndim).double()
    return a.double() - torch.log(-torch.log(noise))
