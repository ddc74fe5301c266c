"""The SparseMixer estimator for routers."""

from __future__ import annotations

from typing import Literal

import torch
from pydantic import Field
from torch import Tensor

from gradest.contract.estimator import Bias, Draw, Feedback, MonteCarlo, State
from gradest.contract.neuron import Neuron, SoftmaxOneHot
from gradest.contract.numerics import leading_mean
from gradest.random import Key


class SparseMixer(MonteCarlo):
    """The score of a class times the rise of the loss from 0 to its output, which one derivative on the way estimates.

    ĝ = (L'(m h)·h) d log P(h)/da for a one-hot unit, with a random m between 0 and 1. Since the score has mean 0,
    dE[L]/da = E[(L(h) - L(0)) d log P(h)/da], and L(h) - L(0) is the integral of L'(m h)·h over m. The option `method` is the
    rule for that integral:

    "heun": m is 1 with probability ¼, and else ⅓: the weights of Heun's third-order method, exact for a cubic loss of one
    unit. This is version 2 of the method.

    "midpoint": m = ½, exact for a quadratic loss of one unit.

    So a mixture of experts computes only the expert that was chosen, and scales its output by m while it trains; for
    L(0) none is computed. The unit's gate value is 1. What the loss owes to a factor p, which it multiplies with h itself, it
    differentiates as always.

    It estimates the gradient of E[L(h)] exactly for linear losses. m is drawn for each unit, and L' is taken with all units
    scaled, so that products of units make it biased, as do losses of higher degree. The value is biased: it is the mean
    loss at m h.
    The sources treat the likeliest class apart, at m = 1; here no class is.

    Introduced by Liu, Gao and Chen (2023), Sparse Backpropagation for MoE Training, arXiv 2310.00811; version 2 by Liu et
    al. (2024), GRIN: GRadient-INformed MoE, arXiv 2409.12136.
    """

    name = "sparse_mixer"
    summary = "score times dL/dh along h, at a point between 0 and h: for routers that compute one expert"
    reference = "Liu, Gao, Chen 2023, arXiv 2310.00811; Liu et al. 2024, arXiv 2409.12136"
    formula = (
        r"\hat g = \bigl(L'(m h) \cdot h\bigr)\,\nabla_a \log P(h), \quad m = 1 \ \text{with probability}\ \tfrac14, \ "
        r"\tfrac13 \ \text{else}"
    )
    needs = frozenset({"grad"})
    capabilities = (SoftmaxOneHot,)
    off_support = True

    examples = ({}, {"method": "midpoint"}, {"samples": 3})

    method: Literal["heun", "midpoint"] = Field(
        "heun", description="rule for the integral of the derivative from 0 to h"
    )

    def bias(self, neuron: Neuron) -> Bias:
        """Return exactness to first order: for a linear loss L' is the same everywhere."""
        return Bias.exact_to_order(1)

    def forward(self, neuron: Neuron, a: Tensor, key: Key, state: State) -> Draw:
        """Ask for the loss at m h, for independent h and m."""
        h = neuron.sample(key, a, self.samples)
        if self.method == "heun":
            u = key.with_stream(1).uniform_like(a[..., 0], self.samples)[..., None]
            share = torch.where(u < 0.25, 1.0, 1 / 3).to(a.dtype)
        else:
            share = torch.full_like(h[..., :1], 0.5)
        return Draw(neuron, a, key, share * h)

    def backward(self, draw: Draw, feedback: Feedback, state: State) -> tuple[Tensor, State]:
        """Return the mean over samples of the derivative along h times the score."""
        assert isinstance(draw.neuron, SoftmaxOneHot)
        h = (draw.points > 0).to(draw.a.dtype)
        along = (feedback.get_grad() * h).contiguous().sum(-1, keepdim=True)
        return leading_mean(along * draw.neuron.score(h, draw.a)), state
