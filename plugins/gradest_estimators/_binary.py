"""What the estimators of binary units share."""

from __future__ import annotations

import torch
from pydantic import Field
from torch import Tensor

from gradest.contract.estimator import Bias, Draw, Estimator, State
from gradest.contract.neuron import Binary, LogisticBinary, Neuron
from gradest.contract.numerics import leading_sum, sigmoid
from gradest.random import Key


class UnbiasedBinary(Estimator):
    """An unbiased estimator for binary units with P(high) = σ(a); by default it needs the loss alone."""

    needs = frozenset({"loss"})
    capabilities = (LogisticBinary,)

    def bias(self, neuron: Neuron) -> Bias:
        """None."""
        return Bias.NONE


class Antithetic(UnbiasedBinary):
    """Asks at pairs of samples made of one noise: h, high where u < p, and h~, high where 1 - u < p.

    Both have the neuron's law, since 1 - u is exact and as likely as u. Points 0 to n-1 are the h, and n to 2n-1 the h~.
    """

    samples: int = Field(2, ge=2, multiple_of=2, description="how many samples, two a pair; a draw averages over pairs")

    def evaluations(self, neuron: Neuron, event_shape: tuple[int, ...]) -> int:
        """The number of samples."""
        return self.samples

    def forward(self, neuron: Neuron, a: Tensor, key: Key, state: State) -> Draw:
        """Asks at h and at its mirror h~."""
        assert isinstance(neuron, Binary)
        points = neuron.antithetic(key, a, self.samples // 2)
        return Draw(neuron, a, key, points, a.new_full((self.samples,), 1 / self.samples))


class AllFlips(UnbiasedBinary):
    """Asks at one sample and at that sample with each of its D units flipped, in this order.

    The value is the mean over units of E[L | all other units], which these points give. Memory: the points,
    `[D + 1, *batch, D]`, once: 256 MB for 1,000 float32 units and a batch of 64.
    """

    def evaluations(self, neuron: Neuron, event_shape: tuple[int, ...]) -> int:
        """D + 1."""
        return event_shape[0] + 1

    def forward(self, neuron: Neuron, a: Tensor, key: Key, state: State) -> Draw:
        """Asks at a sample and its D flips; the weights of the flips are P(unit is not as in the sample) / D."""
        h = neuron.sample(key, a, 1)[0]
        units = a.shape[-1]
        points = h.repeat(units + 1, *[1] * a.ndim)
        points[1:].diagonal(dim1=0, dim2=-1).copy_(flip(neuron, h))
        goes = flip_probability(neuron, h, a).movedim(-1, 0) / max(1, units)
        weights = torch.cat([1 - leading_sum(goes)[None], goes])
        return Draw(neuron, a, key, points, weights)


def flip(neuron: Neuron, h: Tensor) -> Tensor:
    """High for low and low for high."""
    assert isinstance(neuron, Binary)
    return neuron.low + neuron.high - h


def flip_probability(neuron: Neuron, h: Tensor, a: Tensor) -> Tensor:
    """P(a unit is not as in h): 1 - p where it is high, p where low."""
    assert isinstance(neuron, Binary)
    return sigmoid(torch.where(h == neuron.high, -a, a))


def rise(neuron: Neuron, h: Tensor, at: Tensor, flipped: Tensor) -> Tensor:
    """L(unit high) - L(unit low), from L at h and L where that unit is flipped."""
    assert isinstance(neuron, Binary)
    return torch.where(h == neuron.high, at - flipped, flipped - at)


def slope(a: Tensor) -> Tensor:
    """p(1 - p), the derivative of P(high) in a."""
    return sigmoid(a) * sigmoid(-a)
