"""REBAR: the score function with the loss at a relaxed sample as its control variate."""

from __future__ import annotations

import torch
from pydantic import Field
from torch import Tensor

from gradest.contract.estimator import Bias, Draw, Feedback, State
from gradest.contract.neuron import Neuron, Relaxable, event_shape, per_event
from gradest.random import Key
from gradest_estimators._learning import ControlVariate, with_moments
from gradest_estimators._relaxed import fresh_noise, relaxed_pair


class Rebar(ControlVariate):
    """The score function with the loss at relaxed samples as its control variate, weighted with a learned η.

    ĝ = (L(h) - η L(s̃)) score + η dL(s)/da - η dL(s̃)/da, where s is the relaxed output at the noise that gave h, and
    s̃ a relaxed output conditional on h, from fresh noise. Both are differentiated in a with h and the noise held.

    Unbiased for every η, and for every loss that is continuous and differentiable almost everywhere between the outputs of a
    unit: the derivative of E[L(s)] is E[dL(s)/da] and, if h is summed out first, E[L(s̃) score + dL(s̃)/da]. So what η
    multiplies has mean 0. L and dL/dh are also evaluated between the outputs of a unit: between the two values of a binary
    unit, inside the simplex of a one-hot unit. A loss of round(h) jumps there, which dL/dh does not show, and so is biased.

    η has one value for each unit, or each unit and class. It is learned by Adam along d ĝ²/dη = 2 ĝ dĝ/dη, averaged
    over the batch, and moved only after its use. The mean of ĝ does not depend on η, so this lowers the variance.

    Introduced by Tucker, Mnih, Maddison, Lawson and Sohl-Dickstein (2017), REBAR: Low-Variance, Unbiased Gradient
    Estimates for Discrete Latent Variable Models, arXiv 1703.07370. They learn the temperature in the same way. That
    takes second derivatives of the loss, which the caller does not return, so here the temperature is an option.
    """

    name = "rebar"
    summary = "score function with the loss at relaxed samples as control variate, with a learned weight"
    reference = "Tucker, Mnih, Maddison, Lawson, Sohl-Dickstein 2017, arXiv 1703.07370"
    formula = (
        r"\hat g = \bigl(L(h) - \eta L(\tilde s)\bigr)\nabla_a \log P(h) + \eta\,\nabla_a L(s) - "
        r"\eta\,\nabla_a L(\tilde s)"
    )
    needs = frozenset({"loss", "grad"})
    off_support = True
    capabilities = (Relaxable,)

    examples = ({}, {"temperature": 0.1, "learn": False})

    temperature: float = Field(0.5, ge=1e-30, le=1e30, description="temperature of the relaxation")
    eta: float = Field(1.0, allow_inf_nan=False, description="weight η of the control variate before the first step")

    def bias(self, neuron: Neuron) -> Bias:
        """Return `Bias.NONE_IF_CONTINUOUS`: the control variate has mean zero if dL/dh between outputs accounts for all of L."""
        return Bias.NONE_IF_CONTINUOUS

    def evaluations(self, neuron: Neuron, event_shape: tuple[int, ...]) -> int:
        """Return K = 3: the loss is evaluated at h, s and s̃."""
        return 3

    def init(self, neuron: Neuron, a: Tensor) -> State:
        """Return η, `[*event]`, with Adam's averages of it."""
        return with_moments({"eta": a.new_full(event_shape(neuron, a), self.eta, dtype=torch.float64)})

    def forward(self, neuron: Neuron, a: Tensor, key: Key, state: State) -> Draw:
        """Ask for the loss at h, s and s̃; the value is the loss at h."""
        noise, fresh = neuron.noise(key, a, 1), fresh_noise(neuron, key, a, 1)
        h = neuron.forward(a, noise)
        points = torch.cat([h, *relaxed_pair(neuron, a, h, noise, fresh, self.temperature)])
        return Draw(neuron, a, key, points, a.new_tensor([1.0, 0.0, 0.0]), {"noise": noise, "fresh": fresh})

    def gradient(self, draw: Draw, feedback: Feedback, state: State, parameters: State) -> Tensor:
        """Return L(h) score plus η times the control variate, which has mean 0."""
        plain, control = self._terms(draw, feedback)
        # in float64, because the gradient of its square is taken
        return (plain.double() + parameters["eta"] * control.double()).to(plain)

    def _terms(self, draw: Draw, feedback: Feedback) -> tuple[Tensor, Tensor]:
        """Return L(h) score, and the control variate that η multiplies."""
        neuron, h = draw.neuron, draw.points[:1]
        assert isinstance(neuron, Relaxable)
        _, grad_s, grad_s_given_h = feedback.get_grad()
        a = draw.a.detach().requires_grad_()
        at = relaxed_pair(neuron, a, h, draw.saved["noise"], draw.saved["fresh"], self.temperature)
        (path,) = torch.autograd.grad(at, a, (grad_s[None], -grad_s_given_h[None]))
        loss, score = per_event(feedback.get_loss(), neuron), neuron.score(h[0], draw.a)
        return loss[0] * score, path - loss[2] * score
