"""A plugin of somebody else, as one file: what `--plugin` is given in tests. It is no test."""

from __future__ import annotations

from torch import Tensor

import gradest
from gradest.contract.estimator import Bias, Draw, Estimator, Feedback, MonteCarlo, State
from gradest.contract.neuron import Neuron, Scored


class Mine(MonteCarlo):
    """The score times the loss less a constant, (L - 0.2) d log P(h) / da."""

    name, summary, needs = "mine", "the score function with a constant baseline", frozenset({"loss"})
    capabilities = (Scored,)

    def bias(self, neuron: Neuron) -> Bias:
        """Unbiased for every loss, because the score has mean zero."""
        return Bias.NONE

    def backward(self, draw: Draw, feedback: Feedback, state: State) -> tuple[Tensor, State]:
        """Return the mean over the samples of the centred losses times their scores."""
        neuron = draw.neuron
        assert isinstance(neuron, Scored)
        centred = (feedback.get_loss() - 0.2)[(..., *[None] * neuron.event_ndim)]
        return (centred.to(draw.a.dtype) * neuron.score(draw.points, draw.a)).mean(0), state


@gradest.hookimpl
def gradest_estimators() -> list[type[Estimator]]:
    """Return the estimator."""
    return [Mine]
