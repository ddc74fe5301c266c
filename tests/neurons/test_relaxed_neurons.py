"""The relaxed and the gaussian neurons against their closed forms, and against integrals by scipy."""

import numpy as np
import pytest
import torch
from scipy import integrate, special, stats

import gradest
from gradest.errors import InvalidOptions

TAILS = torch.tensor([-35.0, -12.0, -3.0, -0.5, 0.0, 0.5, 3.0, 12.0, 35.0], dtype=torch.float64)


def over_logistic(f):
    """E[f(z)], z logistic, by scipy."""
    return integrate.quad(lambda z: f(z) * stats.logistic.pdf(z), -60, 60, epsabs=0, epsrel=1e-11, limit=2000)[0]


@pytest.mark.parametrize("std", [1.0, 0.3])
def test_gaussian(std):
    neuron = gradest.neuron("gaussian", std=std)
    np.testing.assert_allclose(neuron.active_probability(TAILS), stats.norm.cdf(TAILS / std), rtol=1e-9)
    assert torch.equal(neuron.mean(TAILS), TAILS)
    h = gradest.sample(neuron, torch.zeros(40_000, 1), seed=1)
    assert stats.kstest(h.flatten().numpy() / std, "norm").pvalue > 1e-6
    _, gradient = gradest.exact(
        lambda h: torch.sign(h).sum(-1), torch.tensor([0.4], dtype=torch.float64), neuron=neuron
    )
    assert gradient.item() == pytest.approx(2 * stats.norm.pdf(0.4 / std) / std, rel=1e-9)  # a jump is integrated too


@pytest.mark.parametrize("temperature", [0.5, 1.0])
def test_binary_concrete(temperature):
    neuron = gradest.neuron("binary_concrete", temperature=temperature)
    wanted = [over_logistic(lambda z, a=a: special.expit((a + z) / temperature)) for a in TAILS.tolist()]
    np.testing.assert_allclose(neuron.mean(TAILS), wanted, rtol=1e-7, atol=1e-15)
    h = gradest.sample(neuron, torch.full((40_000, 1), 0.7), seed=1).flatten()
    p = float(special.expit(0.7))
    assert abs(float((h > 0.5).float().mean()) - p) < 5 * (p * (1 - p) / 40_000) ** 0.5  # P(h > ½) = σ(a)


def test_hard_concrete():
    neuron = gradest.neuron("hard_concrete")
    tau, gamma, zeta = 2 / 3, -0.1, 1.1

    def stretched(x):
        return np.clip(gamma + (zeta - gamma) * special.expit(x / tau), 0, 1)

    inner = TAILS[2:7]
    wanted = [over_logistic(lambda z, a=a: stretched(a + z)) for a in inner.tolist()]
    np.testing.assert_allclose(neuron.mean(inner), wanted, rtol=1e-6)
    open_ = special.expit(TAILS.numpy() - tau * np.log(-gamma / zeta))
    np.testing.assert_allclose(neuron.active_probability(TAILS), open_, rtol=1e-10)
    np.testing.assert_allclose(neuron.expected_l0(TAILS), open_.sum(), rtol=1e-10)
    np.testing.assert_allclose(neuron.threshold(TAILS, 0.0), stretched(TAILS.numpy() * tau), atol=1e-12)
    h = gradest.sample(neuron, torch.zeros(40_000, 1), seed=1).flatten()
    closed = 1 - float(open_[4])
    for share in (float((h == 0).float().mean()), float((h == 1).float().mean())):  # symmetric at a = 0
        assert abs(share - closed) < 5 * (closed * (1 - closed) / 40_000) ** 0.5


def test_expected_l0_is_differentiable():
    a = torch.tensor([[0.2, -1.0]], dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(gradest.neuron("hard_concrete").expected_l0, (a,))


@pytest.mark.parametrize(
    ("option", "value"), [("lower", 0.0), ("upper", 1.0), ("temperature", 0.0), ("lower", -np.inf)]
)
def test_hard_concrete_refuses(option, value):
    with pytest.raises(InvalidOptions, match=option):
        gradest.neuron("hard_concrete", **{option: value})
