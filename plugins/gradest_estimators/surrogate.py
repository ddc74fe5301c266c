"""Surrogate derivatives of a step."""

from __future__ import annotations

from typing import Literal, get_args

from pydantic import Field
from torch import Tensor

from gradest.contract.estimator import Bias, Draw, Feedback, MonteCarlo, State
from gradest.contract.neuron import LogisticStep, Neuron, Step
from gradest.contract.numerics import leading_mean, select

Derivative = Literal["sigmoid", "fast_sigmoid", "atan", "triangle", "rectangle"]


class Surrogate(MonteCarlo):
    """The derivative of the loss, passed back through the derivative d of a smooth step.

    ĝ = L'(h) · d(a), where d is the derivative of a function that rises smoothly from the low to the high value about
    a = 0. With x = slope · a, and scaled so that each integrates to high - low over a:

        sigmoid       σ(x)(1 - σ(x))
        fast_sigmoid  ½ / (1 + |x|)²           (Zenke and Ganguli 2018, arXiv 1705.11146)
        atan          ½ / (1 + (πx/2)²)        (Fang et al. 2021, arXiv 2007.05785)
        triangle      max(0, 1 - |x|)          (Esser et al. 2016, arXiv 1603.08270)
        rectangle     ½ · 1[|x| <= 1]          (Wu et al. 2018, arXiv 1706.02609)

    Biased by construction: the true gradient of a deterministic step is 0. On a binary unit with P(high) = σ(a) the
    sigmoid of slope 1 is `straight_through` with derivative="sigmoid", and so it is exact to first order.

    Reviewed by Neftci, Mostafa and Zenke (2019), Surrogate Gradient Learning in Spiking Neural Networks,
    arXiv 1901.09948.
    """

    name = "surrogate"
    summary = "passes dL/dh through the derivative of a smooth step"
    reference = "Neftci, Mostafa, Zenke 2019, arXiv 1901.09948"
    formula = r"\hat g = L'(h)\,d(a), \quad \int d(a)\,da = h_{\text{high}} - h_{\text{low}}"
    needs = frozenset({"grad"})
    capabilities = (Step,)

    examples = (
        {},
        {"derivative": "fast_sigmoid", "slope": 2.0},
        {"derivative": "atan"},
        {"derivative": "triangle"},
        {"derivative": "rectangle", "slope": 0.5},
    )

    derivative: Derivative = Field("sigmoid", description="shape of the derivative d")
    slope: float = Field(1.0, gt=0, allow_inf_nan=False, description="slope of the smooth step")

    def bias(self, neuron: Neuron) -> Bias:
        """Return exactness to first order where d equals dE[h]/da, and `Bias.BIASED` otherwise."""
        exact = self.derivative == "sigmoid" and self.slope == 1 and isinstance(neuron, LogisticStep)
        return Bias.exact_to_order(1) if exact else Bias.BIASED

    def backward(self, draw: Draw, feedback: Feedback, state: State) -> tuple[Tensor, State]:
        """Return the mean over samples of dL/dh, times d."""
        assert isinstance(draw.neuron, Step)
        a, grad, slope = draw.a, leading_mean(feedback.get_grad()), self.slope
        height = (draw.neuron.high - draw.neuron.low) * slope
        if self.derivative == "sigmoid":
            return select("logistic_backward", a.device)(a, grad, slope, height), state
        _, *shapes = get_args(Derivative)  # the kernel numbers the shapes in this order
        return select("surrogate_backward", a.device)(a, grad, shapes.index(self.derivative), slope, height), state
