"""The conformance kit must fail, with a diagnosis, on plugins that have the faults that plugins commonly have."""

import pytest
import torch

from gradest import Bias
from gradest.contract.estimator import Feedback
from gradest.kernels.stable import sigmoid
from gradest.testing import checks
from gradest_estimators.pathwise_score import PathwiseScore
from gradest_estimators.reinforce import Reinforce
from gradest_estimators.reinforce_average import ReinforceAverage
from gradest_estimators.rloo import Rloo
from gradest_estimators.straight_through import StraightThrough
from gradest_neurons.bernoulli import Bernoulli
from gradest_neurons.categorical import Categorical
from gradest_neurons.noisy_rectifier import NoisyRectifier
from gradest_neurons.stochastic_times_smooth import StochasticTimesSmooth


class SignFlipped(Reinforce):
    def backward(self, draw, feedback, state):
        gradient, state = super().backward(draw, feedback, state)
        return -gradient, state


class FactorTwo(Reinforce):
    def backward(self, draw, feedback, state):
        gradient, state = super().backward(draw, feedback, state)
        return 2 * gradient, state


class PeekingBaseline(ReinforceAverage):
    def backward(self, draw, feedback, state):
        _, after = super().backward(draw, feedback, state)
        return super().backward(draw, feedback, after)[0], after


class RowPeekingBaseline(Reinforce):
    """Each row's baseline is a part of its own loss."""

    def backward(self, draw, feedback, state):
        return super().backward(draw, Feedback(0.5 * feedback.loss), state)


class GlobalNoise(Reinforce):
    def forward(self, neuron, a, key, state):
        draw = super().forward(neuron, a, key, state)
        points = (torch.rand(draw.points.shape) < neuron.probability(a)).to(a.dtype)
        return type(draw)(neuron, a, key, points, draw.weights, draw.saved)


class IgnoresTheKey(Reinforce):
    def forward(self, neuron, a, key, state):
        return super().forward(neuron, a, type(key)(0), state)


class InPlace(Reinforce):
    def backward(self, draw, feedback, state):
        feedback.loss.sub_(feedback.loss.mean())
        return super().backward(draw, feedback, state)


class MisstatedK(Reinforce):
    def evaluations(self, neuron, event_shape):
        return 2


class BatchDependent(Reinforce):
    def backward(self, draw, feedback, state):
        loss = feedback.loss - (feedback.loss.mean() if feedback.loss.numel() else 0)
        return super().backward(draw, Feedback(loss), state)


class NanAtSaturation(Reinforce):
    def backward(self, draw, feedback, state):
        p = sigmoid(draw.a)
        gradient = (feedback.loss[..., None] * (draw.points - p) / (p * (1 - p)) * (p * (1 - p))).mean(0)
        return gradient, state


class WrongDtype(Reinforce):
    def backward(self, draw, feedback, state):
        gradient, state = super().backward(draw, feedback, state)
        return gradient.float(), state


class HidesItsBias(StraightThrough):
    def bias(self, neuron):
        return Bias.NONE


class DeniesItsExactness(Reinforce):
    def bias(self, neuron):
        return Bias.BIASED


class OverstatesItsOrder(StraightThrough):
    def bias(self, neuron):
        return Bias.exact_to_order(1)


class LeaksState(Reinforce):
    def backward(self, draw, feedback, state):
        gradient, state = super().backward(draw, feedback, state)
        return gradient, {**state, "seen": feedback.loss.sum()}


class CreditsOtherwise(Rloo):
    def credit(self, loss, state, features=None):
        weights, state = super().credit(loss, state, features)
        return -weights, state


class CombinesOtherwise(Rloo):
    def combine(self, loss):
        return loss.sum(0)


@pytest.mark.parametrize(
    ("broken", "check", "diagnosis"),
    [
        (SignFlipped, checks.estimator_bias_is_as_claimed, "standard errors off"),
        (FactorTwo, checks.estimator_bias_is_as_claimed, "standard errors off"),
        (PeekingBaseline, checks.estimator_rows_are_independent, "alone differs"),
        (RowPeekingBaseline, checks.estimator_bias_is_as_claimed, "standard errors off"),
        (GlobalNoise, checks.estimator_is_pure, "global generator"),
        (IgnoresTheKey, checks.estimator_uses_the_key, "another seed"),
        (InPlace, checks.estimator_is_pure, "changed in place"),
        (MisstatedK, checks.estimator_shapes_and_dtypes, "K = 2"),
        (BatchDependent, checks.estimator_rows_are_independent, "alone differs"),
        (NanAtSaturation, checks.estimator_survives_saturation, "not finite"),
        (WrongDtype, checks.estimator_shapes_and_dtypes, "float32 for an input of torch.float64"),
        (HidesItsBias, checks.estimator_bias_is_as_claimed, "claims bias none"),
        (DeniesItsExactness, checks.estimator_bias_is_as_claimed, "no loss shows any"),
        (OverstatesItsOrder, checks.estimator_bias_is_as_claimed, "linear"),
        (LeaksState, checks.estimator_shapes_and_dtypes, "state has"),
        (CreditsOtherwise, checks.estimator_fits_layers, "credited scores differ"),
        (CombinesOtherwise, checks.estimator_fits_layers, "value and combine differ"),
    ],
)
def test_kit_finds_broken_estimators(broken, check, diagnosis):
    with pytest.raises(AssertionError, match=diagnosis):
        check(broken(), Bernoulli())


class Multiplies(PathwiseScore):
    """Its gradient is no sum of a term in the loss and a term in dL/dh."""

    def backward(self, draw, feedback, state):
        gradient, state = super().backward(draw, feedback, state)
        return gradient * (1 + feedback.loss.mean(0)[..., None]), state


def test_kit_finds_what_a_layer_cannot_use():
    checks.estimator_fits_layers(PathwiseScore(), StochasticTimesSmooth())
    with pytest.raises(AssertionError, match="parts in loss and dL/dh differ"):
        checks.estimator_fits_layers(Multiplies(), StochasticTimesSmooth())


class WrongProbability(Bernoulli):
    def active_probability(self, a):
        return 1 - super().active_probability(a)


class AsPrinted(Bernoulli):
    """The inequality as Bengio et al. (2013) print it: h = 1[z > σ(a)]."""

    def forward(self, a, noise):
        return 1 - super().forward(a, noise)


class WrongScore(Bernoulli):
    def score(self, h, a):
        return -super().score(h, a)


class HalfSlope(StochasticTimesSmooth):
    def backward(self, a, noise, grad_h):
        return 0.5 * super().backward(a, noise, grad_h)


class ScaledNoise(NoisyRectifier):
    def noise(self, key, a, draws):
        return 1.1 * super().noise(key, a, draws)


class ChangesItsInput(NoisyRectifier):
    def forward(self, a, noise):
        return noise.add_(a).clamp_(min=0).to(a.dtype)


class PositionDependent(Bernoulli):
    """torch's own sigmoid, whose last bit depends on where in the tensor an element lies."""

    def mean(self, a):
        return torch.sigmoid(a)


class OverflowsAtSaturation(Bernoulli):
    def mean(self, a):
        return a.exp() / (1 + a.exp())


@pytest.mark.parametrize(
    ("broken", "check", "diagnosis"),
    [
        (WrongProbability, checks.neuron_law_agrees, "active_probability"),
        (AsPrinted, checks.neuron_law_agrees, "standard errors off"),
        (WrongScore, checks.neuron_derivatives_agree, "score"),
        (HalfSlope, checks.neuron_derivatives_agree, "not the derivative"),
        (ScaledNoise, checks.neuron_law_agrees, "standard errors off"),
        (ChangesItsInput, checks.neuron_is_pure, "different outputs|changed in place"),
        (PositionDependent, checks.neuron_rows_are_independent, "differs|changed"),
        (OverflowsAtSaturation, checks.neuron_survives_saturation, "mean is not finite"),
    ],
)
def test_kit_finds_broken_neurons(broken, check, diagnosis):
    with pytest.raises(AssertionError, match=diagnosis):
        check(broken())


class TwiceAsRandom(Categorical):
    def forward(self, a, noise):
        return super().forward(a / 2, noise)


class UniformScore(Categorical):
    def score(self, h, a):
        return h - 1 / a.shape[-1]


class UnnormalisedLogProb(Categorical):
    def log_prob(self, h, a):
        return (h * a).sum(-1)


class PassesTheGradient(Categorical):
    def backward(self, a, noise, grad_h):
        return grad_h


class AllClassesActive(Categorical):
    def active_probability(self, a):
        return torch.ones_like(a)


@pytest.mark.parametrize(
    ("broken", "check", "diagnosis"),
    [
        (TwiceAsRandom, checks.neuron_law_agrees, "standard errors off"),
        (UniformScore, checks.neuron_derivatives_agree, r"E\[score\]"),
        (UnnormalisedLogProb, checks.neuron_law_agrees, r"exp\(log_prob\) and the weights of law differ"),
        (PassesTheGradient, checks.neuron_derivatives_agree, "not the derivative"),
        (AllClassesActive, checks.neuron_law_agrees, "active_probability"),
    ],
)
def test_kit_finds_broken_units_of_several_classes(broken, check, diagnosis):
    with pytest.raises(AssertionError, match=diagnosis):
        check(broken())


@pytest.mark.parametrize("broken", [SignFlipped, FactorTwo, RowPeekingBaseline])
def test_kit_finds_estimators_that_are_broken_on_units_of_several_classes(broken):
    with pytest.raises(AssertionError, match="standard errors off"):
        checks.estimator_bias_is_as_claimed(broken(), Categorical())
