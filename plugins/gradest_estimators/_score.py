"""What the score-function estimators share."""

from __future__ import annotations

from torch import Tensor

from gradest.contract.estimator import Bias, Draw, Estimator, MonteCarlo
from gradest.contract.neuron import Discrete, LogisticBinary, Neuron, Relaxable, SoftmaxOneHot
from gradest_estimators._binary import slope
from gradest_estimators._one_hot import softmax_backward


class ScoreFunction(MonteCarlo):
    """An estimator of the form ĝ = mean_k (L_k - baseline) · d log P(h_k | a)/da, for neurons with a discrete law."""

    needs = frozenset({"loss"})
    capabilities = (Discrete,)

    def bias(self, neuron: Neuron) -> Bias:
        """None: E[score] = 0, so a baseline that does not depend on the sample changes no mean."""
        return Bias.NONE


def scores(draw: Draw) -> Tensor:
    """d log P(h | a)/da at the points, `[K, *batch, *event]`."""
    assert isinstance(draw.neuron, Discrete)
    return draw.neuron.score(draw.points, draw.a)


def weighted_score(draw: Draw, weights: Tensor) -> Tensor:
    """Σ_k weights_k d log P(h_k | a)/da, `[*batch, *event]`, from weights `[K, *batch]`."""
    assert isinstance(draw.neuron, Discrete)
    return draw.neuron.weighted_score(draw.points, draw.a, weights)


class OfLogits(Estimator):
    """An estimator for units whose pre-activations are logits: binary with P(high) = σ(a), or one-hot with P = softmax(a)."""

    capabilities = (Relaxable,)

    def accepts(self, neuron: Neuron) -> bool:
        """Whether the unit is one of these."""
        return isinstance(neuron, LogisticBinary | SoftmaxOneHot)


def mean_backward(neuron: Neuron, a: Tensor, grad: Tensor) -> Tensor:
    """grad · dE[h]/da, of a unit whose pre-activations are logits."""
    if isinstance(neuron, SoftmaxOneHot):
        return softmax_backward(neuron.probability(a), grad)
    assert isinstance(neuron, LogisticBinary)
    return (neuron.high - neuron.low) * slope(a) * grad


def event_sum(x: Tensor, neuron: Neuron) -> Tensor:
    """The sum over an event, `[..., *event]` to `[...]`, its order of additions fixed."""
    return x.flatten(-neuron.event_ndim).contiguous().sum(-1)
