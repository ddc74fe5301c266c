"""Backpropagation through the smooth part of a neuron, plus the score of its discrete part."""

from __future__ import annotations

from torch import Tensor

from gradest.contract.estimator import Bias, Draw, Feedback, MonteCarlo, State
from gradest.contract.neuron import Differentiable, Neuron, Scored, per_event
from gradest.contract.numerics import leading_mean


class PathwiseScore(MonteCarlo):
    """The derivative with the discrete choice b held, plus the loss times the score of that choice.

    ĝ = dL/dh · dh/da + L · d log P(b)/da, with b held in dh/da. For `stochastic_times_smooth`, with r = √p, the second
    term is L (b - r)/(r(1-r)) dr/da = L (b - r)(1 + r)/2.

    Unbiased for every loss that is continuous and differentiable almost everywhere: the terms are those of the product rule
    on Σ_b P(b) L(h(b, a)).

    An instance of Schulman, Heess, Weber and Abbeel (2015), Gradient Estimation Using Stochastic Computation Graphs,
    arXiv 1506.05254.
    """

    name = "pathwise_score"
    summary = "held_noise plus the score of the discrete choice, which makes it unbiased"
    reference = "Schulman, Heess, Weber, Abbeel 2015, arXiv 1506.05254"
    formula = r"\hat g = L'(h)\,\frac{\partial h}{\partial a}\Big|_b + L(h)\,\nabla_a \log P(b)"
    needs = frozenset({"loss", "grad"})
    capabilities = (Differentiable, Scored)

    examples = ({}, {"samples": 3})

    def bias(self, neuron: Neuron) -> Bias:
        """Return `Bias.NONE_IF_CONTINUOUS`, by the product rule on Σ_b P(b) L(h(b, a)), in which L(h(b, a)) moves with a."""
        return Bias.NONE_IF_CONTINUOUS

    def backward(self, draw: Draw, feedback: Feedback, state: State) -> tuple[Tensor, State]:
        """Return the mean over samples of the sum of both terms."""
        neuron, a = draw.neuron, draw.a
        path = neuron.pullback(draw.key, a, draw.points, feedback.get_grad())
        score = neuron.score(draw.points, a)  # type: ignore[attr-defined]  # `capabilities` says Scored
        return leading_mean(path + per_event(feedback.get_loss(), neuron) * score), state
