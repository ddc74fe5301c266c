"""Unbiased gradient estimation with variance clipping (UGC)."""

from __future__ import annotations

import torch
from pydantic import Field
from torch import Tensor

from gradest.contract.estimator import Draw, Feedback, State
from gradest.contract.neuron import Neuron, per_event
from gradest.contract.numerics import sigmoid
from gradest.random import Key
from gradest_estimators._binary import UnbiasedBinary, flip, loss_difference, sigmoid_derivative
from gradest_estimators.bitflip import pick_unit
from gradest_estimators.disarm import disarm


class Ugc(UnbiasedBinary):
    """The `bitflip` estimator for nearly saturated units, and `disarm` for all others.

    Units with min(p, 1-p) < τ are treated by `bitflip`, the rest by `disarm`. Unbiased for every loss, because both
    are, and which unit gets which depends on a alone.

    For a unit of small q = min(p, 1-p) whose flip changes the loss by δ, `bitflip` has the variance D q² δ², and
    `disarm` about q δ² / 2 plus what the other units cause. The two are equal at τ = 1/(2D), the default. The unit to
    flip is picked among the n <= D units below τ and scaled by n instead of D, which only lowers the variance.

    Introduced by Kunes, Yin, Land, Haviv, Pe'er and Tavaré (2022), Gradient Estimation for Binary Latent Variables via
    Gradient Variance Clipping, arXiv 2208.06124.
    """

    name = "ugc"
    summary = "bitflip for nearly saturated units, disarm for the rest"
    reference = "Kunes, Yin, Land, Haviv, Pe'er, Tavaré 2022, arXiv 2208.06124"
    formula = (
        r"\hat g_i = \begin{cases} \text{bitflip}_i & \min(p_i, 1 - p_i) < \tau \\ \text{disarm}_i & "
        r"\text{else} \end{cases}"
    )

    examples = ({}, {"threshold": 0.3}, {"threshold": 0.5})

    threshold: float | None = Field(
        None, ge=0, le=0.5, description="limit τ of min(p, 1-p) below which a unit is flipped; 1/(2D) if omitted"
    )

    def evaluations(self, neuron: Neuron, event_shape: tuple[int, ...]) -> int:
        """Return K = 3: an antithetic pair, and its first sample with one unit flipped."""
        return 3

    def forward(self, neuron: Neuron, a: Tensor, key: Key, state: State) -> Draw:
        """Ask for the loss at an antithetic pair, and at its first sample with one unit flipped."""
        noise = neuron.noise(key, a, 1)
        h = neuron.forward(a, noise)
        threshold = 0.5 / max(1, a.shape[-1]) if self.threshold is None else self.threshold
        extreme = sigmoid(-a.abs()) < threshold
        picked = pick_unit(extreme, key)
        points = torch.cat([h, neuron.forward(a, 1 - noise), torch.where(picked, flip(neuron, h), h)])
        return Draw(neuron, a, key, points, a.new_tensor([0.5, 0.5, 0.0]), {"extreme": extreme, "picked": picked})

    def backward(self, draw: Draw, feedback: Feedback, state: State) -> tuple[Tensor, State]:
        """Return the estimate of `bitflip` for nearly saturated units, and that of `disarm` for the others."""
        losses, extreme = feedback.get_loss(), draw.saved["extreme"]
        loss = per_event(losses, draw.neuron)
        difference = loss_difference(draw.neuron, draw.points[0], loss[0], loss[2], draw.a)
        scale = extreme.sum(-1, keepdim=True).to(loss.dtype)
        flips = torch.where(draw.saved["picked"], scale * sigmoid_derivative(draw.a) * difference, 0)
        return torch.where(extreme, flips, disarm(draw.points[:2], losses[:2], draw)), state
