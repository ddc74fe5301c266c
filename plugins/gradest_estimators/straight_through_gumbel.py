"""The straight-through Gumbel-softmax estimator."""

from __future__ import annotations

from pydantic import Field
from torch import Tensor

from gradest.contract.estimator import Bias, Draw, Feedback, MonteCarlo, State
from gradest.contract.neuron import Neuron, SoftmaxOneHot
from gradest.contract.numerics import leading_mean
from gradest_estimators._one_hot import softmax_vjp


class StraightThroughGumbel(MonteCarlo):
    """The derivative of the loss at a one-hot sample h, passed back through the softmax relaxation s of the same noise.

    ĝ = 1/τ (diag s - ssᵀ) L'(h), with s = softmax((a + G)/τ) and h the argmax of the same a + G.

    Biased, even for linear losses. A lower temperature has less bias and more variance.

    Introduced by Jang, Gu and Poole (2017), Categorical Reparameterization with Gumbel-Softmax, arXiv 1611.01144.
    """

    name = "straight_through_gumbel"
    summary = "dL/dh at a one-hot sample, passed through the softmax of the same noise"
    reference = "Jang, Gu, Poole 2017, arXiv 1611.01144"
    formula = (
        r"\hat g = \frac1\tau \bigl(\operatorname{diag} s - s s^\top\bigr) L'(h), \quad s = "
        r"\mathrm{softmax}\!\left(\frac{a + G}{\tau}\right)"
    )
    needs = frozenset({"grad"})
    capabilities = (SoftmaxOneHot,)

    examples = ({}, {"temperature": 0.5, "samples": 3})

    temperature: float = Field(1.0, ge=1e-30, le=1e30, description="temperature τ of the relaxation")

    def bias(self, neuron: Neuron) -> Bias:
        """Return `Bias.BIASED`: the derivative of the relaxation does not have the mean dE[h]/da, even for linear losses."""
        return Bias.BIASED

    def backward(self, draw: Draw, feedback: Feedback, state: State) -> tuple[Tensor, State]:
        """Return the mean over samples of the relaxation's derivative times L'(h)."""
        assert isinstance(draw.neuron, SoftmaxOneHot)
        relaxed = draw.neuron.relax(draw.a, draw.noise(), self.temperature)
        return leading_mean(softmax_vjp(relaxed, feedback.get_grad())) / self.temperature, state
