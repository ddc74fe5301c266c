"""Local expectation gradients."""

from __future__ import annotations

from torch import Tensor

from gradest.contract.estimator import Draw, Feedback, State
from gradest_estimators._binary import AllFlips, rise, slope


class LocalExpectation(AllFlips):
    """ĝ_i = p_i(1-p_i) (L(h with unit i high) - L(h with unit i low)): each unit summed out exactly, given the others.

    Unbiased, and without variance for a loss that is linear in each unit separately (a sum over units). It costs D + 1
    evaluations for D units, and the memory of all their points once, `[D + 1, *batch, D]`.
    """

    name = "local_expectation"
    summary = "each unit summed out given a sample of the others"
    reference = "Titsias, Lázaro-Gredilla 2015, arXiv 1503.01494"
    formula = r"\hat g_i = p_i (1 - p_i)\bigl(L(h_{i \to 1}) - L(h_{i \to 0})\bigr)"

    def backward(self, draw: Draw, feedback: Feedback, state: State) -> tuple[Tensor, State]:
        """p(1-p) times the rise of the loss from low to high, unit by unit."""
        loss = feedback.get_loss()
        rises = rise(draw.neuron, draw.points[0], loss[0][..., None], loss[1:].movedim(0, -1))
        return slope(draw.a) * rises, state
