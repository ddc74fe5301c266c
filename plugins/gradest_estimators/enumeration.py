"""The exact gradient, as an estimator."""

from __future__ import annotations

import torch
from torch import Tensor

from gradest.contract.estimator import Bias, Draw, Estimator, Feedback, State
from gradest.contract.law import configurations, count_configurations
from gradest.contract.neuron import Discrete, Neuron, event_shape, per_event
from gradest.contract.numerics import leading_sum
from gradest.random import Key
from gradest_estimators._score import scores


class Enumeration(Estimator):
    """ĝ = Σ_h L(h) dP(h)/da over all outputs: no variance, at S^D evaluations for D units of S outputs (at most 2^20).

    The reference that other estimators are held against. Memory: the points, `[S^D, *batch, D]`, three to five times.
    """

    name = "enumeration"
    summary = "every output, weighted with its probability: the exact gradient"
    formula = r"\hat g = \sum_h L(h)\,\nabla_a P(h)"
    needs = frozenset({"loss"})
    capabilities = (Discrete,)

    def accepts(self, neuron: Neuron) -> bool:
        """Whether the unit has finitely many outputs that do not move with a."""
        return isinstance(neuron, Discrete) and neuron.finite

    def bias(self, neuron: Neuron) -> Bias:
        """None, and no variance either."""
        return Bias.NONE

    def evaluations(self, neuron: Neuron, event_shape: tuple[int, ...]) -> int:
        """S^D; raises TooManyPoints past 2^20."""
        values, _ = neuron.law(torch.zeros(event_shape))
        return count_configurations(neuron, event_shape, values.shape[0])

    def forward(self, neuron: Neuron, a: Tensor, key: Key, state: State) -> Draw:
        """Asks for the loss at every configuration of the units; the weights are their probabilities."""
        total = self.evaluations(neuron, event_shape(neuron, a))
        points, weights = configurations(neuron, a, neuron.law(a), 0, total)
        return Draw(neuron, a, key, points, weights)

    def backward(self, draw: Draw, feedback: Feedback, state: State) -> tuple[Tensor, State]:
        """Σ_k P_k (L_k - E[L]) score_k; the mean changes nothing but the rounding error."""
        loss = feedback.get_loss()
        weighted = draw.weights * (loss - leading_sum(draw.weights * loss))
        return leading_sum(per_event(weighted, draw.neuron) * scores(draw)), state
