"""Plain backpropagation through the sampled graph."""

from __future__ import annotations

from torch import Tensor

from gradest.contract.estimator import Bias, Draw, Feedback, MonteCarlo, State
from gradest.contract.neuron import Differentiable, Neuron, Reparameterised
from gradest.contract.numerics import leading_mean


class HeldNoise(MonteCarlo):
    """Backpropagation through the sampled graph: everything random in the neuron is held fixed, discrete choices included.

    ĝ = dL/dh · dh/da. For reparameterised neurons it is `pathwise`, and unbiased for losses that are continuous and
    differentiable almost everywhere.

    Biased for `stochastic_times_smooth`, whose gate b depends on a as well: for a linear loss its mean is exactly half
    of the true gradient (E[b] d√p/da = p(1-p)/2, while the gradient of E[h] = p is p(1-p)), and for a quadratic loss a
    unit can have the wrong sign. Bengio et al. (2013) train this neuron with it all the same; `pathwise_score` is the
    unbiased correction.

    Used by Bengio, Léonard and Courville (2013), Estimating or Propagating Gradients Through Stochastic Neurons for
    Conditional Computation, arXiv 1308.3432.
    """

    name = "held_noise"
    summary = "backpropagation through the sampled graph, with discrete choices held fixed"
    reference = "Bengio, Léonard, Courville 2013, arXiv 1308.3432"
    formula = r"\hat g = L'(h)\,\frac{\partial h}{\partial a}\Big|_{z,\,b}"
    needs = frozenset({"grad"})
    capabilities = (Differentiable,)

    examples = ({}, {"samples": 3})

    def bias(self, neuron: Neuron) -> Bias:
        """Return `Bias.NONE_IF_CONTINUOUS` for a reparameterised neuron, whose h is continuous in a, and else `Bias.BIASED`.

        Another neuron is biased even for linear losses, because the derivative of its discrete choice is missing.
        """
        return Bias.NONE_IF_CONTINUOUS if isinstance(neuron, Reparameterised) else Bias.BIASED

    def backward(self, draw: Draw, feedback: Feedback, state: State) -> tuple[Tensor, State]:
        """Return the mean over samples of `neuron.pullback`."""
        return leading_mean(draw.neuron.pullback(draw.key, draw.a, draw.points, feedback.get_grad())), state
