"""Local expectation gradients."""

from __future__ import annotations

from torch import Tensor

from gradest.contract.estimator import Draw, Feedback, State
from gradest_estimators._binary import AllFlips, loss_difference, sigmoid_derivative


class LocalExpectation(AllFlips):
    """Each unit summed out exactly, given a sample of the others.

    ĝ_i = p_i(1-p_i) (L(h with unit i high) - L(h with unit i low)).

    Unbiased for every loss: given the other units, ĝ_i is the exact derivative. It has no variance for a loss that is a
    sum of functions of single units. It takes K = D + 1 evaluations for D units, and holds all their points,
    `[D + 1, *batch, D]`, once.

    Introduced by Titsias and Lázaro-Gredilla (2015), Local Expectation Gradients for Black Box Variational Inference,
    arXiv 1503.01494.
    """

    name = "local_expectation"
    summary = "each unit summed out exactly, given a sample of the others"
    reference = "Titsias, Lázaro-Gredilla 2015, arXiv 1503.01494"
    formula = r"\hat g_i = p_i (1 - p_i)\bigl(L(h_{i \to 1}) - L(h_{i \to 0})\bigr)"

    def backward(self, draw: Draw, feedback: Feedback, state: State) -> tuple[Tensor, State]:
        """Return p(1-p) times the loss difference between high and low, for each unit."""
        loss = feedback.get_loss()
        difference = loss_difference(draw.neuron, draw.points[0], loss[0][..., None], loss[1:].movedim(0, -1))
        return sigmoid_derivative(draw.a) * difference, state
