"""RELAX: the score function with a learned network of a relaxed sample as its control variate."""

from __future__ import annotations

import torch
from pydantic import Field
from torch import Tensor

from gradest.estimator import Bias, Draw, Feedback, MonteCarlo, State, event_shape, per_event
from gradest.kernels.reference import leading_mean
from gradest.neuron import LogisticBinary, Neuron
from gradest_estimators._learning import PARAMETERS, adam, network, new_network, with_moments


class Relax(MonteCarlo):
    """ĝ = (L(h) - c(s̃)) score + dc(s)/da - dc(s̃)/da: unbiased for every differentiable c.

    s and s̃ are the relaxed outputs of `rebar`, which is the case c = η L. Here c is a small network of its own, so the loss
    is needed at h alone and may be a black box. c starts as 0, where ĝ is `reinforce`, and is learned by Adam along the
    gradient of ĝ², summed over units and averaged over the batch, after use: as E[ĝ] does not depend on c, this lowers the
    variance. The network sees relaxed outputs scaled to (-1, 1), whatever the two values of the unit are. It learns about
    `learning_rate` in units of the loss per step, which should be scaled to a loss of large or small range.
    """

    name = "relax"
    summary = "score function with a learned network of a relaxed sample as control variate"
    reference = "Grathwohl, Choi, Wu, Roeder, Duvenaud 2018, arXiv 1711.00123"
    needs = frozenset({"loss"})
    capabilities = (LogisticBinary,)

    examples = ({}, {"samples": 3, "temperature": 0.5, "hidden": 2, "learning_rate": 0.1})

    temperature: float = Field(1.0, gt=0, allow_inf_nan=False, description="of the relaxation")
    hidden: int = Field(8, ge=0, le=256, description="hidden units of the network")
    learn: bool = Field(True, description="whether the network is learned")
    learning_rate: float = Field(0.01, gt=0, allow_inf_nan=False, description="of the network")

    def bias(self, neuron: Neuron) -> Bias:
        """None."""
        return Bias.NONE

    def init(self, neuron: Neuron, a: Tensor) -> State:
        """The network's parameters and their moments."""
        return with_moments(new_network(event_shape(neuron, a)[0], self.hidden, a.device))

    def backward(self, draw: Draw, feedback: Feedback, state: State) -> tuple[Tensor, State]:
        """Uses the network, then moves it."""
        neuron, h = draw.neuron, draw.points
        assert isinstance(neuron, LogisticBinary)
        loss, score = per_event(feedback.get_loss(), neuron), neuron.score(h, draw.a)
        fresh = neuron.noise(draw.key.with_stream(1), draw.a, self.samples)
        learn = self.learn and loss.numel() > 0
        with torch.enable_grad():
            parameters = {name: state[name].detach().requires_grad_(learn) for name in PARAMETERS}
            a = draw.a.detach().expand_as(h).requires_grad_()
            s = neuron.relax(a, draw.saved["noise"], self.temperature)
            s_given_h = neuron.conditional_relax(a, h, fresh, self.temperature)
            c, c_given_h = (network(parameters, 2 * neuron.is_high(x) - 1) for x in (s, s_given_h))
            (path,) = torch.autograd.grad((c - c_given_h).sum(), a, create_graph=learn)
            gradient = leading_mean((loss - per_event(c_given_h, neuron)) * score + path)
            if not learn:
                return gradient.detach(), state
            square = gradient.double().square().sum(-1).mean()
            slopes = torch.autograd.grad(square, tuple(parameters.values()))
        return gradient.detach(), adam(state, dict(zip(PARAMETERS, slopes, strict=True)), self.learning_rate)
