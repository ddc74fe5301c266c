"""Unbiased gradient estimation with variance clipping."""

from __future__ import annotations

import torch
from pydantic import Field
from torch import Tensor

from gradest.contract.estimator import Draw, Feedback, State
from gradest.contract.neuron import Neuron, per_event
from gradest.contract.numerics import sigmoid
from gradest.random import Key
from gradest_estimators._binary import UnbiasedBinary, flip, rise, slope
from gradest_estimators.bitflip import pick
from gradest_estimators.disarm import disarm


class Ugc(UnbiasedBinary):
    """`bitflip` for the units with min(p, 1-p) < τ, `disarm` for the rest: unbiased, for each of them is.

    For a unit of small q = min(p, 1-p) whose flip changes the loss by δ, bitflip has the variance D q² δ² and disarm about
    q δ² / 2 and more for what the other units do. They cross at τ = 1/(2D), the default. The unit to flip is picked among the
    n <= D units below τ and scaled by n instead of D, which only lowers the variance.
    """

    name = "ugc"
    summary = "bitflip for nearly saturated units, disarm for the rest"
    reference = "Kunes, Yin, Land, Haviv, Pe'er, Tavaré 2022, arXiv 2208.06124"
    formula = (
        r"\hat g_i = \begin{cases} \text{bitflip}_i & \min(p_i, 1 - p_i) < \tau \\ \text{disarm}_i & "
        r"\text{else} \end{cases}"
    )

    examples = ({}, {"threshold": 0.3}, {"threshold": 0.5})

    threshold: float | None = Field(None, ge=0, le=0.5, description="τ; 1/(2D) if not given")

    def evaluations(self, neuron: Neuron, event_shape: tuple[int, ...]) -> int:
        """3: a pair, and the first of it with one unit flipped."""
        return 3

    def forward(self, neuron: Neuron, a: Tensor, key: Key, state: State) -> Draw:
        """Asks at an antithetic pair, and at its first point with one unit flipped."""
        noise = neuron.noise(key, a, 1)
        h = neuron.forward(a, noise)
        threshold = 0.5 / max(1, a.shape[-1]) if self.threshold is None else self.threshold
        extreme = sigmoid(-a.abs()) < threshold
        picked = pick(extreme, key)
        points = torch.cat([h, neuron.forward(a, 1 - noise), torch.where(picked, flip(neuron, h), h)])
        return Draw(neuron, a, key, points, a.new_tensor([0.5, 0.5, 0.0]), {"extreme": extreme, "picked": picked})

    def backward(self, draw: Draw, feedback: Feedback, state: State) -> tuple[Tensor, State]:
        """Unit by unit the one or the other."""
        losses, extreme = feedback.get_loss(), draw.saved["extreme"]
        loss = per_event(losses, draw.neuron)
        rises = rise(draw.neuron, draw.points[0], loss[0], loss[2])
        scale = extreme.sum(-1, keepdim=True).to(loss.dtype)
        flips = torch.where(draw.saved["picked"], scale * slope(draw.a) * rises, 0)
        return torch.where(extreme, flips, disarm(draw.points[:2], losses[:2], draw)), state
