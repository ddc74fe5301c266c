"""The straight-through estimator with a slope that grows from step to step."""

from __future__ import annotations

from typing import Literal

import torch
from pydantic import Field
from torch import Tensor

from gradest.contract.estimator import Bias, Draw, Feedback, State
from gradest.contract.neuron import Neuron
from gradest_estimators.straight_through import StraightThrough


class SlopeAnnealedStraightThrough(StraightThrough):
    """`straight_through` whose slope at step t is min(max_slope, slope + rate · t): the smooth function becomes the unit's step.

    The number of steps taken is the state. It is read before it grows, so the first step has the slope that is given. The
    source adds 0.04 an epoch, up to 5, to the slope of a hard sigmoid; here a step counts, and the sigmoid is the unit's own.
    """

    name = "slope_annealed_straight_through"
    summary = "straight_through with a sigmoid that grows steeper with the steps"
    reference = "Chung, Ahn, Bengio 2017, arXiv 1609.01704"
    formula = r"\hat g = L'(h)\,\beta_t\,\sigma'(\beta_t a), \quad \beta_t = \min(\beta_{\max}, \beta_0 + r t)"

    examples = ({}, {"derivative": "clipped", "samples": 2})

    derivative: Literal["identity", "sigmoid", "clipped"] = Field("sigmoid", description="what stands for dh/da")
    rate: float = Field(1e-3, ge=0, allow_inf_nan=False, description="by which the slope grows in a step")
    max_slope: float = Field(5.0, gt=0, allow_inf_nan=False, description="beyond which it does not grow")

    def bias(self, neuron: Neuron) -> Bias:
        """Biased, from the second step on for losses of any degree."""
        return Bias.BIASED

    def init(self, neuron: Neuron, a: Tensor) -> State:
        """No step taken."""
        return {"steps": a.new_zeros((), dtype=torch.float64)}

    def backward(self, draw: Draw, feedback: Feedback, state: State) -> tuple[Tensor, State]:
        """Uses the slope of this step, then counts it."""
        slope = (self.slope + self.rate * state["steps"]).clamp(max=self.max_slope)
        return self.pass_through(draw, feedback, slope.to(draw.a)), {"steps": state["steps"] + 1}
