"""The score-function estimator with the optimal baseline of each unit."""

from __future__ import annotations

import torch
from pydantic import Field
from torch import Tensor

from gradest.contract.estimator import Draw, Feedback, State
from gradest.contract.neuron import Neuron, event_shape, per_event
from gradest.contract.numerics import leading_mean
from gradest_estimators._score import ScoreFunction, scores


class ReinforceCentered(ScoreFunction):
    """ĝ_i = (L - L̄_i) s_i, with s_i the unit's score and L̄_i = E[s_i² L] / E[s_i²]: unbiased, of least variance per unit.

    Corollary 1 of the source, s_i = h_i - p_i. The weights come out swapped: L̄_i = (1-p_i) E[L | h_i=1] + p_i E[L | h_i=0],
    and with one unit the variance is zero. Both expectations are the source's two moving averages a unit, over the batch and
    over steps, updated only AFTER use, so that the baseline never contains the loss it is subtracted from. The two averages
    start at 0 and their common start-up factor cancels in the ratio; the first step has no baseline.
    """

    name = "reinforce_centered"
    summary = "loss minus each unit's optimal baseline, times score"
    reference = "Bengio, Léonard, Courville 2013, arXiv 1308.3432"
    formula = (
        r"\hat g_i = \bigl(L(h) - \bar L_i\bigr) s_i, \quad \bar L_i = \frac{\mathbb E[s_i^2 L]}{\mathbb "
        r"E[s_i^2]}, \quad s_i = \nabla_{a_i} \log P(h)"
    )

    examples = ({}, {"samples": 3})

    decay: float = Field(0.9, ge=0, lt=1, description="share of the averages that a step keeps")

    def init(self, neuron: Neuron, a: Tensor) -> State:
        """The averages of s² L and of s², `[*event]` each."""
        zeros = a.new_zeros(event_shape(neuron, a))
        return {"numerator": zeros, "denominator": zeros.clone()}

    def backward(self, draw: Draw, feedback: Feedback, state: State) -> tuple[Tensor, State]:
        """Uses the averages, then moves them towards this step's."""
        loss, score = per_event(feedback.get_loss(), draw.neuron), scores(draw)
        numerator, denominator = state["numerator"], state["denominator"]
        tiny = torch.finfo(denominator.dtype).tiny
        baseline = torch.where(denominator > tiny, numerator / denominator.clamp(min=tiny), 0)
        gradient = leading_mean((loss - baseline.to(loss)) * score)
        if not loss.numel():
            return gradient, state
        square = score * score
        return gradient, {
            "numerator": self._move(numerator, square * loss),
            "denominator": self._move(denominator, square),
        }

    def _move(self, average: Tensor, now: Tensor) -> Tensor:
        return self.decay * average + (1 - self.decay) * now.flatten(0, -average.ndim - 1).mean(0).to(average)
