"""ReinMax, for binary units."""

from __future__ import annotations

from torch import Tensor

from gradest.estimator import Bias, Draw, Feedback, MonteCarlo, State
from gradest.kernels.reference import leading_mean
from gradest.neuron import Binary, LogisticBinary, Neuron
from gradest_estimators._score import scores


class Reinmax(MonteCarlo):
    """ĝ = ½ (high - low) |b - p| L'(h), b the unit as 0 or 1.

    Its mean is p(1-p)(high - low) times ½ (L'(low) + L'(high)), the trapezoidal rule (Heun's method) for L(high) - L(low):
    exact for quadratic losses, products of units included, and biased for cubic ones. straight_through with
    derivative="sigmoid" is the first-order rule.
    """

    name = "reinmax"
    summary = "straight-through of second order: exact for quadratic losses"
    reference = "Liu, Dong, Liu, Yu, Gao 2023, arXiv 2304.08612"
    needs = frozenset({"grad"})
    capabilities = (LogisticBinary,)

    examples = ({}, {"samples": 3})

    def bias(self, neuron: Neuron) -> Bias:
        """Exact to second order."""
        return Bias.exact_to_order(2)

    def backward(self, draw: Draw, feedback: Feedback, state: State) -> tuple[Tensor, State]:
        """The mean over samples."""
        neuron = draw.neuron
        assert isinstance(neuron, Binary)
        return 0.5 * (neuron.high - neuron.low) * leading_mean(scores(draw).abs() * feedback.get_grad()), state
