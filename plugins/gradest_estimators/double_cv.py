"""Double control variates."""

from __future__ import annotations

import torch
from pydantic import Field
from torch import Tensor

from gradest.contract.estimator import Bias, Draw, Feedback, MonteCarlo, State
from gradest.contract.neuron import Neuron, per_event
from gradest.contract.numerics import leading_mean, leading_sum
from gradest_estimators._score import MeanEstimator, event_sum, mean_vjp, scores


class DoubleCv(MeanEstimator, MonteCarlo):
    """Leave-one-out REINFORCE with a second control variate, made from the derivatives at the other samples.

    ĝ = A + α B, where A is the `rloo` estimate and B = 1/K Σ_k [c_k - mean_{j≠k} c_j] score_k - (dE[h]/da) mean_k
    dL/dh_k, with c_k = ḡ_kᵀ(h_k - E[h]) and ḡ_k the mean of dL/dh at the OTHER samples.

    Unbiased for every loss: ḡ_k is independent of h_k, so both terms of B have the same mean, and α comes from earlier
    steps.

    α starts at 0, where ĝ is `rloo`. It is learned from the gradient of ĝ², 2 (A + αB) B, averaged over units and
    batch. A step divides this gradient by its own slope, the moving average of 2 B². So α minimises ĝ² over the past,
    with exponentially fading weights, and there is no learning rate to choose. α is used before it moves, or ĝ would be
    biased.

    Introduced by Titsias and Shi (2021), Double Control Variates for Gradient Estimation in Discrete Latent Variable
    Models, arXiv 2111.05300.
    """

    name = "double_cv"
    summary = "rloo with a second control variate from the derivatives at the other samples"
    reference = "Titsias, Shi 2021, arXiv 2111.05300"
    formula = (
        r"\hat g = A + \alpha B, \quad A = \mathrm{rloo}(L), \quad B = \frac1K \sum_k \Bigl[c_k - "
        r"\frac{1}{K-1}\sum_{j \ne k} c_j\Bigr] \nabla_a \log P(h_k) - \frac{d\,\mathbb E[h]}{da}\,\frac1K "
        r"\sum_k L'(h_k)"
    )
    needs = frozenset({"loss", "grad"})

    examples = ({}, {"samples": 3})

    samples: int = Field(2, ge=2, description="number K of samples")
    decay: float = Field(0.99, ge=0, lt=1, description="share of the moving averages that a step keeps")

    def bias(self, neuron: Neuron) -> Bias:
        """Return `Bias.NONE`: unbiased for every loss, because B has mean zero and α comes from earlier steps."""
        return Bias.NONE

    def init(self, neuron: Neuron, a: Tensor) -> State:
        """Return α and the moving average of B², both 0."""
        zero = a.new_zeros((), dtype=torch.float64)  # squares of gradients may exceed the range of float32
        return {"alpha": zero, "curvature": zero.clone()}

    def backward(self, draw: Draw, feedback: Feedback, state: State) -> tuple[Tensor, State]:
        """Return A + α B, and the state with the α of the next step."""
        neuron, loss, grad, score = draw.neuron, feedback.get_loss(), feedback.get_grad(), scores(draw)
        others = self.samples - 1
        elsewhere = (leading_sum(grad) - grad) / others
        control = event_sum(elsewhere * (draw.points - neuron.mean(draw.a)), neuron)

        def left_out(x: Tensor) -> Tensor:
            return leading_sum(per_event(x - leading_mean(x), neuron) * score) / others

        first = left_out(loss)
        second = left_out(control) - mean_vjp(neuron, draw.a, leading_mean(grad))
        alpha = state["alpha"]
        gradient = first + alpha.to(first) * second
        return gradient, self._learn(state, gradient, second) if gradient.numel() else state

    def _learn(self, state: State, gradient: Tensor, second: Tensor) -> State:
        alpha, new = state["alpha"], 1 - self.decay
        curvature = self.decay * state["curvature"] + new * (second.double() ** 2).mean()
        tiny = torch.finfo(alpha.dtype).tiny
        step = torch.where(curvature > tiny, new * (gradient.double() * second).mean() / curvature.clamp(min=tiny), 0)
        return {"alpha": alpha - step, "curvature": curvature}
