"""Plain backpropagation through the sampled graph."""

from __future__ import annotations

from torch import Tensor

from gradest.contract.estimator import Bias, Draw, Feedback, MonteCarlo, State
from gradest.contract.neuron import Differentiable, Neuron, Reparameterised
from gradest.contract.numerics import leading_mean


class HeldNoise(MonteCarlo):
    """ĝ = dL/dh · dh/da, with everything random in the neuron held, discrete choices included.

    It is what backpropagation through the sampled graph computes. For reparameterised neurons it is `pathwise`. For
    stochastic_times_smooth it is what the source trains with, although the gate b moves with a too: for a linear loss its mean
    is exactly half of the true gradient (E[b] d√p/da = p(1-p)/2, and the gradient of E[h] = p is p(1-p)), and for a quadratic
    one a unit can have the wrong sign. `pathwise_score` is the unbiased correction.
    """

    name = "held_noise"
    summary = "backpropagation through the sampled graph, discrete choices held"
    reference = "Bengio, Léonard, Courville 2013, arXiv 1308.3432"
    formula = r"\hat g = L'(h)\,\frac{\partial h}{\partial a}\Big|_{z,\,b}"
    needs = frozenset({"grad"})
    capabilities = (Differentiable,)

    examples = ({}, {"samples": 3})

    def bias(self, neuron: Neuron) -> Bias:
        """None for a reparameterised neuron; biased, for linear losses already, for any other."""
        return Bias.NONE if isinstance(neuron, Reparameterised) else Bias.BIASED

    def backward(self, draw: Draw, feedback: Feedback, state: State) -> tuple[Tensor, State]:
        """The mean over samples of `neuron.pullback`."""
        return leading_mean(draw.neuron.pullback(draw.key, draw.a, draw.points, feedback.get_grad())), state
