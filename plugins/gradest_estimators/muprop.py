"""The MuProp estimator."""

from __future__ import annotations

import torch
from torch import Tensor

from gradest.contract.estimator import Bias, Draw, Feedback, State
from gradest.contract.neuron import Discrete, Neuron, per_event
from gradest.random import Key
from gradest_estimators._score import MeanEstimator, event_sum, mean_vjp


class Muprop(MeanEstimator):
    """The score function with the first-order expansion of the loss at the mean as its control variate.

    ĝ = (L(h) - L(m) - L'(m)ᵀ(h - m)) d log P(h)/da + L'(m) dm/da, with m = E[h].

    Unbiased for every loss: the expansion times the score has the mean L'(m) dm/da, which is added back. For a linear
    loss there is no variance. L and its derivative are evaluated at m, which lies between the outputs of the unit
    (inside the simplex for a one-hot unit, and at the marginals for a subset), so the loss must be defined there.

    Introduced by Gu, Levine, Sutskever and Mnih (2015), MuProp: Unbiased Backpropagation for Stochastic Neural
    Networks, arXiv 1511.05176.
    """

    name = "muprop"
    summary = "score function with the loss's first-order expansion at the mean as control variate"
    reference = "Gu, Levine, Sutskever, Mnih 2015, arXiv 1511.05176"
    formula = (
        r"\hat g = \bigl(L(h) - L(m) - L'(m)^\top (h - m)\bigr)\nabla_a \log P(h) + L'(m)\,\frac{dm}{da}, "
        r"\quad m = \mathbb E[h]"
    )
    needs = frozenset({"loss", "grad"})
    off_support = True

    def bias(self, neuron: Neuron) -> Bias:
        """Return `Bias.NONE`: unbiased for every loss, because the mean of what the expansion takes away is added back."""
        return Bias.NONE

    def evaluations(self, neuron: Neuron, event_shape: tuple[int, ...]) -> int:
        """Return K = 2."""
        return 2

    def forward(self, neuron: Neuron, a: Tensor, key: Key, state: State) -> Draw:
        """Ask for the loss at a sample and at the mean; the value is the loss at the sample."""
        points = torch.cat([neuron.sample(key, a, 1), neuron.mean(a)[None]])
        return Draw(neuron, a, key, points, a.new_tensor([1.0, 0.0]))

    def backward(self, draw: Draw, feedback: Feedback, state: State) -> tuple[Tensor, State]:
        """Return the remainder of the expansion times the score, plus the gradient of the expansion."""
        neuron, (h, mean), loss, grad = draw.neuron, draw.points, feedback.get_loss(), feedback.get_grad()[1]
        assert isinstance(neuron, Discrete)
        remainder = loss[0] - loss[1] - event_sum(grad * (h - mean), neuron)
        return per_event(remainder, neuron) * neuron.score(h, draw.a) + mean_vjp(neuron, draw.a, grad), state
