"""MuProp."""

from __future__ import annotations

import torch
from torch import Tensor

from gradest.contract.estimator import Bias, Draw, Feedback, State
from gradest.contract.neuron import Neuron, Relaxable, per_event
from gradest.random import Key
from gradest_estimators._score import OfLogits, event_sum, mean_backward


class Muprop(OfLogits):
    """ĝ = (L(h) - L(m) - L'(m)ᵀ(h - m)) d log P(h)/da + L'(m) dm/da, m = E[h]: the score with a first-order control variate.

    Unbiased, and for a linear loss without variance. It asks for L at m, between the outputs of the unit (for a one-hot one
    inside the simplex), and for its derivative there, so the loss has to make sense there.
    """

    name = "muprop"
    summary = "score minus its first-order expansion at the mean"
    reference = "Gu, Levine, Sutskever, Mnih 2015, arXiv 1511.05176"
    formula = (
        r"\hat g = \bigl(L(h) - L(m) - L'(m)^\top (h - m)\bigr)\nabla_a \log P(h) + L'(m)\,\frac{dm}{da}, "
        r"\quad m = \mathbb E[h]"
    )
    needs = frozenset({"loss", "grad"})
    off_support = True

    def bias(self, neuron: Neuron) -> Bias:
        """None."""
        return Bias.NONE

    def evaluations(self, neuron: Neuron, event_shape: tuple[int, ...]) -> int:
        """2."""
        return 2

    def forward(self, neuron: Neuron, a: Tensor, key: Key, state: State) -> Draw:
        """Asks at a sample and at the mean; the value is the loss at the sample."""
        points = torch.cat([neuron.sample(key, a, 1), neuron.mean(a)[None]])
        return Draw(neuron, a, key, points, a.new_tensor([1.0, 0.0]))

    def backward(self, draw: Draw, feedback: Feedback, state: State) -> tuple[Tensor, State]:
        """What the expansion leaves, times score, and the expansion's own gradient."""
        neuron, (h, mean), loss, grad = draw.neuron, draw.points, feedback.get_loss(), feedback.get_grad()[1]
        assert isinstance(neuron, Relaxable)
        left = loss[0] - loss[1] - event_sum(grad * (h - mean), neuron)
        return per_event(left, neuron) * neuron.score(h, draw.a) + mean_backward(neuron, draw.a, grad), state
