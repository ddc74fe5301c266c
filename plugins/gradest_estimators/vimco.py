"""VIMCO: the score function for multi-sample bounds."""

from __future__ import annotations

from typing import Literal

import torch
from pydantic import Field
from torch import Tensor

from gradest.contract.estimator import Draw, Feedback, State, Target
from gradest.contract.neuron import per_event
from gradest.contract.numerics import leading_sum
from gradest_estimators._score import ScoreFunction, scores


class Vimco(ScoreFunction):
    """ĝ = Σ_k (V - V_k) d log P(h_k)/da, V = -log (1/K) Σ_j exp(-L_j): the gradient of E[V], not of E[L]. Unbiased for that.

    V_k is V with L_k replaced by a mean of the other losses, so it does not depend on h_k and shifts no mean. "geometric" takes
    the mean of the losses themselves, the logarithm of the geometric mean of the weights exp(-L); "arithmetic" the mean of the
    weights. With L = -log of an importance weight, E[V] is the negative of the bound that importance-weighted autoencoders
    maximise; what depends on a in L itself, and L's own parameters, get their gradient from the value, weighted by a softmax.
    """

    name = "vimco"
    summary = "the bound of K samples, each credited with what it adds to the others"
    reference = "Mnih, Rezende 2016, arXiv 1602.06725"
    formula = r"\hat g = \sum_k (V - V_k)\,\nabla_a \log P(h_k), \quad V = -\log \frac1K \sum_j e^{-L_j}"

    examples = ({}, {"baseline": "arithmetic"})

    samples: int = Field(2, ge=2, description="K")
    baseline: Literal["geometric", "arithmetic"] = Field("geometric", description="the mean that stands for a sample")

    def target(self) -> Target:
        """The bound of K samples."""
        return Target(self.samples)

    def value(self, draw: Draw, loss: Tensor) -> Tensor:
        """V, `[*batch]`."""
        return self.target().combine(loss)

    def backward(self, draw: Draw, feedback: Feedback, state: State) -> tuple[Tensor, State]:
        """Σ_k (V - V_k) score_k."""
        loss = feedback.get_loss()
        loss = loss - loss.amin(0)  # the same for all of them, which V - V_k does not see
        value = self.target().combine(loss)
        credit = torch.stack([value - self._without(loss, k) for k in range(self.samples)])
        return leading_sum(per_event(credit, draw.neuron) * scores(draw)), state

    def _without(self, loss: Tensor, k: int) -> Tensor:
        """V_k."""
        others = torch.cat([loss[:k], loss[k + 1 :]])
        if self.baseline == "arithmetic":
            # the mean of the weights in the place of a weight changes no mean: V_k is the bound of the others alone
            return Target(self.samples - 1).combine(others)
        return self.target().combine(torch.cat([others, leading_sum(others)[None] / len(others)]))
