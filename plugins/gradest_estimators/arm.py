"""Augment-REINFORCE-merge."""

from __future__ import annotations

from torch import Tensor

from gradest.contract.estimator import Draw, Feedback, State
from gradest.contract.neuron import per_event
from gradest.contract.numerics import leading_mean
from gradest_estimators._binary import Antithetic


class Arm(Antithetic):
    """ĝ_i = (L(h~) - L(h)) (u_i - ½), h high where u < p and h~ high where 1 - u < p: unbiased.

    The source writes h~ as 1[u > 1-p]. `disarm` has the same points and less variance.
    """

    name = "arm"
    summary = "antithetic pairs, weighted with their noise"
    reference = "Yin, Zhou 2018, arXiv 1807.11143"
    formula = r"\hat g_i = \bigl(L(\tilde h) - L(h)\bigr)\bigl(u_i - \tfrac12\bigr)"

    examples = ({}, {"samples": 4})

    def backward(self, draw: Draw, feedback: Feedback, state: State) -> tuple[Tensor, State]:
        """The mean over pairs."""
        at, at_mirror = feedback.get_loss().chunk(2)
        noise = draw.neuron.noise(draw.key, draw.a, self.samples // 2)
        return leading_mean(per_event(at_mirror - at, draw.neuron) * (noise - 0.5)), state
