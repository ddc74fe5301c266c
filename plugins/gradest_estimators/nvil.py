"""The score-function estimator with a baseline that is a learned function of the input."""

from __future__ import annotations

import torch
from pydantic import Field
from torch import Tensor

from gradest.contract.estimator import Draw, Feedback, State
from gradest.contract.neuron import Neuron
from gradest.contract.numerics import sigmoid
from gradest_estimators._learning import PARAMETERS, adam, network, new_network, with_moments
from gradest_estimators.reinforce_average import ReinforceAverage


class Nvil(ReinforceAverage):
    """ĝ = (L - C(a) - m)(d log P(h)/da): C a small network of the pre-activations, m the moving average of earlier L - C(a).

    Unbiased, since neither C(a) nor m depends on this step's samples. C is fitted by Adam to L - m by squared error, after
    use; it starts as 0. It stands for the source's function of the input x, of which a stochastic layer sees a alone; it is
    given tanh(a/2), so that it stays bounded where units saturate. The learning rate is in units of the loss per step.

    Left out is the source's division of L - C - m by max(1, its running standard deviation): it rescales the gradient of
    each layer by a number of its own that changes from step to step, so that the estimate is no longer unbiased.
    """

    name = "nvil"
    summary = "loss minus a learned function of the pre-activations and a moving average, times score"
    reference = "Mnih, Gregor 2014, arXiv 1402.0030"
    formula = r"\hat g = \bigl(L(h) - C(a) - m\bigr)\nabla_a \log P(h)"

    examples = ({}, {"samples": 3, "hidden": 2, "learning_rate": 0.1})

    hidden: int = Field(8, ge=0, le=256, description="hidden units of the network")
    learn: bool = Field(True, description="whether the network is learned; the moving average is in any case")
    learning_rate: float = Field(0.01, gt=0, allow_inf_nan=False, description="of the network")

    def init(self, neuron: Neuron, a: Tensor) -> State:
        """The average, empty, and the network's parameters and their moments."""
        inputs = a.shape[a.ndim - neuron.event_ndim :].numel()
        return {**super().init(neuron, a), **with_moments(new_network(inputs, self.hidden, a.device))}

    def backward(self, draw: Draw, feedback: Feedback, state: State) -> tuple[Tensor, State]:
        """Uses the network and the average, then moves both."""
        loss = feedback.get_loss()
        learn = self.learn and loss.numel() > 0
        with torch.enable_grad():
            parameters = {name: state[name].detach().requires_grad_(learn) for name in PARAMETERS}
            inputs = (sigmoid(draw.a) - sigmoid(-draw.a)).flatten(-draw.neuron.event_ndim)  # tanh(a/2)
            baseline = network(parameters, inputs)
        gradient, moved = super().backward(draw, Feedback(loss - baseline.detach()), state)
        after = {**state, **moved}
        if not learn:
            return gradient, after
        rest = loss.detach() - self.average(state).to(loss)
        with torch.enable_grad():
            error = (rest - baseline).double().square().mean()
            slopes = torch.autograd.grad(error, tuple(parameters.values()))
        return gradient, adam(after, dict(zip(PARAMETERS, slopes, strict=True)), self.learning_rate)
