"""The conformance kit must fail, with a diagnosis, on neurons that have the faults that neurons commonly have."""

from dataclasses import replace

import pytest
import torch

from gradest.contract.numerics import gauss_legendre, spread
from gradest.testing import checks
from gradest_neurons.bernoulli import Bernoulli
from gradest_neurons.categorical import Categorical
from gradest_neurons.gaussian import Gaussian
from gradest_neurons.noisy_rectifier import NoisyRectifier
from gradest_neurons.stochastic_times_smooth import StochasticTimesSmooth


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


class SharedNoise(Bernoulli):
    """All units of a row have the noise of the first: right marginals, wrong joint law."""

    def noise(self, key, a, draws):
        return super().noise(key, a, draws)[..., :1].expand(draws, *a.shape)


class ParityOfThree(Bernoulli):
    """The noise of the third unit is the sum of the others', modulo 1: any two units are independent, but not all three."""

    def noise(self, key, a, draws):
        noise = super().noise(key, a, draws).clone()
        if a.shape[-1] > 2:
            noise[..., 2] = (noise[..., 0] + noise[..., 1]) % 1
        return noise


class RepeatsDraws(Bernoulli):
    """Every second draw is that before it."""

    def noise(self, key, a, draws):
        return super().noise(key, a, draws).repeat_interleave(2, 0)[:draws]


class SharedRows(Bernoulli):
    """All rows have the noise of row 0."""

    def noise(self, key, a, draws):
        return super().noise(replace(key, rows=torch.zeros(a.shape[:-1], dtype=torch.int64)), a, draws)


class SeparateClasses(Categorical):
    """Each class is drawn by itself: the right probability of each, but none or several at a time."""

    def forward(self, a, noise):
        return (noise < self.probability(a)).to(a.dtype)

    def score(self, h, a):
        return h - self.probability(a) * h.contiguous().sum(-1, keepdim=True)


class DetachedLaw(Bernoulli):
    """`exact` would have a gradient of 0."""

    def law(self, a):
        values, weights = super().law(a)
        return values, weights.detach()


class SharesOneReach(Gaussian):
    """Has more nodes at each level, all of them within nine standard deviations."""

    def quadrature(self, a, level):
        t, w = (spread(x, a) for x in gauss_legendre(round(48 * 2.0**level)))
        values = a.detach() + 9 * self.std * (2 * t - 1)
        weights = w * torch.exp(-0.5 * ((values - a) / self.std) ** 2)
        return values, weights / weights.sum(0)


class ClampsItsInput(Bernoulli):
    """Writes to `a`, mostly without a change of its values."""

    def mean(self, a):
        return super().mean(a.clamp_(-1e5, 1e5))


class WritesToOutputs(Bernoulli):
    def log_prob(self, h, a):
        return super().log_prob(h.clamp_(0, 1) if h.is_contiguous() else h, a)


class PositionDependentScore(Bernoulli):
    def score(self, h, a):
        return h - torch.sigmoid(a)


class BatchDependentLogProb(Bernoulli):
    """In float32, in which alone rows are compared."""

    def log_prob(self, h, a):
        return super().log_prob(h, a) + (1e-3 * a.mean() if a.numel() and a.dtype == torch.float32 else 0)


class WideScore(Bernoulli):
    def weighted_score(self, h, a, weights):
        return super().weighted_score(h, a, weights).double()


NEW_IN_NEURONS = [
    (SharedNoise, checks.neuron_units_are_independent, "two units are not independent"),
    (SharedNoise, checks.neuron_exact_agrees, "are units independent"),
    (ParityOfThree, checks.neuron_units_are_independent, "three units are not independent"),
    (RepeatsDraws, checks.neuron_units_are_independent, "a draw and the next are not independent"),
    (SharedRows, checks.neuron_units_are_independent, "two units are not independent"),
    (SeparateClasses, checks.neuron_exact_agrees, "outputs of law is|outputs that law does not list"),
    (DetachedLaw, checks.neuron_exact_agrees, "the gradient of exact and the difference of its values"),
    (SharesOneReach, checks.neuron_law_agrees, "level 1 of the law reaches no further"),
    (ClampsItsInput, checks.neuron_is_pure, "changed in place by mean"),
    (WritesToOutputs, checks.neuron_is_pure, "changed in place by log_prob"),
    (PositionDependentScore, checks.neuron_rows_are_independent, "^(weighted_|leave_one_out_)?score: a"),
    (BatchDependentLogProb, checks.neuron_rows_are_independent, "^log_prob: a"),
    (WideScore, checks.neuron_shapes_and_dtypes, "weighted_score is torch.float64 for an input of torch.float32"),
]


@pytest.mark.parametrize(("broken", "check", "diagnosis"), NEW_IN_NEURONS)
def test_kit_finds_wrong_joint_laws_writes_and_rows_that_depend_on_others(broken, check, diagnosis):
    with pytest.raises(AssertionError, match=diagnosis):
        check(broken())
