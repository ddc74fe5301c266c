"""Smoothed perturbation analysis."""

from __future__ import annotations

from typing import Literal

import torch
from pydantic import Field
from torch import Tensor

from gradest.contract.estimator import Draw, Feedback, State
from gradest.contract.neuron import Binary
from gradest_estimators._binary import AllFlips, flip_probability, rise


class SmoothedPerturbation(AllFlips):
    """The rate at which a unit flips as a moves, times what the flip does to the loss: unbiased.

    side="right", a grows: only a low unit can flip, at the rate p(1-p)/(1-p), so ĝ_i = 1[b_i=0] p_i (L(b_i→1) - L).
    side="left", a falls: only a high one can, ĝ_i = 1[b_i=1] (1-p_i)(L - L(b_i→0)).
    side="both": the mean of the two, ĝ_i = ½ P(b_i flipped)(L(b_i→1) - L(b_i→0)).

    `local_expectation` has the same D + 1 points and is the mean of these given the other units, so less variance. The
    source's pruning, one flip picked at random, is not here; `bitflip` is near to it. Memory: the points once,
    `[D + 1, *batch, D]`.
    """

    name = "smoothed_perturbation"
    summary = "rate of each unit's flip, times the difference it makes"
    reference = "Arya, Schauer, Schäfer, Rackauckas 2022, arXiv 2210.08572"
    formula = r"\hat g_i = \tfrac12 P(b_i \text{ flipped})\bigl(L(b_i{\to}1) - L(b_i{\to}0)\bigr)"

    examples = ({}, {"side": "right"}, {"side": "left"})

    side: Literal["both", "right", "left"] = Field("both", description="of the derivative")

    def backward(self, draw: Draw, feedback: Feedback, state: State) -> tuple[Tensor, State]:
        """Rate times difference, unit by unit."""
        neuron, h, loss = draw.neuron, draw.points[0], feedback.get_loss()
        assert isinstance(neuron, Binary)
        rate = flip_probability(neuron, h, draw.a)
        if self.side == "both":
            rate = 0.5 * rate
        else:
            able = neuron.low if self.side == "right" else neuron.high
            rate = torch.where(h == able, rate, 0)
        return rate * rise(neuron, h, loss[0][..., None], loss[1:].movedim(0, -1)), state
