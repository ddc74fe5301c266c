"""The pathwise, or reparameterisation, estimator."""

from __future__ import annotations

from torch import Tensor

from gradest.estimator import Bias, Draw, Feedback, MonteCarlo, State
from gradest.kernels.reference import leading_mean
from gradest.neuron import Neuron, Reparameterised


class Pathwise(MonteCarlo):
    """ĝ = dL/dh · dh/da at fixed noise, for neurons that move continuously with a: unbiased."""

    name = "pathwise"
    summary = "backpropagation at fixed noise, where that is unbiased"
    reference = "Kingma, Welling 2014, arXiv 1312.6114; Bengio, Léonard, Courville 2013, arXiv 1308.3432"
    needs = frozenset({"grad"})
    capabilities = (Reparameterised,)

    examples = ({}, {"samples": 3})

    def bias(self, neuron: Neuron) -> Bias:
        """None."""
        return Bias.NONE

    def backward(self, draw: Draw, feedback: Feedback, state: State) -> tuple[Tensor, State]:
        """The mean over samples of `neuron.backward`."""
        return leading_mean(draw.neuron.backward(draw.a, draw.saved["noise"], feedback.get_grad())), state
