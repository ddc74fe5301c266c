"""The augment-REINFORCE-merge (ARM) estimator."""

from __future__ import annotations

from torch import Tensor

from gradest.contract.estimator import Draw, Feedback, State
from gradest.contract.neuron import per_event
from gradest.contract.numerics import leading_mean
from gradest_estimators._binary import Antithetic


class Arm(Antithetic):
    """The loss difference of an antithetic pair of samples, weighted with their uniform noise u.

    ĝ_i = (L(h~) - L(h)) (u_i - ½), where h is high where u < p, and h~ is high where 1 - u < p.

    Unbiased for every loss: E[L(h) (1 - 2u)] is the gradient, and ĝ is the mean of this estimate at u and at 1 - u.
    `disarm` uses the same points and has less variance.

    Introduced by Yin and Zhou (2018), ARM: Augment-REINFORCE-Merge Gradient for Stochastic Binary Networks,
    arXiv 1807.11143. They write h~ as 1[u > 1 - p].
    """

    name = "arm"
    summary = "loss difference of antithetic pairs, weighted with their uniform noise"
    reference = "Yin, Zhou 2018, arXiv 1807.11143"
    formula = r"\hat g_i = \bigl(L(\tilde h) - L(h)\bigr)\bigl(u_i - \tfrac12\bigr)"

    examples = ({}, {"samples": 4})

    def backward(self, draw: Draw, feedback: Feedback, state: State) -> tuple[Tensor, State]:
        """Return the mean of the estimate over pairs."""
        at, at_mirror = feedback.get_loss().chunk(2)
        noise = draw.neuron.noise(draw.key, draw.a, self.samples // 2)
        return leading_mean(per_event(at_mirror - at, draw.neuron) * (noise - 0.5)), state
