"""The straight-through Gumbel-softmax estimator."""

from __future__ import annotations

from pydantic import Field
from torch import Tensor

from gradest.contract.estimator import Bias, Draw, Feedback, MonteCarlo, State
from gradest.contract.neuron import Neuron, SoftmaxOneHot
from gradest.contract.numerics import leading_mean
from gradest_estimators._one_hot import softmax_backward


class StraightThroughGumbel(MonteCarlo):
    """ĝ = 1/τ (diag s - ssᵀ) L'(h): L' at the one-hot sample, passed back through the relaxation s = softmax((a + G)/τ).

    h is the argmax of the same a + G. Biased, for linear losses already; a low temperature trades bias for variance.
    """

    name = "straight_through_gumbel"
    summary = "dL/dh at a one-hot sample, through the softmax of the same noise"
    reference = "Jang, Gu, Poole 2017, arXiv 1611.01144"
    formula = (
        r"\hat g = \frac1\tau \bigl(\operatorname{diag} s - s s^\top\bigr) L'(h), \quad s = "
        r"\mathrm{softmax}\!\left(\frac{a + G}{\tau}\right)"
    )
    needs = frozenset({"grad"})
    capabilities = (SoftmaxOneHot,)

    examples = ({}, {"temperature": 0.5, "samples": 3})

    temperature: float = Field(1.0, gt=0, allow_inf_nan=False, description="τ of the relaxation")

    def bias(self, neuron: Neuron) -> Bias:
        """Biased."""
        return Bias.BIASED

    def backward(self, draw: Draw, feedback: Feedback, state: State) -> tuple[Tensor, State]:
        """The mean over samples of the relaxation's derivative times L'."""
        assert isinstance(draw.neuron, SoftmaxOneHot)
        relaxed = draw.neuron.relax(draw.a, draw.noise(), self.temperature)
        return leading_mean(softmax_backward(relaxed, feedback.get_grad())) / self.temperature, state
