"""The DenseMixer estimator for routers."""

from __future__ import annotations

import torch
from torch import Tensor

from gradest.contract.estimator import Bias, Draw, Feedback, MonteCarlo, State
from gradest.contract.neuron import Neuron, TopGates
from gradest.contract.numerics import leading_mean
from gradest_estimators._one_hot import softmax_vjp


class DenseMixer(MonteCarlo):
    """The derivative of the loss at the k open gates, passed back as if all n were open.

    ĝ = L'(h) (diag p - ppᵀ) with p = softmax(a + s z) over all n items, at the noise z of h: a straight-through estimator, for
    which choosing the k largest is the identity. L'(h) has an entry for each closed gate as well: what the loss would change
    by if it opened. A mixture of experts therefore computes all of them, which is what the method pays for its gradient;
    `held_noise` takes the derivatives of the open gates alone.

    It estimates E[L'(h) dp/da]. Biased for k < n, even for linear losses, for which it is the gradient of E[L(p)] in place of
    E[L(h)]. With k = n it is `held_noise`, and unbiased.

    In the paper p has no noise, and the gates are p on the k largest, not divided by their sum; here both follow the unit.
    On `categorical` the same idea is `straight_through` with derivative="sigmoid".

    Introduced by Yao, Cui, Zhang, Liu, Hao, Zhao, Liu, Liu, Liu and Shang (2025), DenseMixer: Improving MoE Post-Training
    with Precise Router Gradient.
    """

    name = "dense_mixer"
    summary = "dL/dh at the open gates of a router, passed through the softmax of all gates"
    reference = "Yao et al. 2025, DenseMixer"
    formula = r"\hat g = L'(h)\,(\operatorname{diag} p - p p^\top), \quad p = \mathrm{softmax}(a + s z)"
    needs = frozenset({"grad"})
    capabilities = (TopGates,)

    examples = ({}, {"samples": 3})

    def bias(self, neuron: Neuron) -> Bias:
        """Return `Bias.BIASED`: the softmax of all gates has another mean than the gates."""
        return Bias.BIASED

    def backward(self, draw: Draw, feedback: Feedback, state: State) -> tuple[Tensor, State]:
        """Return the mean over samples of L'(h) times the derivative of the softmax of all gates."""
        assert isinstance(draw.neuron, TopGates)
        p = torch.softmax(draw.neuron.perturbed(draw.a, draw.noise()), -1)
        return leading_mean(softmax_vjp(p, feedback.get_grad().to(p.dtype))).to(draw.a.dtype), state
