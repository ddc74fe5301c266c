"""The Rao-Blackwellised straight-through Gumbel-softmax estimator."""

from __future__ import annotations

from pydantic import Field
from torch import Tensor

from gradest.contract.estimator import Draw, Feedback, State
from gradest.contract.neuron import SoftmaxOneHot
from gradest.contract.numerics import leading_mean
from gradest_estimators._one_hot import softmax_backward
from gradest_estimators.straight_through_gumbel import StraightThroughGumbel


class GumbelRao(StraightThroughGumbel):
    """`straight_through_gumbel` with the relaxation's derivative averaged over Gumbel noises that give the same sample h.

    ĝ = 1/τ mean_r (diag s_r - s_r s_rᵀ) L'(h), s_r the relaxation at the r-th noise drawn given h. The mean, and so the bias,
    is that of straight_through_gumbel; the variance is smaller, and the loss is still evaluated once.
    """

    name = "gumbel_rao"
    summary = "straight_through_gumbel, averaged over the noises that give the sample"
    reference = "Paulus, Maddison, Krause 2021, arXiv 2010.04838"
    formula = (
        r"\hat g = \frac1\tau\,\frac1R \sum_r \bigl(\operatorname{diag} s_r - s_r s_r^\top\bigr) L'(h), "
        r"\quad s_r \sim s \mid h"
    )

    examples = ({}, {"temperature": 0.5, "samples": 2, "conditional_samples": 3})

    conditional_samples: int = Field(10, ge=1, description="how many noises are drawn given each sample")

    def backward(self, draw: Draw, feedback: Feedback, state: State) -> tuple[Tensor, State]:
        """The mean over samples, and for each over noises given it, of the relaxation's derivative times L'."""
        neuron, a, h = draw.neuron, draw.a, draw.points
        assert isinstance(neuron, SoftmaxOneHot)
        noise = neuron.noise(draw.key.with_stream(1), a, self.conditional_samples * self.samples)
        noise = noise.reshape(self.conditional_samples, *h.shape)
        relaxed = neuron.conditional_relax(a, h, noise, self.temperature)
        parts = softmax_backward(relaxed, feedback.get_grad()).flatten(0, 1)
        return leading_mean(parts) / self.temperature, state
