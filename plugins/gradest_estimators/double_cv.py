"""Double control variates."""

from __future__ import annotations

import torch
from pydantic import Field
from torch import Tensor

from gradest.contract.estimator import Bias, Draw, Feedback, MonteCarlo, State
from gradest.contract.neuron import Neuron, per_event
from gradest.contract.numerics import leading_mean, leading_sum
from gradest_estimators._score import OfLogits, event_sum, mean_backward, scores


class DoubleCv(OfLogits, MonteCarlo):
    """`rloo` of the loss plus α c_k, c_k = ḡ_kᵀ(h_k - E[h]), minus α's share of the mean: ĝ = A + α B, unbiased for any α.

    ḡ_k is the mean of dL/dh at the OTHER samples, A is rloo of L, and B = 1/K Σ_k [c_k - mean_{j≠k} c_j] score_k
    - (dE[h]/da) mean_k dL/dh_k. The first term of B has the second's mean, since ḡ_k is independent of h_k.

    α starts at 0, which is rloo, and is learned by the gradient of ĝ², 2 (A + αB) B, averaged over units and batch. The step is
    that gradient over its own slope, the moving average of 2 B². That makes α the minimiser of ĝ² over the past with
    exponentially fading weights, with no learning rate to choose. It is read before it moves, or ĝ would be biased.
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

    samples: int = Field(2, ge=2, description="K")
    decay: float = Field(0.99, ge=0, lt=1, description="share of the past that a step of learning keeps")

    def bias(self, neuron: Neuron) -> Bias:
        """None: α comes from earlier steps."""
        return Bias.NONE

    def init(self, neuron: Neuron, a: Tensor) -> State:
        """α and the moving average of B², both 0."""
        return {"alpha": a.new_zeros(()), "curvature": a.new_zeros(())}

    def backward(self, draw: Draw, feedback: Feedback, state: State) -> tuple[Tensor, State]:
        """A + α B, and the α of the next step."""
        neuron, loss, grad, score = draw.neuron, feedback.get_loss(), feedback.get_grad(), scores(draw)
        others = self.samples - 1
        elsewhere = (leading_sum(grad) - grad) / others
        control = event_sum(elsewhere * (draw.points - neuron.mean(draw.a)), neuron)

        def left_out(x: Tensor) -> Tensor:
            return leading_sum(per_event(x - leading_mean(x), neuron) * score) / others

        first = left_out(loss)
        second = left_out(control) - mean_backward(neuron, draw.a, leading_mean(grad))
        alpha = state["alpha"]
        gradient = first + alpha.to(first) * second
        return gradient, self._learn(state, gradient, second) if gradient.numel() else state

    def _learn(self, state: State, gradient: Tensor, second: Tensor) -> State:
        alpha, new = state["alpha"], 1 - self.decay
        curvature = self.decay * state["curvature"] + new * (second * second).mean().to(alpha)
        tiny = torch.finfo(alpha.dtype).tiny
        step = torch.where(curvature > tiny, new * (gradient * second).mean().to(alpha) / curvature.clamp(min=tiny), 0)
        return {"alpha": alpha - step, "curvature": curvature}
