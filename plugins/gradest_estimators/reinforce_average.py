"""The score-function estimator with a moving average of earlier losses as its baseline."""

from __future__ import annotations

import torch
from pydantic import Field
from torch import Tensor

from gradest.contract.estimator import State
from gradest.contract.neuron import Neuron
from gradest.contract.score_function import ScoreFunction


class ReinforceAverage(ScoreFunction):
    """The score function with an exponential moving average m of the losses of EARLIER steps as its baseline.

    ĝ = (L - m)(d log P(h)/da).

    Unbiased for every loss: m does not depend on the samples of this step, and the score has mean zero. So m is updated
    only after its use. An implementation that adds the present loss to m first keeps only the share `decay` of the
    gradient. The average is divided by the weight that it has gathered, so that the first losses count in full. Before
    the first step m is 0.

    Baselines of this kind go back to Williams (1992), Simple Statistical Gradient-Following Algorithms for
    Connectionist Reinforcement Learning, Machine Learning 8.
    """

    name = "reinforce_average"
    summary = "score function with a moving average of earlier losses as baseline"
    reference = "Williams 1992"
    formula = r"\hat g = \bigl(L(h) - m\bigr)\nabla_a \log P(h), \quad m \leftarrow \beta m + (1 - \beta) L"

    examples = ({}, {"samples": 3})

    decay: float = Field(0.9, ge=0, lt=1, description="share of the moving average that a step keeps")

    def init(self, neuron: Neuron, a: Tensor) -> State:
        """Return an empty average: its weighted total and its weight, both 0."""
        return _empty_average(a)

    def credit_state(self, loss: Tensor, features: Tensor | None) -> State:
        """Return an empty average."""
        return _empty_average(loss)

    def credit(self, loss: Tensor, state: State, features: Tensor | None = None) -> tuple[Tensor, State]:
        """Return (L_k - m) / K, and m moved towards the mean loss of this step."""
        total, weight = state["total"], state["weight"]
        weights = (loss - self.average(state).to(loss)) / len(loss)
        if not loss.numel():
            return weights, state
        keep, new = self.decay, 1 - self.decay
        return weights, {"total": keep * total + new * loss.mean().to(total), "weight": keep * weight + new}

    def average(self, state: State) -> Tensor:
        """Return m, which is 0 before the first step."""
        total, weight = state["total"], state["weight"]
        return torch.where(weight > 0, total / weight.clamp(min=torch.finfo(weight.dtype).tiny), 0)


def _empty_average(like: Tensor) -> State:
    zero = like.new_zeros((), dtype=torch.float64)  # losses may have more digits than the pre-activations
    return {"total": zero, "weight": zero.clone()}
