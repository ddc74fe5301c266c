"""The concrete relaxation of a binary unit, and its straight-through form."""

from __future__ import annotations

from dataclasses import replace
from typing import ClassVar

import torch
from pydantic import Field
from torch import Tensor

from gradest.contract.estimator import Bias, Draw, Feedback, MonteCarlo, State
from gradest.contract.neuron import LogisticBinary, Neuron, Relaxable
from gradest.contract.numerics import leading_mean
from gradest.random import Key


class Concrete(MonteCarlo):
    """ĝ = L'(s) · ds/da at the relaxed output s = σ((a - logit u)/τ), where L is evaluated as well.

    It is the unbiased gradient of E[L(s)], the relaxed objective, and biased for E[L(h)]; so is the value. L must make sense
    between the neuron's two values.
    """

    name = "concrete"
    summary = "loss and gradient at a continuous relaxation of the unit"
    reference = "Maddison, Mnih, Teh 2017, arXiv 1611.00712; Jang, Gu, Poole 2017, arXiv 1611.01144"
    formula = r"\hat g = L'(s)\,\frac{ds}{da}, \quad s = \sigma\!\left(\frac{a - \operatorname{logit} u}{\tau}\right)"
    needs = frozenset({"grad"})
    off_support = True
    capabilities: ClassVar[tuple[type[Neuron], ...]] = (LogisticBinary,)

    examples = ({}, {"samples": 3, "temperature": 1.0})

    temperature: float = Field(0.5, gt=0, allow_inf_nan=False, description="τ")

    def bias(self, neuron: Neuron) -> Bias:
        """Biased, for linear losses already."""
        return Bias.BIASED

    def forward(self, neuron: Neuron, a: Tensor, key: Key, state: State) -> Draw:
        """Asks at the relaxed outputs."""
        draw = super().forward(neuron, a, key, state)
        return replace(draw, points=self._relax(draw, a))

    def backward(self, draw: Draw, feedback: Feedback, state: State) -> tuple[Tensor, State]:
        """The mean over samples of L'(s) ds/da, by differentiating the neuron's relaxation."""
        with torch.enable_grad():
            # a leaf for each sample, so that the mean over samples has a fixed order
            a = draw.a.expand_as(draw.points).clone().requires_grad_()
            (gradient,) = torch.autograd.grad(self._relax(draw, a), a, feedback.get_grad())
        return leading_mean(gradient), state

    def _relax(self, draw: Draw, a: Tensor) -> Tensor:
        assert isinstance(draw.neuron, Relaxable)
        return draw.neuron.relax(a, draw.noise(), self.temperature)


class StraightThroughConcrete(Concrete):
    """ĝ = L'(h) · ds/da: L at the sample h itself, the derivative of the relaxation s that belongs to the same noise."""

    name = "straight_through_concrete"
    summary = "loss at the sample, derivative of its continuous relaxation"
    reference = "Jang, Gu, Poole 2017, arXiv 1611.01144"
    formula = r"\hat g = L'(h)\,\frac{ds}{da}, \quad s = \sigma\!\left(\frac{a - \operatorname{logit} u}{\tau}\right)"
    off_support = False

    def forward(self, neuron: Neuron, a: Tensor, key: Key, state: State) -> Draw:
        """Asks at the samples."""
        return MonteCarlo.forward(self, neuron, a, key, state)
