"""Each neuron against its closed forms, computed by scipy or by hand, in the tails as well."""

import math

import numpy as np
import pytest
import torch
from scipy import integrate, special, stats

import gradest
from gradest.errors import InvalidOptions

TAILS = torch.tensor([-35.0, -12.0, -3.0, -0.5, 0.0, 0.5, 3.0, 12.0, 35.0], dtype=torch.float64)


def assert_close(given, wanted, rtol=1e-10):
    np.testing.assert_allclose(given.double().numpy(), wanted, rtol=rtol, atol=1e-300)


@pytest.mark.parametrize(("name", "low", "high"), [("bernoulli", 0, 1), ("bipolar", -1, 1)])
def test_binary_units(name, low, high):
    neuron, p = gradest.neuron(name), special.expit(TAILS.numpy())
    assert_close(neuron.probability(TAILS), p)
    np.testing.assert_allclose(neuron.mean(TAILS), low + (high - low) * p, rtol=1e-10, atol=1e-15)
    assert_close(neuron.active_probability(TAILS), p)
    ends = torch.tensor([low, high], dtype=torch.float64)
    assert_close(neuron.log_prob(ends[1], TAILS), special.log_expit(TAILS.numpy()))
    assert_close(neuron.log_prob(ends[0], TAILS), special.log_expit(-TAILS.numpy()))
    assert_close(neuron.score(ends[1], TAILS), special.expit(-TAILS.numpy()))
    assert_close(neuron.score(ends[0], TAILS), -p)
    assert neuron.support().tolist() == [low, high]


def test_bernoulli_is_that_of_the_proofs_not_of_the_print():
    """P(h = 1) = σ(a): one where the noise is BELOW σ(a)."""
    a, neuron = torch.tensor([2.0]), gradest.neuron("bernoulli")
    assert neuron.forward(a, torch.tensor([0.1])).item() == 1
    assert neuron.forward(a, torch.tensor([0.95])).item() == 0


@pytest.mark.parametrize("name", ["bernoulli", "bipolar"])
def test_relaxations(name):
    neuron = gradest.neuron(name)
    a = torch.linspace(-4, 4, 9).expand(4000, 9)
    noise = neuron.noise(gradest.Key(3), a, 1)[0]
    h, middle = neuron.forward(a, noise), (neuron.low + neuron.high) / 2
    relaxed = neuron.relax(a, noise, 0.5)
    assert torch.equal(relaxed > middle, h == neuron.high)
    fresh = gradest.Key(4).uniform_like(a, 1)[0]
    conditional = neuron.conditional_relax(a, h, fresh, 0.5)
    assert torch.equal(conditional > middle, h == neuron.high)
    # averaged over h, the conditional relaxation has the law of the unconditional one
    for column in range(9):
        assert stats.ks_2samp(relaxed[:, column].numpy(), conditional[:, column].numpy()).pvalue > 1e-6


@pytest.mark.parametrize("name", ["bernoulli", "bipolar"])
def test_relaxations_are_finite_and_differentiable_at_saturation(name):
    neuron = gradest.neuron(name)
    a = torch.tensor([-1e4, -40.0, 40.0, 1e4], requires_grad=True)
    for noise in (2.0**-24, 0.5, 1 - 2.0**-24):
        u = torch.full((4,), noise)
        for h in (neuron.low, neuron.high):
            for relaxed in (neuron.relax(a, u, 0.1), neuron.conditional_relax(a, torch.full((4,), h), u, 0.1)):
                (slope,) = torch.autograd.grad(relaxed.sum(), a)
                assert bool(torch.isfinite(relaxed).all() and torch.isfinite(slope).all())


def test_noisy_rectifier_logistic():
    neuron = gradest.neuron("noisy_rectifier")
    assert_close(neuron.mean(TAILS), np.logaddexp(0, TAILS.numpy()))
    assert_close(neuron.active_probability(TAILS), special.expit(TAILS.numpy()))


@pytest.mark.parametrize("std", [1.0, 0.5, 3.0])
def test_noisy_rectifier_gaussian(std):
    neuron = gradest.neuron("noisy_rectifier", distribution="gaussian", std=std)
    x = TAILS.numpy() / std
    assert_close(neuron.active_probability(TAILS), stats.norm.cdf(x), rtol=1e-9)
    # a Φ + s φ in the form ∫_{-∞}^{a} Φ(t/s) dt, which does not cancel in the lower tail
    integral = [
        integrate.quad(lambda t: stats.norm.cdf(t / std), min(a, 0) - 30 * std, a, epsabs=0, limit=400)[0]
        for a in TAILS.tolist()[1:]
    ]
    assert_close(neuron.mean(TAILS)[1:], integral, rtol=1e-7)


def test_noisy_rectifier_gaussian_mean_far_in_the_tail():
    """The asymptotic series of the Mills ratio: E[h] = φ(x)/x² (1 - 3/x² + 15/x⁴ - 105/x⁶...)."""
    x = -30.0
    series = 1 - 3 / x**2 + 15 / x**4 - 105 / x**6 + 945 / x**8
    wanted = math.exp(-0.5 * x * x) / math.sqrt(2 * math.pi) / x**2 * series
    given = gradest.neuron("noisy_rectifier", distribution="gaussian").mean(torch.tensor([x], dtype=torch.float64))
    assert given.item() == pytest.approx(wanted, rel=1e-9)


def test_noisy_rectifier_derivative_and_threshold():
    neuron = gradest.neuron("noisy_rectifier")
    a, z = torch.tensor([1.0, 1.0, -1.0, 0.0]), torch.tensor([-0.5, -2.0, 3.0, 0.0])
    assert neuron.forward(a, z).tolist() == [0.5, 0.0, 2.0, 0.0]
    assert neuron.backward(a, z, torch.full((4,), 3.0)).tolist() == [3.0, 0.0, 3.0, 0.0]
    assert neuron.threshold(a, 0.5).tolist() == [1.0, 1.0, 0.0, 0.0]


def test_noisy_rectifier_options():
    with pytest.raises(InvalidOptions, match="std requires"):
        gradest.neuron("noisy_rectifier", std=1.0)
    with pytest.raises(InvalidOptions, match="greater than or equal"):
        gradest.neuron("noisy_rectifier", distribution="gaussian", std=0)
    with pytest.raises(InvalidOptions, match=r"logistic.*gaussian"):
        gradest.neuron("noisy_rectifier", distribution="cauchy")


@pytest.mark.parametrize("std", [0.3, 1.0, 2.0])
def test_noisy_sigmoid(std):
    neuron = gradest.neuron("noisy_sigmoid", std=std)

    def expectation(a):
        return integrate.quad(lambda z: special.expit(a + std * z) * stats.norm.pdf(z), -12, 12, epsabs=0, limit=400)[0]

    assert_close(neuron.mean(TAILS), [expectation(float(a)) for a in TAILS], rtol=1e-7)
    assert neuron.active_probability(TAILS).eq(1).all()
    x = torch.tensor([0.7])
    h = float(special.expit(0.7 + 0.2))
    assert neuron.backward(x, torch.tensor([0.2]), torch.ones(1)).item() == pytest.approx(h * (1 - h), rel=1e-6)


def test_stochastic_times_smooth():
    neuron, p = gradest.neuron("stochastic_times_smooth"), special.expit(TAILS.numpy())
    assert_close(neuron.mean(TAILS), p)
    assert_close(neuron.active_probability(TAILS), np.sqrt(p))
    r = np.sqrt(p)
    low, high = torch.zeros(()), torch.tensor(r)
    slope = p * special.expit(-TAILS.numpy()) / (2 * r)
    assert_close(neuron.backward(TAILS, torch.tensor(1e-30), torch.ones(())), slope)
    assert neuron.backward(TAILS, torch.tensor(1.0), torch.ones(())).eq(0).all()
    inner = slice(2, 7)  # elsewhere this textbook form, unlike the neuron's, cancels
    assert_close(neuron.score(high, TAILS)[inner], ((1 - r) / (r * (1 - r)) * slope)[inner])
    assert_close(neuron.score(low, TAILS)[inner], (-r / (r * (1 - r)) * slope)[inner])


def test_stochastic_times_smooth_backward_is_half_for_a_linear_loss():
    a = torch.tensor([[-1.0, 0.3, 2.0]], dtype=torch.float64)
    neuron = gradest.neuron("stochastic_times_smooth")
    values, weights = neuron.law(a)
    slope = torch.stack([torch.zeros_like(a), neuron.backward(a, torch.tensor(0.0), torch.ones_like(a))])
    held = (weights * slope).sum(0)
    p = torch.sigmoid(a)
    assert torch.allclose(held, p * (1 - p) / 2)
    assert torch.allclose((weights * values).sum(0), p)


@pytest.mark.parametrize("name", ["rectifier", "sigmoid"])
def test_deterministic_units(name):
    neuron = gradest.neuron(name)
    h = gradest.sample(neuron, TAILS, samples=3, seed=1)
    wanted = np.maximum(TAILS.numpy(), 0) if name == "rectifier" else special.expit(TAILS.numpy())
    for draw in h:
        np.testing.assert_allclose(draw, wanted, rtol=1e-12)
    np.testing.assert_allclose(neuron.mean(TAILS), wanted, rtol=1e-12)
    p = special.expit(TAILS.numpy())
    slope = (TAILS.numpy() > 0) * 1.0 if name == "rectifier" else p * (1 - p)
    np.testing.assert_allclose(neuron.backward(TAILS, torch.zeros(()), torch.ones(())), slope, atol=1e-15)


@pytest.mark.parametrize("name", ["bernoulli", "bipolar"])
def test_the_share_of_rare_outputs_is_right_to_the_stated_bound(name):
    """Every number that float32 noise can take in the tail is tried: the odd multiples of 2^-24."""
    neuron = gradest.neuron(name)
    tail = torch.arange(1, 1 << 17, 2) * 2.0**-24
    worst = {1: 0.0, -1: 0.0}
    for a in torch.linspace(-20, -6, 57).tolist():
        for side, noise in ((1, tail), (-1, 1 - tail)):
            h = neuron.forward(torch.tensor([side * a]), noise[:, None])
            rare = neuron.high if side == 1 else neuron.low
            share = float((h == rare).double().mean()) * len(tail) / 2**23
            worst[side] = max(worst[side], abs(share - float(special.expit(a))))
    assert 2.0**-26 < worst[1] <= 2.0**-24 * (1 + 1e-6)
    assert worst[-1] <= 2.0**-23  # the rounding of σ(a) near 1 comes on top
    never = neuron.forward(torch.full((1,), -16.7), tail[:, None])
    assert bool((never == neuron.low).all())
    wide = gradest.neuron(name).forward(
        torch.full((1,), -17.0, dtype=torch.float64), torch.tensor([[2.0**-53], [4e-8]])
    )
    assert wide.flatten().tolist() == [neuron.high, neuron.high]  # float64 noise reaches what float32 noise cannot


def test_threshold_of_units_that_are_always_positive():
    a = torch.tensor([-1.0, -0.1, 0.1, 1.0])
    assert gradest.neuron("binary_concrete").threshold(a, 0.5).tolist() == [0, 0, 1, 1]
    assert gradest.neuron("binary_concrete").threshold(a, 0.6).tolist() == [0, 0, 0, 1]
    for name in ("noisy_sigmoid", "sigmoid"):
        found = gradest.neuron(name).threshold(a, 0.5)
        assert found.tolist() == pytest.approx([0, 0, *special.expit([0.1, 1.0])])
    assert gradest.neuron("noisy_sigmoid", std=10.0).threshold(a, 0.52).tolist()[:3] == [0, 0, 0]
    for cls in gradest.registry.neurons.values():  # no unit is always on at every level, and none for every a
        neuron = cls.build()
        if neuron.event_ndim == 1:
            h = neuron.threshold(torch.tensor([-30.0, 30.0]), 0.5)
            assert h[0] != h[1], neuron.label()
            assert h[0] <= 0, neuron.label()
