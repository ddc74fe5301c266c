"""The DisARM estimator, also known as U2G."""

from __future__ import annotations

import torch
from torch import Tensor

from gradest.contract.estimator import Draw, Feedback, State
from gradest.contract.neuron import Binary
from gradest.contract.numerics import select
from gradest_estimators._binary import Antithetic


class Disarm(Antithetic):
    """The `arm` estimator with the noise integrated out, given the antithetic pair of samples.

    ĝ_i = ½ (L(h) - L(h~)) (b_i - b~_i) σ(|a_i|), where b and b~ are the pair as zeros and ones. A unit that has the
    same output in both samples gets no gradient.

    Unbiased for every loss: it is the conditional expectation of `arm` given the pair. For the same reason its variance
    is never above that of `arm`.

    Introduced by Dong, Mnih and Tucker (2020), DisARM: An Antithetic Gradient Estimator for Binary Latent Variables,
    arXiv 2006.10680, and, as U2G, by Yin, Ho, Yan, Qian and Zhou (2020), Probabilistic Best Subset Selection via
    Gradient-Based Optimization, arXiv 2006.06448.
    """

    name = "disarm"
    summary = "antithetic pairs, with their noise integrated out"
    reference = "Dong, Mnih, Tucker 2020, arXiv 2006.10680; Yin, Ho, Yan, Qian, Zhou 2020 (U2G), arXiv 2006.06448"
    formula = r"\hat g_i = \tfrac12 \bigl(L(h) - L(\tilde h)\bigr)(b_i - \tilde b_i)\,\sigma(|a_i|)"

    examples = ({}, {"samples": 4})

    def backward(self, draw: Draw, feedback: Feedback, state: State) -> tuple[Tensor, State]:
        """Return the mean of the estimate over pairs."""
        return disarm(draw.points, feedback.get_loss(), draw), state


def disarm(pairs: Tensor, loss: Tensor, draw: Draw) -> Tensor:
    """Return the mean of the estimate over n pairs, `[*batch, units]`.

    `pairs` holds points `[2n, *batch, units]` in the order of `Antithetic`, `loss` their losses `[2n, *batch]`. The
    difference of wider losses is taken in their own precision, because the kernel has that of a.
    """
    assert isinstance(draw.neuron, Binary)
    if loss.dtype != draw.a.dtype:
        at, at_mirror = loss.chunk(2)
        loss = torch.cat([at - at_mirror, torch.zeros_like(at)]).to(draw.a.dtype)
    return select("antithetic_score", draw.a.device)(draw.a, pairs, loss, draw.neuron.high)  # type: ignore[no-any-return]
