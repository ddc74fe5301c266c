"""The SIMPLE estimator for subsets."""

from __future__ import annotations

from torch import Tensor

from gradest.contract.estimator import Bias, Draw, Feedback, MonteCarlo, State
from gradest.contract.neuron import Neuron, Subset
from gradest.contract.numerics import leading_mean


class Simple(MonteCarlo):
    """The derivative of the loss at an exact sample h, passed back through the marginals μ = E[h].

    ĝ = L'(h) · dμ/da, with dμ/da the covariance matrix of h, for units that choose k of n items. It is the counterpart of
    `straight_through` with the derivative of the softmax, which it equals for k = 1.

    Exact for linear losses, without any variance, because then L'(h) does not depend on h and dE[L]/da = L' · dμ/da.
    Biased for other losses.

    Introduced by Ahmed, Zeng, Niepert and Van den Broeck (2023), SIMPLE: A Gradient Estimator for k-Subset Sampling,
    arXiv 2210.01941.
    """

    name = "simple"
    summary = "dL/dh at an exact subset, passed through the derivative of the exact marginals"
    reference = "Ahmed, Zeng, Niepert, Van den Broeck 2023, arXiv 2210.01941"
    formula = r"\hat g = L'(h)\,\frac{d\mu}{da}, \quad \mu = \mathbb E[h]"
    needs = frozenset({"grad"})
    capabilities = (Subset,)

    examples = ({}, {"samples": 3})

    def bias(self, neuron: Neuron) -> Bias:
        """Return exactness to first order: L'(h) is constant for a linear loss, and μ is the exact mean."""
        return Bias.exact_to_order(1)

    def backward(self, draw: Draw, feedback: Feedback, state: State) -> tuple[Tensor, State]:
        """Return the mean of L'(h) over samples, times dμ/da."""
        assert isinstance(draw.neuron, Subset)
        return draw.neuron.mean_backward(draw.a, leading_mean(feedback.get_grad())), state
