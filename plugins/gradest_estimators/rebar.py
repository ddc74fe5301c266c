"""REBAR: the score function with the loss at a relaxed sample as its control variate."""

from __future__ import annotations

import torch
from pydantic import Field
from torch import Tensor

from gradest.contract.estimator import Draw, Feedback, State
from gradest.contract.neuron import Neuron, Relaxable, event_shape, per_event
from gradest.random import Key
from gradest_estimators._learning import ControlVariate, with_moments
from gradest_estimators._relaxed import fresh_noise, relaxed


class Rebar(ControlVariate):
    """ĝ = (L(h) - η L(s̃)) score + η dL(s)/da - η dL(s̃)/da: unbiased for every η.

    s is the relaxed output at the noise that gave h, and s̃ a relaxed output given h, from fresh noise; both are differentiated
    in a with h and the noises held. dE[L(s)]/da is E[dL(s)/da], and, given h first, E[L(s̃) score + dL(s̃)/da]: what η
    multiplies has mean 0. It needs L and dL/dh between the outputs of a unit as well: between the two values of a binary one,
    inside the simplex of a one-hot one.

    η, one a unit and class, is learned by Adam along d ĝ²/dη = 2 ĝ dĝ/dη, averaged over the batch, after use: the mean of ĝ
    does not depend on η, so this lowers the variance. The source learns the temperature likewise; that takes second
    derivatives of the loss, which a caller does not bring back, so here the temperature is an option.
    """

    name = "rebar"
    summary = "score function with the relaxed loss as control variate; weight learned"
    reference = "Tucker, Mnih, Maddison, Lawson, Sohl-Dickstein 2017, arXiv 1703.07370"
    formula = (
        r"\hat g = \bigl(L(h) - \eta L(\tilde s)\bigr)\nabla_a \log P(h) + \eta\,\nabla_a L(s) - "
        r"\eta\,\nabla_a L(\tilde s)"
    )
    needs = frozenset({"loss", "grad"})
    off_support = True
    capabilities = (Relaxable,)

    examples = ({}, {"temperature": 0.1, "learn": False})

    temperature: float = Field(0.5, gt=0, allow_inf_nan=False, description="of the relaxation")
    eta: float = Field(1.0, allow_inf_nan=False, description="η before the first step")

    def evaluations(self, neuron: Neuron, event_shape: tuple[int, ...]) -> int:
        """3: h, s and s̃."""
        return 3

    def init(self, neuron: Neuron, a: Tensor) -> State:
        """η, `[*event]`, and its moments."""
        return with_moments({"eta": a.new_full(event_shape(neuron, a), self.eta, dtype=torch.float64)})

    def forward(self, neuron: Neuron, a: Tensor, key: Key, state: State) -> Draw:
        """Asks at h, s and s̃; the value is the loss at h."""
        noise, fresh = neuron.noise(key, a, 1), fresh_noise(neuron, key, a, 1)
        h = neuron.forward(a, noise)
        points = torch.cat([h, *relaxed(neuron, a, h, noise, fresh, self.temperature)])
        return Draw(neuron, a, key, points, a.new_tensor([1.0, 0.0, 0.0]), {"noise": noise, "fresh": fresh})

    def gradient(self, draw: Draw, feedback: Feedback, state: State, parameters: State) -> Tensor:
        """L(h) score, plus η times what has mean 0."""
        plain, control = self._terms(draw, feedback)
        # in float64, for the slope of its square
        return (plain.double() + parameters["eta"] * control.double()).to(plain)

    def _terms(self, draw: Draw, feedback: Feedback) -> tuple[Tensor, Tensor]:
        """L(h) score, and what η multiplies."""
        neuron, h = draw.neuron, draw.points[:1]
        assert isinstance(neuron, Relaxable)
        _, grad_s, grad_s_given_h = feedback.get_grad()
        a = draw.a.detach().requires_grad_()
        at = relaxed(neuron, a, h, draw.saved["noise"], draw.saved["fresh"], self.temperature)
        (path,) = torch.autograd.grad(at, a, (grad_s[None], -grad_s_given_h[None]))
        loss, score = per_event(feedback.get_loss(), neuron), neuron.score(h[0], draw.a)
        return loss[0] * score, path - loss[2] * score
