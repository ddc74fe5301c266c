"""The Rao-Blackwellised straight-through Gumbel-softmax estimator."""

from __future__ import annotations

from pydantic import Field
from torch import Tensor

from gradest.contract.estimator import Cost, Draw, Feedback, State
from gradest.contract.neuron import Neuron, SoftmaxOneHot
from gradest.contract.numerics import leading_mean
from gradest_estimators._one_hot import softmax_vjp
from gradest_estimators.straight_through_gumbel import StraightThroughGumbel


class GumbelRao(StraightThroughGumbel):
    """The `straight_through_gumbel` estimator, averaged over Gumbel noises that give the same sample h.

    ĝ = 1/τ mean_r (diag s_r - s_r s_rᵀ) L'(h), where s_r is the relaxation at the r-th noise drawn conditional on h.

    Biased: its mean is that of `straight_through_gumbel`, and so is its bias. The variance is smaller, and the loss is
    still evaluated only once for each sample.

    Introduced by Paulus, Maddison and Krause (2021), Rao-Blackwellizing the Straight-Through Gumbel-Softmax Gradient
    Estimator, arXiv 2010.04838.
    """

    name = "gumbel_rao"
    summary = "straight_through_gumbel, averaged over noises that give the same sample"
    reference = "Paulus, Maddison, Krause 2021, arXiv 2010.04838"
    formula = (
        r"\hat g = \frac1\tau\,\frac1R \sum_r \bigl(\operatorname{diag} s_r - s_r s_r^\top\bigr) L'(h), "
        r"\quad s_r \sim s \mid h"
    )

    examples = ({}, {"temperature": 0.5, "samples": 2, "conditional_samples": 3})

    conditional_samples: int = Field(10, ge=1, description="number of noises that are drawn conditional on each sample")

    def cost(self, neuron: Neuron, event: tuple[int, ...], batch: tuple[int, ...]) -> Cost:
        """Return the cost of a draw with all its conditional noises."""
        return super().cost(neuron, event, batch) * self.conditional_samples

    def backward(self, draw: Draw, feedback: Feedback, state: State) -> tuple[Tensor, State]:
        """Return the mean over samples, and over the noises given each, of the relaxation's derivative times L'(h)."""
        neuron, a, h = draw.neuron, draw.a, draw.points
        assert isinstance(neuron, SoftmaxOneHot)
        noise = neuron.noise(draw.key.with_stream(1), a, self.conditional_samples * self.samples)
        noise = noise.reshape(self.conditional_samples, *h.shape)
        relaxed = neuron.conditional_relax(a, h, noise, self.temperature)
        parts = softmax_vjp(relaxed, feedback.get_grad()).flatten(0, 1)
        return leading_mean(parts) / self.temperature, state
