"""VIMCO: the score function for multi-sample bounds."""

from __future__ import annotations

import math
from typing import Literal

import torch
from pydantic import Field
from torch import Tensor

from gradest.contract.estimator import Cost, Draw, State
from gradest.contract.neuron import Neuron
from gradest.contract.numerics import leading_sum
from gradest.contract.score_function import ScoreFunction
from gradest.contract.target import Target


class Vimco(ScoreFunction):
    """The score function for the bound of K samples, with leave-one-out baselines.

    ĝ = Σ_k (V - V_k) d log P(h_k)/da, with V = -log (1/K) Σ_j exp(-L_j). It estimates the gradient of E[V], not that of
    E[L].

    Unbiased for E[V]: V_k is V with L_k replaced by a mean of the other losses, so it does not depend on h_k.
    "geometric" takes the mean of the losses, which is the logarithm of the geometric mean of the weights exp(-L), up to
    the sign; "arithmetic" takes the mean of the weights.

    With L = -log of an importance weight, E[V] is the negative of the bound that importance-weighted autoencoders
    maximise. The gradient of what depends on a inside L itself, and that of L's own parameters, comes from
    differentiating the value; it weights the samples with a softmax of -L.

    Introduced by Mnih and Rezende (2016), Variational Inference for Monte Carlo Objectives, arXiv 1602.06725.
    """

    name = "vimco"
    summary = "gradient of the bound of K samples, each credited with what it adds to the others"
    reference = "Mnih, Rezende 2016, arXiv 1602.06725"
    formula = r"\hat g = \sum_k (V - V_k)\,\nabla_a \log P(h_k), \quad V = -\log \frac1K \sum_j e^{-L_j}"

    examples = ({}, {"baseline": "arithmetic"})

    samples: int = Field(2, ge=2, description="number K of samples")
    baseline: Literal["geometric", "arithmetic"] = Field(
        "geometric", description="mean of the other samples that replaces a sample in its baseline"
    )

    def target(self) -> Target:
        """Return the bound of K samples as the target."""
        return Target(self.samples)

    def cost(self, neuron: Neuron, event: tuple[int, ...], batch: tuple[int, ...]) -> Cost:
        """Return the cost of a draw, in which each loss is left out once."""
        return super().cost(neuron, event, batch) + Cost(0, self.samples**2 * math.prod(batch))

    def credit_cost(self, loss: Tensor, features: Tensor | None) -> Cost:
        """Return the cost of leaving each loss out once."""
        return super().credit_cost(loss, features) + Cost(0, len(loss) * loss.numel())

    def value(self, draw: Draw, loss: Tensor) -> Tensor:
        """Return V, `[*batch]`."""
        return self.combine(loss)

    def combine(self, loss: Tensor) -> Tensor:
        """Return V, `[*batch]`."""
        return Target(len(loss)).combine(loss)

    def credit(self, loss: Tensor, state: State, features: Tensor | None = None) -> tuple[Tensor, State]:
        """Return V - V_k."""
        loss = loss - loss.amin(0)  # a shift of all losses cancels in V - V_k
        value = self.combine(loss)
        return torch.stack([value - self._leave_one_out_bound(loss, k) for k in range(len(loss))]), state

    def _leave_one_out_bound(self, loss: Tensor, k: int) -> Tensor:
        """Return V_k, `[*batch]`."""
        others = torch.cat([loss[:k], loss[k + 1 :]])
        if self.baseline == "arithmetic":
            # a weight replaced by the mean of the others does not change the mean, so V_k is the bound of the others
            return Target(self.samples - 1).combine(others)
        return self.combine(torch.cat([others, leading_sum(others)[None] / len(others)]))
