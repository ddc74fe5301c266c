"""The score-function estimator with the average of earlier losses as its baseline."""

from __future__ import annotations

import torch
from pydantic import Field
from torch import Tensor

from gradest.contract.estimator import Draw, Feedback, State
from gradest.contract.neuron import Neuron
from gradest_estimators._score import ScoreFunction, weighted_score


class ReinforceAverage(ScoreFunction):
    """ĝ = (L - m)(d log P(h)/da), m an exponential moving average of the losses of EARLIER steps: unbiased.

    m is updated after use. An implementation that lets the current loss into m first keeps only `decay` of the gradient. The
    average starts empty (m = 0) and is divided by the weight it has gathered, so the first losses count in full.
    """

    name = "reinforce_average"
    summary = "loss minus the moving average of earlier losses, times score"
    reference = "Williams 1992"
    formula = r"\hat g = \bigl(L(h) - m\bigr)\nabla_a \log P(h), \quad m \leftarrow \beta m + (1 - \beta) L"

    examples = ({}, {"samples": 3})

    decay: float = Field(0.9, ge=0, lt=1, description="share of the average that a step keeps")

    def init(self, neuron: Neuron, a: Tensor) -> State:
        """An empty average: its weighted total and its weight."""
        return {"total": a.new_zeros(()), "weight": a.new_zeros(())}

    def backward(self, draw: Draw, feedback: Feedback, state: State) -> tuple[Tensor, State]:
        """Uses the average, then moves it towards the mean loss of this step."""
        loss, total, weight = feedback.get_loss(), state["total"], state["weight"]
        gradient = weighted_score(draw, (loss - self.average(state).to(loss)) / self.samples)
        if not loss.numel():
            return gradient, state
        keep, new = self.decay, 1 - self.decay
        return gradient, {"total": keep * total + new * loss.mean().to(total), "weight": keep * weight + new}

    def average(self, state: State) -> Tensor:
        """m, 0 before the first step."""
        total, weight = state["total"], state["weight"]
        return torch.where(weight > 0, total / weight.clamp(min=torch.finfo(weight.dtype).tiny), 0)
