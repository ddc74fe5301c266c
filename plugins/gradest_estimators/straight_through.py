"""The straight-through estimator."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Literal

from pydantic import Field
from torch import Tensor

from gradest.contract.estimator import Bias, Draw, Feedback, MonteCarlo, State
from gradest.contract.neuron import LogisticStep, Neuron, OneHot, RandomOneHot, Step, UnbiasedRounding
from gradest.contract.numerics import leading_mean, select


class StraightThrough(MonteCarlo):
    """The derivative of the loss at the sample, passed back as if h were a smooth function of a with derivative d.

    ĝ = L'(h) · d, where the option `derivative` chooses d:

    "identity": d = slope. Biased even for linear losses, because dE[h]/da is p(1-p) and not 1. Bengio et al. (2013)
    obtained better results with it than with the derivative of the sigmoid. For a unit that rounds without bias, such as
    `stochastic_rounding`, dE[h]/da is 1: with slope 1 the estimate is exact for a loss that is linear in each unit.

    "sigmoid": d = slope · (high - low) σ(slope a)(1 - σ(slope a)). With slope 1 it is dE[h]/da, so the estimate is
    exact for a loss that is linear in each unit, and biased for others. For a one-hot unit d is the derivative of
    softmax(slope a), slope (diag p - ppᵀ), or of E[h] at slope · a if the unit has another law.

    "clipped": d = slope · 1[|a| <= 1], as in Hubara et al. (2016), Binarized Neural Networks, arXiv 1602.02830. Biased.

    On a deterministic step or argmax it is biased by construction, because the true gradient is 0.

    Introduced by Hinton (2012) in a lecture; studied by Bengio, Léonard and Courville (2013), Estimating or Propagating
    Gradients Through Stochastic Neurons for Conditional Computation, arXiv 1308.3432.
    """

    name = "straight_through"
    summary = "passes dL/dh to a as if the unit were smooth"
    reference = "Hinton 2012 (lecture); Bengio, Léonard, Courville 2013, arXiv 1308.3432"
    formula = r"\hat g = L'(h) \cdot d, \quad d = 1 \ \text{or}\ \sigma'(a)\ \text{or}\ \mathbf 1[|a| \le 1]"
    needs = frozenset({"grad"})

    examples: ClassVar[Sequence[Mapping[str, Any]]] = (
        {},
        {"derivative": "sigmoid"},
        {"derivative": "sigmoid", "slope": 2.0},
        {"derivative": "clipped"},
    )

    derivative: Literal["identity", "sigmoid", "clipped"] = Field(
        "identity", description="function that stands in for dh/da"
    )
    slope: float = Field(
        1.0, gt=0, allow_inf_nan=False, description="slope of the smooth function that stands in for the unit"
    )

    def accepts(self, neuron: Neuron) -> bool:
        """Return whether the unit is a step, one-hot unless derivative="clipped", or rounds without bias for "identity"."""
        if isinstance(neuron, OneHot):
            return self.derivative != "clipped"
        return isinstance(neuron, Step) or (isinstance(neuron, UnbiasedRounding) and self.derivative == "identity")

    def bias(self, neuron: Neuron) -> Bias:
        """Return exactness to first order with slope 1, where the derivative is that of E[h], and `Bias.BIASED` otherwise."""
        if isinstance(neuron, UnbiasedRounding):
            exact = self.derivative == "identity"
        else:
            exact = isinstance(neuron, LogisticStep | RandomOneHot) and self.derivative == "sigmoid"
        return Bias.exact_to_order(1) if exact and self.slope == 1 else Bias.BIASED

    def backward(self, draw: Draw, feedback: Feedback, state: State) -> tuple[Tensor, State]:
        """Return the mean over samples of dL/dh, times d."""
        return self.pass_through(draw, feedback, self.slope), state

    def pass_through(self, draw: Draw, feedback: Feedback, slope: float | Tensor) -> Tensor:
        """Return the mean over samples of dL/dh, times d at this slope."""
        neuron, a, grad = draw.neuron, draw.a, leading_mean(feedback.get_grad())
        if self.derivative == "identity":
            return grad if isinstance(slope, float) and slope == 1 else slope * grad
        if self.derivative == "clipped":
            return slope * grad * (a.abs() <= 1)
        if isinstance(neuron, OneHot):
            # the differences from the largest give the same, and no slope makes infinity less infinity of them
            return slope * neuron.smooth_vjp(slope * (a - a.amax(-1, keepdim=True)), grad)
        assert isinstance(neuron, Step)
        kernel = select("logistic_backward", a.device)
        return kernel(a, grad, slope, slope * (neuron.high - neuron.low))  # type: ignore[no-any-return]
