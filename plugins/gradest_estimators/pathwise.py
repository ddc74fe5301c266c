"""The pathwise, or reparameterisation, estimator."""

from __future__ import annotations

from gradest.contract.estimator import Bias
from gradest.contract.neuron import Neuron, Reparameterised
from gradest_estimators.held_noise import HeldNoise


class Pathwise(HeldNoise):
    """ĝ = dL/dh · dh/da at fixed noise: `held_noise`, for the neurons on which it is unbiased.

    They are those that move continuously with a. Where a neuron also makes a discrete choice, this estimator does not fit.
    """

    name = "pathwise"
    summary = "backpropagation at fixed noise, where that is unbiased"
    reference = "Kingma, Welling 2014, arXiv 1312.6114; Bengio, Léonard, Courville 2013, arXiv 1308.3432"
    formula = r"\hat g = L'(h)\,\frac{\partial h}{\partial a}\Big|_z"
    capabilities = (Reparameterised,)

    def bias(self, neuron: Neuron) -> Bias:
        """None."""
        return Bias.NONE
