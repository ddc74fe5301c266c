"""The score function for the entropic risk, by leave-one-out."""

from __future__ import annotations

import math
from typing import Self

import torch
from pydantic import Field, model_validator
from torch import Tensor

from gradest.contract.estimator import Bias, Cost, Draw, State
from gradest.contract.neuron import Discrete, Neuron
from gradest.contract.score_function import ScoreFunction
from gradest.contract.target import Risk, Target


class EntropicRisk(ScoreFunction):
    """The score function for the entropic risk (1/β) log E[exp(β L)], each sample credited with what it adds to the others.

    ĝ = Σ_k (V - V_k) d log P(h_k)/da, with V = (1/β) log (1/K) Σ_j exp(β L_j), and V_k the same of the other K - 1 samples. The
    risk is E[L] with a weight on large losses that grows with β, or on small ones for β below 0.

    Biased for the risk, since no fixed number of samples has an unbiased estimate of it. ĝ is unbiased for the gradient of E[V],
    because V_k does not depend on h_k, and E[V] differs from the risk by -Var(exp(β L))/(2 β K E[exp(β L)]²) + O(1/K²). So the
    bias falls as 1/K. It is small where β L varies by 1 or less; where it varies by 20, a few samples hold all the weight, and
    no affordable K helps.

    It takes units of finitely many outputs. Of counts without a limit the risk is infinite for a loss that grows as h log h or
    faster, as that of h² for `poisson`.

    With β = -1 it is `vimco` with the arithmetic baseline, whose target is E[V] itself. The derivative of V in the losses is a
    softmax of β L, by which a loss's own parameters are trained.

    The risk goes back to Howard and Matheson (1972), Risk-Sensitive Markov Decision Processes, Management Science 18. The
    leave-one-out credit is that of Mnih and Rezende (2016), Variational Inference for Monte Carlo Objectives, arXiv 1602.06725;
    for β other than -1 it is gradest's own.
    """

    name = "entropic_risk"
    summary = "gradient of the entropic risk log E[exp(β L)]/β, each sample credited with what it adds to the others"
    reference = "Howard, Matheson 1972; Mnih, Rezende 2016, arXiv 1602.06725"
    formula = (
        r"\hat g = \sum_k (V - V_k)\,\nabla_a \log P(h_k), \quad V = \frac1\beta \log \frac1K \sum_j e^{\beta L_j}"
    )

    examples = ({}, {"samples": 2, "aversion": -0.5})

    samples: int = Field(4, ge=2, description="number K of samples")
    aversion: float = Field(
        1.0,
        allow_inf_nan=False,
        description="aversion β to large losses; not 0, and below 0 for a taste for small ones",
    )

    @model_validator(mode="after")
    def _refuse_no_aversion(self) -> Self:
        if self.aversion == 0:
            raise ValueError("aversion cannot be 0, with which the risk is E[L]: use rloo")
        return self

    def accepts(self, neuron: Neuron) -> bool:
        """Return whether the neuron has finitely many outputs: with others the risk of a loss may be infinite."""
        return isinstance(neuron, Discrete) and neuron.finite

    def target(self) -> Target:
        """Return the entropic risk."""
        return Risk(self.aversion)

    def bias(self, neuron: Neuron) -> Bias:
        """Return `Bias.BIASED`, by a term of the order 1/K."""
        return Bias.BIASED

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
        return Target(len(loss)).combine(-self.aversion * loss) / -self.aversion

    def credit(self, loss: Tensor, state: State, features: Tensor | None = None) -> tuple[Tensor, State]:
        """Return V - V_k."""
        loss = loss - (loss.amax(0) if self.aversion > 0 else loss.amin(0))  # a shift of all losses cancels in V - V_k
        value = self.combine(loss)
        others = (torch.cat([loss[:k], loss[k + 1 :]]) for k in range(len(loss)))  # one at a time: K of them are large
        return torch.stack([value - self.combine(rest) for rest in others]), state
