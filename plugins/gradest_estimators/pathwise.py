"""The pathwise, or reparameterisation, estimator."""

from __future__ import annotations

from gradest.contract.estimator import Bias
from gradest.contract.neuron import Neuron, Reparameterised
from gradest_estimators.held_noise import HeldNoise


class Pathwise(HeldNoise):
    """Backpropagation through the neuron at fixed noise, for neurons on which this is unbiased.

    ĝ = dL/dh · dh/da at fixed noise. It computes the same as `held_noise`, but does not accept a neuron that makes a
    discrete choice.

    Unbiased for every loss that is continuous and differentiable almost everywhere: h is continuous in a, so derivative and
    expectation may be exchanged. A loss that jumps, such as one of sign(h), is not seen: its derivative is 0.

    Introduced by Kingma and Welling (2014), Auto-Encoding Variational Bayes, arXiv 1312.6114; for noisy rectifiers by
    Bengio, Léonard and Courville (2013), Estimating or Propagating Gradients Through Stochastic Neurons for Conditional
    Computation, arXiv 1308.3432.
    """

    name = "pathwise"
    summary = "backpropagation at fixed noise, where that is unbiased"
    reference = "Kingma, Welling 2014, arXiv 1312.6114; Bengio, Léonard, Courville 2013, arXiv 1308.3432"
    formula = r"\hat g = L'(h)\,\frac{\partial h}{\partial a}\Big|_z"
    capabilities = (Reparameterised,)

    def bias(self, neuron: Neuron) -> Bias:
        """Return `Bias.NONE_IF_CONTINUOUS`, because the outputs of the accepted neurons are continuous in a."""
        return Bias.NONE_IF_CONTINUOUS
