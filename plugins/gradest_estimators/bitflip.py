"""The bitflip estimator."""

from __future__ import annotations

import torch
from torch import Tensor

from gradest.contract.estimator import Draw, Feedback, State
from gradest.contract.neuron import Neuron, per_event
from gradest.random import Key
from gradest_estimators._binary import UnbiasedBinary, flip, flip_probability, loss_difference, sigmoid_derivative


class Bitflip(UnbiasedBinary):
    """One randomly picked unit summed out exactly, scaled by the number D of units.

    ĝ_i = D p_i(1-p_i)(L(b_i=1) - L(b_i=0)) for one unit i, picked uniformly; 0 for all other units.

    Unbiased for every loss: given the other units, the difference is the exact derivative of unit i, which is picked
    with probability 1/D. It is `local_expectation` for a single random unit. Near saturation its variance falls with
    the square of p(1-p), whereas that of pairs of samples falls only with p(1-p). The value is E[L | all units but i].

    Introduced by Kunes, Yin, Land, Haviv, Pe'er and Tavaré (2022), Gradient Estimation for Binary Latent Variables via
    Gradient Variance Clipping, arXiv 2208.06124.
    """

    name = "bitflip"
    summary = "one random unit summed out, scaled by the number of units"
    reference = "Kunes, Yin, Land, Haviv, Pe'er, Tavaré 2022, arXiv 2208.06124"
    formula = r"\hat g_i = D\,p_i (1 - p_i)\bigl(L(b_i{=}1) - L(b_i{=}0)\bigr), \quad i \sim U\{1, \dots, D\}"

    def evaluations(self, neuron: Neuron, event_shape: tuple[int, ...]) -> int:
        """Return K = 2."""
        return 2

    def forward(self, neuron: Neuron, a: Tensor, key: Key, state: State) -> Draw:
        """Ask for the loss at a sample, and at that sample with the picked unit flipped."""
        h = neuron.sample(key, a, 1)
        picked = pick_unit(torch.ones_like(a, dtype=torch.bool), key)
        flip_weight = torch.where(picked, flip_probability(neuron, h[0], a), 0).sum(-1)
        points = torch.cat([h, torch.where(picked, flip(neuron, h), h)])
        return Draw(neuron, a, key, points, torch.stack([1 - flip_weight, flip_weight]), {"picked": picked})

    def backward(self, draw: Draw, feedback: Feedback, state: State) -> tuple[Tensor, State]:
        """Return D p(1-p) times the loss difference between high and low for the picked unit, and 0 for the others."""
        loss = per_event(feedback.get_loss(), draw.neuron)
        difference = loss_difference(draw.neuron, draw.points[0], loss[0], loss[1], draw.a)
        return torch.where(draw.saved["picked"], draw.a.shape[-1] * sigmoid_derivative(draw.a) * difference, 0), state


def pick_unit(eligible: Tensor, key: Key) -> Tensor:
    """Return a mask that selects one eligible unit of each row uniformly, or none where no unit is eligible.

    The choice uses noise of its own, so it does not depend on the sample.
    """
    count = eligible.sum(-1)
    u = key.with_stream(1).uniform(eligible.shape[:-1], (), dtype=torch.float64, device=eligible.device)[0]
    rank = torch.minimum((u * count).long(), count - 1)  # because u * count may round up to count
    return eligible & (eligible.cumsum(-1) - 1 == rank[..., None])
