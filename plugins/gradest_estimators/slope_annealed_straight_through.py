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
    """The `straight_through` estimator with a slope that grows until the smooth function nears the unit's step.

    At step t the slope is min(max_slope, slope + rate · t). The state counts the steps. It is read before it grows, so
    the first step has the slope that is given. Biased: `straight_through` is exact to first order only for the sigmoid
    of slope 1.

    Introduced by Chung, Ahn and Bengio (2017), Hierarchical Multiscale Recurrent Neural Networks, arXiv 1609.01704.
    They add 0.04 per epoch, up to 5, to the slope of a hard sigmoid. Here the slope grows with every step, and the
    function is the unit's own sigmoid.
    """

    name = "slope_annealed_straight_through"
    summary = "straight_through with a sigmoid that grows steeper from step to step"
    reference = "Chung, Ahn, Bengio 2017, arXiv 1609.01704"
    formula = r"\hat g = L'(h)\,\beta_t\,\sigma'(\beta_t a), \quad \beta_t = \min(\beta_{\max}, \beta_0 + r t)"

    examples = ({}, {"derivative": "clipped", "samples": 2})

    derivative: Literal["identity", "sigmoid", "clipped"] = Field(
        "sigmoid", description="function that stands in for dh/da"
    )
    rate: float = Field(1e-3, ge=0, allow_inf_nan=False, description="amount by which the slope grows in each step")
    max_slope: float = Field(5.0, gt=0, allow_inf_nan=False, description="limit beyond which the slope does not grow")

    def bias(self, neuron: Neuron) -> Bias:
        """Return `Bias.BIASED`: once the slope has grown, the derivative is wrong even for linear losses."""
        return Bias.BIASED

    def init(self, neuron: Neuron, a: Tensor) -> State:
        """Return the number of steps taken, 0."""
        return {"steps": a.new_zeros((), dtype=torch.float64)}

    def backward(self, draw: Draw, feedback: Feedback, state: State) -> tuple[Tensor, State]:
        """Use the slope of this step, then count the step."""
        slope = (self.slope + self.rate * state["steps"]).clamp(max=self.max_slope)
        return self.pass_through(draw, feedback, slope.to(draw.a)), {"steps": state["steps"] + 1}
