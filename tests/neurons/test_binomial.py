"""The binomial unit against scipy's."""

import numpy as np
import pytest
import torch
from scipy import special, stats

import gradest

TAILS = torch.tensor([-20.0, -3.0, -0.5, 0.0, 0.5, 3.0, 20.0], dtype=torch.float64)


@pytest.mark.parametrize("trials", [1, 4, 30])
def test_law(trials):
    neuron, p = gradest.neuron("binomial", trials=trials), special.expit(TAILS.numpy())
    values, weights = neuron.law(TAILS)
    wanted = stats.binom.pmf(values.numpy(), trials, p)
    np.testing.assert_allclose(weights[:, :-1], wanted[:, :-1], rtol=1e-8, atol=1e-300)
    assert torch.allclose(weights.flip(0, 1), weights, rtol=1e-9, atol=0)  # at p near 1, where scipy's 1 - p cancels
    np.testing.assert_allclose(
        neuron.active_probability(TAILS), -np.expm1(-trials * np.logaddexp(0, TAILS.numpy())), rtol=1e-10
    )
    np.testing.assert_allclose(neuron.mean(TAILS), trials * p, rtol=1e-10)


def test_samples():
    neuron = gradest.neuron("binomial", trials=6)
    h = gradest.sample(neuron, torch.full((40_000, 1), 0.7), seed=1).flatten()
    counts = np.bincount(h.long().numpy(), minlength=7)
    expected = 40_000 * stats.binom.pmf(range(7), 6, special.expit(0.7))
    assert stats.chisquare(counts, expected * counts.sum() / expected.sum()).pvalue > 1e-6


def test_exact_gradient_of_a_linear_loss():
    a = torch.tensor([0.3, -1.0], dtype=torch.float64)
    _, gradient = gradest.exact(lambda h: h.sum(-1), a, neuron="binomial")
    p = torch.sigmoid(a)
    assert torch.allclose(gradient, 4 * p * (1 - p))


def test_a_thousand_trials_in_float32_are_right_to_float32():
    """log P cancels to a few of its thousand; its error would be 2e-4 in float32."""
    neuron, a = gradest.neuron("binomial", trials=1000), torch.tensor([2.0, 0.3, -3.0])
    values, weights = neuron.law(a)
    _, wanted = neuron.law(a.double())
    assert weights.dtype == torch.float32
    assert torch.allclose(weights.double(), wanted, rtol=1e-6, atol=1e-38)
    assert torch.allclose(weights.sum(0), torch.ones(3), rtol=1e-6)
    assert torch.allclose(neuron.log_prob(values, a).double(), neuron.log_prob(values.double(), a.double()), rtol=2e-7)
