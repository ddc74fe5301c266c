"""The straight-through estimator."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Literal

from pydantic import Field
from torch import Tensor

from gradest.contract.estimator import Bias, Draw, Feedback, MonteCarlo, State
from gradest.contract.neuron import Binary, Discrete, LogisticBinary, Neuron, SoftmaxOneHot
from gradest.contract.numerics import leading_mean, select
from gradest_estimators._one_hot import softmax_backward


class StraightThrough(MonteCarlo):
    """ĝ = L'(h) · d, as if h had been a smooth function of a with derivative d.

    derivative="identity": d = slope. Biased for linear losses already, since dE[h]/da is p(1-p) and not 1; the source found
        that it trains best.
    derivative="sigmoid": d = slope · (high - low) σ(slope a)(1 - σ(slope a)). With slope 1 it is dE[h]/da, hence exact for a
        loss that is linear in each unit, and biased beyond. A one-hot unit has the derivative of softmax(slope a),
        slope (diag p - ppᵀ). `slope_annealed_straight_through` lets the slope grow with the steps.
    derivative="clipped": d = slope · 1[|a| <= 1] (Hubara et al. 2016, arXiv 1602.02830).
    """

    name = "straight_through"
    summary = "passes dL/dh to a as if the unit were smooth"
    reference = "Hinton 2012 (lecture); Bengio, Léonard, Courville 2013, arXiv 1308.3432"
    formula = r"\hat g = L'(h) \cdot d, \quad d = 1 \ \text{or}\ \sigma'(a)\ \text{or}\ \mathbf 1[|a| \le 1]"
    needs = frozenset({"grad"})
    capabilities = (Discrete,)

    examples: ClassVar[Sequence[Mapping[str, Any]]] = (
        {},
        {"derivative": "sigmoid"},
        {"derivative": "sigmoid", "slope": 2.0},
        {"derivative": "clipped"},
    )

    derivative: Literal["identity", "sigmoid", "clipped"] = Field("identity", description="what stands for dh/da")
    slope: float = Field(1.0, gt=0, allow_inf_nan=False, description="of the smooth function that stands for the unit")

    def accepts(self, neuron: Neuron) -> bool:
        """Whether the unit is binary or, unless derivative="clipped", one-hot with P = softmax(a)."""
        return isinstance(neuron, Binary) or (isinstance(neuron, SoftmaxOneHot) and self.derivative != "clipped")

    def bias(self, neuron: Neuron) -> Bias:
        """Exact to first order with derivative="sigmoid" and slope 1, biased otherwise."""
        exact = self.derivative == "sigmoid" and self.slope == 1 and isinstance(neuron, LogisticBinary | SoftmaxOneHot)
        return Bias.exact_to_order(1) if exact else Bias.BIASED

    def backward(self, draw: Draw, feedback: Feedback, state: State) -> tuple[Tensor, State]:
        """The mean over samples of dL/dh, times d."""
        return self.pass_through(draw, feedback, self.slope), state

    def pass_through(self, draw: Draw, feedback: Feedback, slope: float | Tensor) -> Tensor:
        """The mean over samples of dL/dh, times d at this slope."""
        neuron, a, grad = draw.neuron, draw.a, leading_mean(feedback.get_grad())
        if self.derivative == "identity":
            return grad if isinstance(slope, float) and slope == 1 else slope * grad
        if self.derivative == "clipped":
            return slope * grad * (a.abs() <= 1)
        if isinstance(neuron, SoftmaxOneHot):
            return slope * softmax_backward(neuron.probability(slope * a), grad)
        assert isinstance(neuron, Binary)
        kernel = select("logistic_backward", a.device)
        return kernel(a, grad, slope, slope * (neuron.high - neuron.low))  # type: ignore[no-any-return]
