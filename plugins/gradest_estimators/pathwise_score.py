"""Backpropagation through the smooth part of a neuron, and the score of its discrete part."""

from __future__ import annotations

from torch import Tensor

from gradest.contract.estimator import Bias, Draw, Feedback, MonteCarlo, State
from gradest.contract.neuron import Differentiable, Neuron, Scored, per_event
from gradest.contract.numerics import leading_mean


class PathwiseScore(MonteCarlo):
    """ĝ = dL/dh · dh/da with the choice b held, + L · d log P(b)/da: unbiased.

    By the product rule on Σ_b P(b) L(h(b, a)). For stochastic_times_smooth, r = √p, the second term is
    L (b - r)/(r(1-r)) dr/da = L (b - r)(1 + r)/2.
    """

    name = "pathwise_score"
    summary = "held_noise plus the score of the discrete choice: unbiased"
    reference = "Schulman, Heess, Weber, Abbeel 2015, arXiv 1506.05254"
    formula = r"\hat g = L'(h)\,\frac{\partial h}{\partial a}\Big|_b + L(h)\,\nabla_a \log P(b)"
    needs = frozenset({"loss", "grad"})
    capabilities = (Differentiable, Scored)

    examples = ({}, {"samples": 3})

    def bias(self, neuron: Neuron) -> Bias:
        """None."""
        return Bias.NONE

    def backward(self, draw: Draw, feedback: Feedback, state: State) -> tuple[Tensor, State]:
        """The mean over samples of both terms."""
        neuron, a = draw.neuron, draw.a
        path = neuron.pullback(draw.key, a, draw.points, feedback.get_grad())
        score = neuron.score(draw.points, a)  # type: ignore[attr-defined]  # `capabilities` says Scored
        return leading_mean(path + per_event(feedback.get_loss(), neuron) * score), state
