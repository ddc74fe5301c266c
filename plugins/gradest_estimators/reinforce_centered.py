"""The score-function estimator with the optimal baseline of each unit."""

from __future__ import annotations

import torch
from pydantic import Field
from torch import Tensor

from gradest.contract.estimator import Bias, Draw, Feedback, MonteCarlo, State
from gradest.contract.neuron import Discrete, Neuron, event_shape, per_event
from gradest.contract.numerics import leading_mean
from gradest_estimators._score import scores


class ReinforceCentered(MonteCarlo):
    """The score function with, for each unit, the baseline that gives the least variance.

    ĝ_i = (L - L̄_i) s_i, with s_i the score of unit i and L̄_i = E[s_i² L] / E[s_i²]. For a Bernoulli unit
    s_i = h_i - p_i, and the weights in L̄_i are swapped: L̄_i = (1-p_i) E[L | h_i=1] + p_i E[L | h_i=0]. With a single
    unit the exact L̄_i leaves no variance.

    Unbiased for every loss: the score has mean zero, and the baseline does not depend on the samples of this step. Both
    expectations are moving averages for each unit, over the batch and over steps, and they are updated only AFTER their
    use. Both start at 0; the start-up factor that they share cancels in the ratio. The first step has no baseline.

    Corollary 1 of Bengio, Léonard and Courville (2013), Estimating or Propagating Gradients Through Stochastic Neurons
    for Conditional Computation, arXiv 1308.3432.
    """

    name = "reinforce_centered"
    summary = "score function with the optimal baseline of each unit"
    reference = "Bengio, Léonard, Courville 2013, arXiv 1308.3432"
    formula = (
        r"\hat g_i = \bigl(L(h) - \bar L_i\bigr) s_i, \quad \bar L_i = \frac{\mathbb E[s_i^2 L]}{\mathbb "
        r"E[s_i^2]}, \quad s_i = \nabla_{a_i} \log P(h)"
    )

    examples = ({}, {"samples": 3})

    needs = frozenset({"loss"})
    capabilities = (Discrete,)

    decay: float = Field(0.9, ge=0, lt=1, description="share of the moving averages that a step keeps")

    def bias(self, neuron: Neuron) -> Bias:
        """Return `Bias.NONE`: the score has mean zero, and the baseline does not depend on this step's samples."""
        return Bias.NONE

    def init(self, neuron: Neuron, a: Tensor) -> State:
        """Return the averages of s² L and of s², `[*event]` each, all 0."""
        zeros = a.new_zeros(event_shape(neuron, a), dtype=torch.float64)  # losses may have more digits than a
        return {"numerator": zeros, "denominator": zeros.clone()}

    def backward(self, draw: Draw, feedback: Feedback, state: State) -> tuple[Tensor, State]:
        """Use the averages for the baseline, then move them towards this step's values."""
        loss, score = per_event(feedback.get_loss(), draw.neuron), scores(draw)
        numerator, denominator = state["numerator"], state["denominator"]
        tiny = torch.finfo(denominator.dtype).tiny
        baseline = torch.where(denominator > tiny, numerator / denominator.clamp(min=tiny), 0)
        gradient = leading_mean((loss - baseline.to(loss)) * score)
        if not loss.numel():
            return gradient, state
        loss, square = loss.double(), score.double() ** 2
        return gradient, {
            "numerator": self._update_average(numerator, square * loss),
            "denominator": self._update_average(denominator, square),
        }

    def _update_average(self, average: Tensor, now: Tensor) -> Tensor:
        return self.decay * average + (1 - self.decay) * now.flatten(0, -average.ndim - 1).mean(0).to(average)
