"""REBAR: the score function with the loss at a relaxed sample as its control variate."""

from __future__ import annotations

import torch
from pydantic import Field
from torch import Tensor

from gradest.estimator import Bias, Draw, Estimator, Feedback, State, event_shape, per_event
from gradest.neuron import LogisticBinary, Neuron
from gradest.random import Key
from gradest_estimators._learning import adam, with_moments


class Rebar(Estimator):
    """ĝ = (L(h) - η L(s̃)) score + η dL(s)/da - η dL(s̃)/da: unbiased for every η.

    s is the relaxed output at the noise that gave h, and s̃ a relaxed output given h, from fresh noise; both are differentiated
    in a with h and the noises held. dE[L(s)]/da is E[dL(s)/da], and, given h first, E[L(s̃) score + dL(s̃)/da]: what η
    multiplies has mean 0. It needs L and dL/dh between the two outputs of a unit as well.

    η, one a unit, is learned by Adam along d ĝ²/dη = 2 ĝ dĝ/dη, averaged over the batch, after use: the mean of ĝ does not
    depend on η, so this lowers the variance. The source learns the temperature likewise; that takes second derivatives of the
    loss, which a caller does not bring back, so here the temperature is an option.
    """

    name = "rebar"
    summary = "score function with the relaxed loss as control variate; weight learned"
    reference = "Tucker, Mnih, Maddison, Lawson, Sohl-Dickstein 2017, arXiv 1703.07370"
    needs = frozenset({"loss", "grad"})
    off_support = True
    capabilities = (LogisticBinary,)

    examples = ({}, {"temperature": 0.1, "learn": False})

    temperature: float = Field(0.5, gt=0, allow_inf_nan=False, description="of the relaxation")
    eta: float = Field(1.0, allow_inf_nan=False, description="η before the first step")
    learn: bool = Field(True, description="whether η is learned")
    learning_rate: float = Field(0.01, gt=0, allow_inf_nan=False, description="of η")

    def bias(self, neuron: Neuron) -> Bias:
        """None."""
        return Bias.NONE

    def evaluations(self, neuron: Neuron, event_shape: tuple[int, ...]) -> int:
        """3: h, s and s̃."""
        return 3

    def init(self, neuron: Neuron, a: Tensor) -> State:
        """η, `[*event]`, and its moments."""
        return with_moments({"eta": a.new_full(event_shape(neuron, a), self.eta, dtype=torch.float64)})

    def forward(self, neuron: Neuron, a: Tensor, key: Key, state: State) -> Draw:
        """Asks at h, s and s̃; the value is the loss at h."""
        assert isinstance(neuron, LogisticBinary)
        noise, fresh = neuron.noise(key, a, 1), neuron.noise(key.with_stream(1), a, 1)
        h = neuron.forward(a, noise)
        s, s_given_h = self._relaxed(neuron, a, h, noise, fresh)
        saved = {"noise": noise, "fresh": fresh}
        return Draw(neuron, a, key, torch.cat([h, s, s_given_h]), a.new_tensor([1.0, 0.0, 0.0]), saved)

    def backward(self, draw: Draw, feedback: Feedback, state: State) -> tuple[Tensor, State]:
        """Uses η, then moves it."""
        plain, control = self._terms(draw, feedback)
        gradient = plain + state["eta"].to(plain) * control
        if not (self.learn and gradient.numel()):
            return gradient, state
        slope = 2 * gradient.double() * control.double()
        mean = slope.reshape(-1, *state["eta"].shape).mean(0)
        return gradient, adam(state, {"eta": mean}, self.learning_rate)

    def _terms(self, draw: Draw, feedback: Feedback) -> tuple[Tensor, Tensor]:
        """L(h) score, and what η multiplies."""
        neuron, h = draw.neuron, draw.points[:1]
        assert isinstance(neuron, LogisticBinary)
        _, grad_s, grad_s_given_h = feedback.get_grad()
        with torch.enable_grad():
            a = draw.a.detach().requires_grad_()
            s, s_given_h = self._relaxed(neuron, a, h, draw.saved["noise"], draw.saved["fresh"])
            (path,) = torch.autograd.grad((s, s_given_h), a, (grad_s[None], -grad_s_given_h[None]))
        loss, score = per_event(feedback.get_loss(), neuron), neuron.score(h[0], draw.a)
        return loss[0] * score, path - loss[2] * score

    def _relaxed(
        self, neuron: LogisticBinary, a: Tensor, h: Tensor, noise: Tensor, fresh: Tensor
    ) -> tuple[Tensor, Tensor]:
        return neuron.relax(a, noise, self.temperature), neuron.conditional_relax(a, h, fresh, self.temperature)
