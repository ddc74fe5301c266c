"""The concrete relaxation of a binary unit as an estimator, and its straight-through form."""

from __future__ import annotations

from typing import ClassVar

from pydantic import Field
from torch import Tensor

from gradest.contract.estimator import Bias, Draw, Feedback, MonteCarlo, State
from gradest.contract.neuron import LogisticBinary, Neuron, Relaxable
from gradest.contract.numerics import leading_mean
from gradest.random import Key


class Concrete(MonteCarlo):
    """The pathwise gradient of the loss at a continuous relaxation s of the binary unit.

    ĝ = L'(s) · ds/da, with s = σ((a - logit u)/τ), scaled to the neuron's two values. L is evaluated at s as well, so
    it must be defined between the two values.

    Unbiased for the gradient of E[L(s)], the relaxed objective, but biased for that of E[L(h)], as is the value.

    Introduced by Maddison, Mnih and Teh (2017), The Concrete Distribution: A Continuous Relaxation of Discrete Random
    Variables, arXiv 1611.00712, and by Jang, Gu and Poole (2017), Categorical Reparameterization with Gumbel-Softmax,
    arXiv 1611.01144.
    """

    name = "concrete"
    summary = "loss and gradient at a continuous relaxation of the unit"
    reference = "Maddison, Mnih, Teh 2017, arXiv 1611.00712; Jang, Gu, Poole 2017, arXiv 1611.01144"
    formula = r"\hat g = L'(s)\,\frac{ds}{da}, \quad s = \sigma\!\left(\frac{a - \operatorname{logit} u}{\tau}\right)"
    needs = frozenset({"grad"})
    off_support = True
    capabilities: ClassVar[tuple[type[Neuron], ...]] = (LogisticBinary,)

    examples = ({}, {"samples": 3, "temperature": 1.0})

    temperature: float = Field(0.5, ge=1e-30, le=1e30, description="temperature τ of the relaxation")

    def bias(self, neuron: Neuron) -> Bias:
        """Return `Bias.BIASED`: s does not have the mean of h, so even linear losses are biased."""
        return Bias.BIASED

    def forward(self, neuron: Neuron, a: Tensor, key: Key, state: State) -> Draw:
        """Ask for the loss at the relaxed outputs."""
        assert isinstance(neuron, Relaxable)
        noise = neuron.noise(key, a, self.samples)  # of the samples, which themselves are not needed
        return Draw(neuron, a, key, neuron.relax(a, noise, self.temperature), saved={"noise": noise})

    def backward(self, draw: Draw, feedback: Feedback, state: State) -> tuple[Tensor, State]:
        """Return the mean over samples of L'(s) ds/da, by the derivative of the neuron's relaxation."""
        assert isinstance(draw.neuron, Relaxable)
        noise, relaxed, grad = draw.saved.get("noise"), None, feedback.get_grad()
        if noise is None:  # the points are samples, or the draw came without what can be computed from its key
            noise = draw.noise()
        else:
            relaxed = draw.points
        return leading_mean(draw.neuron.relax_backward(draw.a, noise, self.temperature, grad, relaxed)), state


class StraightThroughConcrete(Concrete):
    """The derivative of the loss at the sample h, passed back through the relaxation s of the same noise.

    ĝ = L'(h) · ds/da, with s = σ((a - logit u)/τ), scaled to the neuron's two values. The loss is evaluated only at
    outputs of the neuron, so the value is unbiased; the gradient is biased.

    Introduced by Jang, Gu and Poole (2017), Categorical Reparameterization with Gumbel-Softmax, arXiv 1611.01144.
    """

    name = "straight_through_concrete"
    summary = "loss at the sample, with the derivative of its continuous relaxation"
    reference = "Jang, Gu, Poole 2017, arXiv 1611.01144"
    formula = r"\hat g = L'(h)\,\frac{ds}{da}, \quad s = \sigma\!\left(\frac{a - \operatorname{logit} u}{\tau}\right)"
    off_support = False

    def forward(self, neuron: Neuron, a: Tensor, key: Key, state: State) -> Draw:
        """Ask for the loss at the samples."""
        return MonteCarlo.forward(self, neuron, a, key, state)
