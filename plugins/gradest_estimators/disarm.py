"""DisARM, also known as U2G."""

from __future__ import annotations

from torch import Tensor

from gradest.contract.estimator import Draw, Feedback, State
from gradest.contract.neuron import Binary
from gradest.contract.numerics import select
from gradest_estimators._binary import Antithetic


class Disarm(Antithetic):
    """ĝ_i = ½ (L(h) - L(h~)) (b_i - b~_i) σ(|a_i|), b and b~ the antithetic pair as zeros and ones: unbiased.

    It is `arm` with the noise integrated out given the pair, so its variance is below arm's, always. Units that agree in the
    pair get no gradient.
    """

    name = "disarm"
    summary = "antithetic pairs, the noise integrated out"
    reference = "Dong, Mnih, Tucker 2020, arXiv 2006.10680; Yin, Ho, Yan, Qian, Zhou 2020 (U2G), arXiv 2006.06448"
    formula = r"\hat g_i = \tfrac12 \bigl(L(h) - L(\tilde h)\bigr)(b_i - \tilde b_i)\,\sigma(|a_i|)"

    examples = ({}, {"samples": 4})

    def backward(self, draw: Draw, feedback: Feedback, state: State) -> tuple[Tensor, State]:
        """The mean over pairs."""
        return disarm(draw.points, feedback.get_loss(), draw), state


def disarm(pairs: Tensor, loss: Tensor, draw: Draw) -> Tensor:
    """The mean of the estimate over pairs, from points `[2n, ...]` in the order of `Antithetic` and losses `[2n, *batch]`."""
    assert isinstance(draw.neuron, Binary)
    return select("antithetic_score", draw.a.device)(draw.a, pairs, loss, draw.neuron.high)  # type: ignore[no-any-return]
