"""How much outputs contribute to a gradient that some number of draws hardly ever shows.

A standard error is computed from the draws that were made. Where part of the gradient is due to outputs that are rarer, as for
the loss exp(20 h) of a normal h, or at a unit one of whose classes has the probability 1e-4, the draws agree with each other and
differ from the exact gradient by any number of standard errors. That is no evidence of bias.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from gradest.contract.law import configurations, count_configurations
from gradest.contract.neuron import Discrete, Neuron, event_shape, per_event
from gradest.contract.objective import Loss
from gradest.errors import GradestError
from gradest.estimation.arguments import check_pre_activations
from gradest.estimation.exact import exact_checked
from gradest.estimation.losses.evaluation import CHUNK, losses_at
from gradest.random import Key

__all__ = ["share_of_rare_outputs"]

_SHOWN = 10  # times that an output is to be expected in the draws, or it counts as rare
_MOST_DRAWS = 1 << 14  # outputs that are sorted to find the range of those that are not rare
_ANY_TOLERANCE = 1e6  # of the quadrature: the order of magnitude is enough
_GOAL = 1e-3  # levels that are closer to each other are close enough


def share_of_rare_outputs(
    f: Loss, a: Tensor, neuron: Neuron, value: Tensor, exact: Tensor, draws: int, seed: int
) -> Tensor | None:
    """Return how much of the exact gradient, `[*batch, *event]`, is due to rare outputs, as a magnitude.

    An output is rare if that of one of its units is to be expected less than 10 times in so many draws: by its probability, for a
    `Discrete` neuron, and else by the range of samples without the 10 largest and the 10 smallest. It is Σ P(h) |f(h) - value|
    |score(h)| over the rare outputs of a discrete neuron, plus P(rare) |exact|, and the derivative of Σ P(h) (f(h) - value) for
    others. None if the sum is impossible.

    value: E[f(h)], `[*batch]`. exact: its gradient. seed: of the samples.
    """
    wide = check_pre_activations(a, neuron)
    try:
        if isinstance(neuron, Discrete):
            return _of_discrete(f, a, wide.double(), neuron, value.double(), exact, _SHOWN / draws)
        n = min(draws, _MOST_DRAWS)
        with torch.no_grad():
            samples = neuron.sample(Key(seed), wide, n).sort(0).values
        shown = min(_SHOWN * n // draws, (n - 1) // 2)
        part = _OutsideOfRange(f, neuron, value, samples[shown], samples[n - 1 - shown])
        return exact_checked(part, a, neuron, tolerance=_ANY_TOLERANCE, goal=_GOAL)[1].abs()
    except GradestError:
        return None


def _of_discrete(
    f: Loss, a: Tensor, wide: Tensor, neuron: Discrete, value: Tensor, exact: Tensor, probability: float
) -> Tensor:
    event = event_shape(neuron, wide)
    count_configurations(neuron, event)  # refuses too many before the law takes memory
    with torch.no_grad():
        law = neuron.law(wide)
        total = count_configurations(neuron, event, len(law[0]))
        chunk = max(1, CHUNK // max(1, law[0][0].numel()))
        contributed, mass = torch.zeros_like(wide), torch.zeros_like(value)
        for first in range(0, total, chunk):
            points, weights = configurations(neuron, wide, law, first, min(first + chunk, total))
            unlikely = neuron.log_prob(points, wide).exp() < probability
            weights = torch.where(unlikely.any(-1), weights, 0)
            loss = losses_at(f, points.to(a.dtype), neuron.output_ndim).double()
            size = torch.where(weights > 0, weights * (loss - value).abs(), 0)
            contributed += (per_event(size, neuron) * neuron.score(points, wide).abs()).sum(0)
            mass += weights.sum(0)
    return contributed + per_event(mass, neuron) * exact.abs()


@dataclass(frozen=True, eq=False)
class _OutsideOfRange:
    """The loss f(h) - value where an entry of h is outside of its range, and 0 elsewhere."""

    f: Loss
    neuron: Neuron
    value: Tensor
    low: Tensor
    high: Tensor

    def __call__(self, points: Tensor) -> Tensor:
        loss, still = losses_at(self.f, points, self.neuron.output_ndim), points.detach()
        outside = ((still < self.low) | (still > self.high)).flatten(still.ndim - self.neuron.output_ndim).any(-1)
        return torch.where(outside, loss - self.value, 0)
