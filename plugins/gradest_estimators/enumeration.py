"""The exact gradient as an estimator."""

from __future__ import annotations

import torch
from torch import Tensor

from gradest.contract.estimator import Bias, Draw, Estimator, Feedback, State
from gradest.contract.law import configurations, count_configurations
from gradest.contract.neuron import Discrete, Neuron, event_shape, per_event
from gradest.contract.numerics import drop_impossible, leading_sum
from gradest.random import Key
from gradest_estimators._score import scores


class Enumeration(Estimator):
    """The exact gradient: the loss at every output, weighted with the derivative of the output's probability.

    ĝ = Σ_h L(h) dP(h)/da. It is unbiased for every loss and has no variance, and other estimators are compared against
    it. For D units of S outputs it takes K = S^D evaluations, at most 2^20. Memory: three to five times the points,
    `[S^D, *batch, *event]`.
    """

    name = "enumeration"
    summary = "the exact gradient: the loss at every output, weighted with its probability"
    formula = r"\hat g = \sum_h L(h)\,\nabla_a P(h)"
    needs = frozenset({"loss"})
    capabilities = (Discrete,)

    def accepts(self, neuron: Neuron) -> bool:
        """Return whether the unit has finitely many outputs, and they do not depend on a."""
        return isinstance(neuron, Discrete) and neuron.finite

    def bias(self, neuron: Neuron) -> Bias:
        """Return `Bias.NONE`: every output has the weight of its exact probability, so there is no variance either."""
        return Bias.NONE

    def evaluations(self, neuron: Neuron, event_shape: tuple[int, ...]) -> int:
        """Return K = S^D; raise TooManyPoints if it exceeds 2^20."""
        count_configurations(neuron, event_shape)  # refuses too many before the law takes memory
        values, _ = neuron.law(torch.zeros(event_shape, device="cpu"))
        return count_configurations(neuron, event_shape, values.shape[0])

    def forward(self, neuron: Neuron, a: Tensor, key: Key, state: State) -> Draw:
        """Ask for the loss at every configuration of the units; the weights are their probabilities."""
        total = self.evaluations(neuron, event_shape(neuron, a))
        points, weights = configurations(neuron, a, neuron.law(a), 0, total)
        return Draw(neuron, a, key, points, weights)

    def value_in(self, a: Tensor, draw: Draw, loss: Tensor, state: State) -> Tensor:
        """Return E[L], by which expect can be differentiated any number of times."""
        _, weights = configurations(draw.neuron, a, draw.neuron.law(a), 0, len(loss))
        loss = drop_impossible(loss, draw.weights)
        centre = leading_sum(draw.weights * loss).detach()  # changes nothing but the rounding error, as in backward
        return centre + leading_sum(weights * (loss - centre))

    def backward(self, draw: Draw, feedback: Feedback, state: State) -> tuple[Tensor, State]:
        """Return Σ_k P_k (L_k - E[L]) score_k.

        Subtracting E[L] changes nothing but the rounding error, because Σ_k P_k score_k = 0.
        """
        loss = drop_impossible(feedback.get_loss(), draw.weights)
        loss = loss - loss[:1]  # the weights sum to 1 only up to rounding
        weighted = draw.weights * (loss - leading_sum(draw.weights * loss))
        return leading_sum(per_event(weighted, draw.neuron) * scores(draw)), state
