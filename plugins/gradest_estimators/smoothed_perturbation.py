"""Smoothed perturbation analysis."""

from __future__ import annotations

from typing import Literal

import torch
from pydantic import Field
from torch import Tensor

from gradest.contract.estimator import Draw, Feedback, State
from gradest.contract.neuron import Binary
from gradest_estimators._binary import AllFlips, flip_probability, loss_difference


class SmoothedPerturbation(AllFlips):
    """The rate at which each unit flips as a changes, times the loss difference that the flip makes.

    side="right", a grows: only a low unit can flip, at the rate p(1-p)/(1-p), so ĝ_i = 1[b_i=0] p_i (L(b_i→1) - L).

    side="left", a falls: only a high unit can flip, so ĝ_i = 1[b_i=1] (1-p_i)(L - L(b_i→0)).

    side="both": the mean of the two, ĝ_i = ½ P(b_i flipped)(L(b_i→1) - L(b_i→0)).

    Unbiased for every loss and side: given the other units, the mean over b_i is p_i(1-p_i)(L(b_i→1) - L(b_i→0)). That
    mean is the estimate of `local_expectation`, which has the same D + 1 points and less variance. Memory: the points,
    `[D + 1, *batch, D]`, are held once.

    Introduced by Arya, Schauer, Schäfer and Rackauckas (2022), Automatic Differentiation of Programs with Discrete
    Randomness, arXiv 2210.08572. Their pruning, which picks one flip at random, is not implemented; `bitflip` is close
    to it.
    """

    name = "smoothed_perturbation"
    summary = "rate at which each unit flips, times the loss difference that the flip makes"
    reference = "Arya, Schauer, Schäfer, Rackauckas 2022, arXiv 2210.08572"
    formula = r"\hat g_i = \tfrac12 P(b_i \text{ flipped})\bigl(L(b_i{\to}1) - L(b_i{\to}0)\bigr)"

    examples = ({}, {"side": "right"}, {"side": "left"})

    side: Literal["both", "right", "left"] = Field(
        "both", description="side of the derivative: a grows (right), a falls (left), or the mean of both"
    )

    def backward(self, draw: Draw, feedback: Feedback, state: State) -> tuple[Tensor, State]:
        """Return the rate of each unit's flip times the loss difference."""
        neuron, h, loss = draw.neuron, draw.points[0], feedback.get_loss()
        assert isinstance(neuron, Binary)
        rate = flip_probability(neuron, h, draw.a)
        if self.side == "both":
            rate = 0.5 * rate
        else:
            able = neuron.low if self.side == "right" else neuron.high
            rate = torch.where(h == able, rate, 0)
        return rate * loss_difference(neuron, h, loss[0][..., None], loss[1:].movedim(0, -1), draw.a), state
