"""The ReinMax estimator."""

from __future__ import annotations

from pydantic import Field
from torch import Tensor

from gradest.contract.estimator import Bias, Draw, Feedback, MonteCarlo, State
from gradest.contract.neuron import LogisticBinary, Neuron, SoftmaxOneHot
from gradest.contract.numerics import leading_mean, sigmoid
from gradest_estimators._one_hot import softmax_vjp
from gradest_estimators._score import LogitEstimator


class ReinMax(LogitEstimator, MonteCarlo):
    """A straight-through estimator that is exact for quadratic losses.

    ĝ = (2 J(π) - ½ J(p)) L'(h), with J(q) = diag q - qqᵀ and π = ½ (softmax(a/τ) + h). For a binary unit, whose outputs
    differ by 1, the factor is 2π(1-π) - ½p(1-p); at τ = 1 it is ½ |h - p|.

    Exact to second order at τ = 1: on a binary unit it is the trapezoidal rule for L(1) - L(0), with half of the
    derivative at either end, so its mean is exact for losses of degree 2 in all units jointly; the same holds for units
    of several classes. Biased for other losses, where it need not be better than `straight_through`: on a cubic loss it
    can be worse. At any other τ it is biased even for linear losses.

    Given h, ĝ has no noise. So no average over noises given h can lower its variance, and a control variate of mean zero
    given h adds its own. ReinMax-Rao and ReinMax-CV of Wang and Bui (2026), arXiv 2603.08257, do both with Gumbel noises,
    at logits for which the mean changes: neither is exact for linear losses any more. docs/results/reinmax.md has their
    bias and variance, and why gradest has neither.

    Introduced by Liu, Dong, Liu, Yu and Gao (2023), Bridging Discrete and Backpropagation: Straight-Through and Beyond,
    arXiv 2304.08612.
    """

    name = "reinmax"
    summary = "straight-through estimator that is exact for quadratic losses"
    reference = "Liu, Dong, Liu, Yu, Gao 2023, arXiv 2304.08612"
    formula = (
        r"\hat g = \bigl(2 J(\pi) - \tfrac12 J(p)\bigr) L'(h), \quad J(q) = \operatorname{diag} q - q "
        r"q^\top, \quad \pi = \tfrac12\bigl(\mathrm{softmax}(a / \tau) + h\bigr)"
    )
    needs = frozenset({"grad"})

    examples = ({}, {"samples": 3}, {"temperature": 1.5})

    temperature: float = Field(1.0, ge=1e-30, le=1e30, description="temperature τ of the softmax in π")

    def bias(self, neuron: Neuron) -> Bias:
        """Return exactness to second order at temperature 1, and `Bias.BIASED` otherwise."""
        return Bias.exact_to_order(2) if self.temperature == 1 else Bias.BIASED

    def backward(self, draw: Draw, feedback: Feedback, state: State) -> tuple[Tensor, State]:
        """Return the mean of the estimate over samples."""
        neuron, a, h, grad = draw.neuron, draw.a, draw.points, feedback.get_grad()
        if isinstance(neuron, SoftmaxOneHot):
            middle = 0.5 * (neuron.probability(a / self.temperature) + h)
            return leading_mean(2 * softmax_vjp(middle, grad) - 0.5 * softmax_vjp(neuron.probability(a), grad)), state
        assert isinstance(neuron, LogisticBinary)
        x, b = a / self.temperature, neuron.is_high(h)
        upper, lower = 0.5 * (sigmoid(x) + b), 0.5 * (sigmoid(-x) + 1 - b)  # π and 1 - π
        slope = 2 * upper * lower - 0.5 * sigmoid(a) * sigmoid(-a)
        return leading_mean(grad * slope) * (neuron.high - neuron.low), state
