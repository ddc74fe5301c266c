"""Shared parts of the score-function estimators."""

from __future__ import annotations

from typing import ClassVar

from torch import Tensor

from gradest.contract.estimator import Draw, Estimator
from gradest.contract.neuron import Discrete, LogisticBinary, LogisticStep, Neuron, Relaxable, SoftmaxOneHot, Subset
from gradest.contract.numerics import leading_mean
from gradest_estimators._binary import sigmoid_derivative
from gradest_estimators._one_hot import softmax_vjp


def scores(draw: Draw) -> Tensor:
    """Return the score d log P(h_k | a)/da at each point, `[K, *batch, *event]`."""
    assert isinstance(draw.neuron, Discrete)
    return draw.neuron.score(draw.points, draw.a)


def weighted_score(draw: Draw, weights: Tensor) -> Tensor:
    """Return Σ_k weights_k d log P(h_k | a)/da, `[*batch, *event]`, for weights `[K, *batch]`."""
    assert isinstance(draw.neuron, Discrete)
    return draw.neuron.weighted_score(draw.points, draw.a, weights)


def centered(loss: Tensor) -> Tensor:
    """Return L_k - mean L for losses `[K, *batch]`, which is exactly 0 where all K losses are equal.

    The mean of K equal numbers may differ from them in the last digit, so one of the losses is subtracted first.
    """
    loss = loss - loss[0]
    return loss - leading_mean(loss)


class LogitEstimator(Estimator):
    """An estimator for units whose pre-activations are logits: binary with P(high) = σ(a), or one-hot with P = softmax(a)."""

    capabilities: ClassVar[tuple[type[Neuron], ...]] = (Relaxable,)

    def accepts(self, neuron: Neuron) -> bool:
        """Return whether the neuron is of one of these two kinds."""
        return isinstance(neuron, LogisticBinary | SoftmaxOneHot)


class MeanEstimator(LogitEstimator):
    """An estimator for units of which `mean_vjp` knows dE[h]/da: of a `LogitEstimator`, correlated binary ones, and subsets."""

    capabilities = (Discrete,)

    def accepts(self, neuron: Neuron) -> bool:
        """Return whether the neuron is of one of these kinds."""
        return super().accepts(neuron) or isinstance(neuron, LogisticStep | Subset)


def mean_vjp(neuron: Neuron, a: Tensor, grad: Tensor) -> Tensor:
    """Return grad · dE[h]/da, for a unit that a `MeanEstimator` accepts."""
    if isinstance(neuron, Subset):
        return neuron.mean_backward(a, grad)
    if isinstance(neuron, SoftmaxOneHot):
        return softmax_vjp(neuron.probability(a), grad)
    assert isinstance(neuron, LogisticStep)
    return (neuron.high - neuron.low) * sigmoid_derivative(a) * grad


def event_sum(x: Tensor, neuron: Neuron) -> Tensor:
    """Return the sum over each event, `[..., *event]` to `[...]`, added in a fixed order."""
    return x.flatten(-neuron.event_ndim).contiguous().sum(-1)
