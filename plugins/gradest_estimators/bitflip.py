"""Bitflip."""

from __future__ import annotations

import torch
from torch import Tensor

from gradest.contract.estimator import Draw, Feedback, State
from gradest.contract.neuron import Neuron, per_event
from gradest.random import Key
from gradest_estimators._binary import UnbiasedBinary, flip, flip_probability, rise, slope


class Bitflip(UnbiasedBinary):
    """One unit i of D, uniformly: ĝ_i = D p_i(1-p_i)(L(b_i=1) - L(b_i=0)), and 0 for the others. Unbiased.

    It is `local_expectation` with one of the units picked at random. Its variance falls with p(1-p) squared, and so is small
    near saturation, where that of pairs of samples falls with p(1-p) only. The value is E[L | all units but i].
    """

    name = "bitflip"
    summary = "one random unit summed out, scaled by the number of units"
    reference = "Kunes, Yin, Land, Haviv, Pe'er, Tavaré 2022, arXiv 2208.06124"
    formula = r"\hat g_i = D\,p_i (1 - p_i)\bigl(L(b_i{=}1) - L(b_i{=}0)\bigr), \quad i \sim U\{1, \dots, D\}"

    def evaluations(self, neuron: Neuron, event_shape: tuple[int, ...]) -> int:
        """2."""
        return 2

    def forward(self, neuron: Neuron, a: Tensor, key: Key, state: State) -> Draw:
        """Asks at a sample and at the same with one unit flipped."""
        h = neuron.sample(key, a, 1)
        picked = pick(torch.ones_like(a, dtype=torch.bool), key)
        goes = torch.where(picked, flip_probability(neuron, h[0], a), 0).sum(-1)
        points = torch.cat([h, torch.where(picked, flip(neuron, h), h)])
        return Draw(neuron, a, key, points, torch.stack([1 - goes, goes]), {"picked": picked})

    def backward(self, draw: Draw, feedback: Feedback, state: State) -> tuple[Tensor, State]:
        """D p(1-p) times the rise of the loss, for the picked unit."""
        loss = per_event(feedback.get_loss(), draw.neuron)
        rises = rise(draw.neuron, draw.points[0], loss[0], loss[1])
        return torch.where(draw.saved["picked"], draw.a.shape[-1] * slope(draw.a) * rises, 0), state


def pick(eligible: Tensor, key: Key) -> Tensor:
    """One of the eligible units of each row, uniformly, by noise of its own: true there, nowhere where none is eligible."""
    count = eligible.sum(-1)
    u = key.with_stream(1).uniform(eligible.shape[:-1], (), dtype=torch.float64, device=eligible.device)[0]
    rank = torch.minimum((u * count).long(), count - 1)  # u * count may round up to count
    return eligible & (eligible.cumsum(-1) - 1 == rank[..., None])
