"""Shared parts of the estimators for binary units."""

from __future__ import annotations

import torch
from pydantic import Field
from torch import Tensor

from gradest.contract.estimator import Bias, Draw, Estimator, State
from gradest.contract.neuron import Binary, LogisticBinary, Neuron
from gradest.contract.numerics import leading_sum, sigmoid
from gradest.random import Key

_LEAST_LOGIT = {torch.float32: -103.9, torch.float64: -745.1}  # below, a probability is 0 to the precision of its type


class UnbiasedBinary(Estimator):
    """An unbiased estimator for binary units with P(h = high) = p = σ(a), which needs only the loss."""

    needs = frozenset({"loss"})
    capabilities = (LogisticBinary,)

    def bias(self, neuron: Neuron) -> Bias:
        """Return `Bias.NONE`: subclasses are unbiased for every loss, each for the reason that its docstring gives."""
        return Bias.NONE


class Antithetic(UnbiasedBinary):
    """An estimator that evaluates the loss at antithetic pairs of samples.

    The two samples of a pair share uniform noise u: h is high where u < p, and its mirror image h~ is high where
    1 - u < p. Both have the neuron's law, because 1 - u is computed without rounding and is as likely as u. The points
    are `[2n, *batch, units]`: first the n samples h, then their mirror images h~ in the same order.
    """

    samples: int = Field(2, ge=2, multiple_of=2, description="number of samples; a draw averages over pairs of them")

    def evaluations(self, neuron: Neuron, event_shape: tuple[int, ...]) -> int:
        """Return K, the number of samples."""
        return self.samples

    def forward(self, neuron: Neuron, a: Tensor, key: Key, state: State) -> Draw:
        """Ask for the loss at the samples h and their mirror images h~."""
        assert isinstance(neuron, Binary)
        points = neuron.antithetic(key, a, self.samples // 2)
        return Draw(neuron, a, key, points)


class AllFlips(UnbiasedBinary):
    """An estimator that evaluates the loss at one sample, and at that sample with each of its D units flipped.

    The points are `[D + 1, *batch, D]`, the sample itself first. They are held in memory once: 256 MB for 1,000 float32
    units and a batch of 64. The value is the mean over units of E[L | all other units], which these points give
    exactly.
    """

    def evaluations(self, neuron: Neuron, event_shape: tuple[int, ...]) -> int:
        """Return K = D + 1."""
        return event_shape[0] + 1

    def forward(self, neuron: Neuron, a: Tensor, key: Key, state: State) -> Draw:
        """Ask for the loss at a sample and its D flips, with the weights P(unit differs from the sample)/D for the flips."""
        return ask_at_all_flips(neuron, a, key)


def ask_at_all_flips(neuron: Neuron, a: Tensor, key: Key) -> Draw:
    """Return the draw of `AllFlips`: a sample, and it with each unit flipped, `[D + 1, *batch, D]`."""
    h = neuron.sample(key, a, 1)[0]
    units = a.shape[-1]
    points = h.repeat(units + 1, *[1] * a.ndim)
    points[1:].diagonal(dim1=0, dim2=-1).copy_(flip(neuron, h))
    flip_weights = flip_probability(neuron, h, a).movedim(-1, 0) / max(1, units)
    weights = torch.cat([1 - leading_sum(flip_weights)[None], flip_weights])
    return Draw(neuron, a, key, points, weights)


def flip(neuron: Neuron, h: Tensor) -> Tensor:
    """Return h with high and low exchanged."""
    assert isinstance(neuron, Binary)
    return neuron.low + neuron.high - h


def flip_probability(neuron: Neuron, h: Tensor, a: Tensor) -> Tensor:
    """Return the probability that a unit differs from h: 1 - p where h is high, p where it is low.

    Where it underflows, it is 0 rather than the least that `sigmoid` returns, so that an infinite loss there does not count.
    """
    assert isinstance(neuron, Binary)
    logit = torch.where(h == neuron.high, -a, a)
    return sigmoid(logit).masked_fill(logit < _LEAST_LOGIT[a.dtype], 0)


def loss_difference(neuron: Neuron, h: Tensor, loss: Tensor, flipped_loss: Tensor, a: Tensor) -> Tensor:
    """Return L(unit high) - L(unit low), from the loss at h and the loss with that unit flipped.

    It is 0 where the flip has probability 0, which says nothing of the loss there.
    """
    assert isinstance(neuron, Binary)
    is_high = h == neuron.high
    flipped_loss = torch.where(torch.where(is_high, -a, a) < _LEAST_LOGIT[a.dtype], loss, flipped_loss)
    return torch.where(is_high, loss - flipped_loss, flipped_loss - loss)


def sigmoid_derivative(a: Tensor) -> Tensor:
    """Return p(1 - p), the derivative of p = σ(a) in a."""
    return sigmoid(a) * sigmoid(-a)
