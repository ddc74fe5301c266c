"""The stochastic gate against its closed forms and against integrals by scipy, at narrow and wide noise and in the tails."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from scipy import integrate, stats

import gradest
from gradest.errors import InvalidInput, InvalidOptions

A = [-35.0, -6.0, -1.7, -0.5, -0.2, 0.0, 0.3, 0.5, 1.1, 6.0, 35.0]
STDS = [1e-6, 0.1, 0.5, 1.0, 1.5, 50.0, 1e6]


def at(values: list[float]) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.float64)


def mean_by_scipy(a: float, std: float) -> float:
    """E[h] = ∫ P(h > t) dt over t from 0 to 1, which needs neither the density nor the atoms."""
    middle = [a + 0.5 + side * std for side in (-8, -1, 0, 1, 8)]
    points = [0.0, *sorted(x for x in middle if 0 < x < 1), 1.0]
    return sum(
        integrate.quad(lambda t: stats.norm.sf((t - a - 0.5) / std), left, right, epsabs=0, limit=400)[0]
        for left, right in itertools.pairwise(points)
    )


@pytest.mark.parametrize("std", STDS)
def test_mean_and_open_probability(std: float) -> None:
    neuron = gradest.neuron("stochastic_gate", std=std)
    wanted = [mean_by_scipy(a, std) for a in A]
    np.testing.assert_allclose(neuron.mean(at(A)), wanted, rtol=1e-9, atol=1e-300)
    np.testing.assert_allclose(neuron.mean(at(A).float()), wanted, rtol=2e-5 / min(std, 1), atol=1e-37)
    np.testing.assert_allclose(neuron.active_probability(at(A)), stats.norm.cdf((np.array(A) + 0.5) / std), rtol=1e-9)
    np.testing.assert_allclose(neuron.expected_l0(at(A)), stats.norm.cdf((np.array(A) + 0.5) / std).sum(), rtol=1e-12)


@pytest.mark.parametrize("std", [0.5, 2.0])
def test_the_mean_is_differentiable_also_at_0(std: float) -> None:
    """Its derivative is P(0 < h < 1), and at a = 0 both branches of the closed form meet."""
    neuron, a = gradest.neuron("stochastic_gate", std=std), at(A).requires_grad_()
    (slope,) = torch.autograd.grad(neuron.mean(a).sum(), a)
    x = np.array(A)
    between = stats.norm.cdf((0.5 - np.abs(x)) / std) - stats.norm.cdf((-0.5 - np.abs(x)) / std)
    np.testing.assert_allclose(slope, between, rtol=1e-9, atol=1e-300)


@pytest.mark.parametrize("std", [0.01, 0.5, 5.0])
def test_the_law_and_exact_against_scipy(std: float) -> None:
    """A loss of the gate is integrated with both atoms; a wrong factor in the density or an atom is beyond 1e-6."""
    neuron, a = gradest.neuron("stochastic_gate", std=std), at([[0.3], [-0.7]])

    def expectation(a: float) -> float:
        parts = [0.0, *sorted(x for x in (a + 0.5 + side * std for side in (-6, 0, 6)) if 0 < x < 1), 1.0]
        inner = sum(
            integrate.quad(lambda h: (h - 0.3) ** 3 * stats.norm.pdf(h, a + 0.5, std), left, right, limit=400)[0]
            for left, right in itertools.pairwise(parts)
        )
        closed, opened = stats.norm.cdf(-(a + 0.5) / std), stats.norm.cdf((a - 0.5) / std)
        return inner + closed * (-0.3) ** 3 + opened * 0.7**3

    loss, gradient = gradest.exact(lambda h: ((h - 0.3) ** 3).sum(-1), a, neuron)
    np.testing.assert_allclose(loss, [expectation(x) for x in a[:, 0].tolist()], rtol=1e-6, atol=1e-12)
    step = 1e-4
    slopes = [(expectation(x + step) - expectation(x - step)) / (2 * step) for x in a[:, 0].tolist()]
    np.testing.assert_allclose(gradient[:, 0], slopes, rtol=1e-5, atol=1e-9)
    values, weights = neuron.law(at(A))
    np.testing.assert_allclose(weights.sum(0), 1, rtol=1e-12)
    np.testing.assert_allclose((weights * values).sum(0), neuron.mean(at(A)), rtol=1e-7, atol=1e-12)


@pytest.mark.parametrize("std", [0.5, 2.0])
def test_samples_have_the_law(std: float) -> None:
    """20,000 draws; a share is beyond 5 standard errors with probability 6e-7, the test of Kolmogorov fails with 1e-6."""
    neuron, draws = gradest.neuron("stochastic_gate", std=std), 20_000
    h = gradest.sample(neuron, torch.full((draws, 1), 0.2), seed=3).flatten().numpy()
    for value, share in ((0.0, stats.norm.cdf(-0.7 / std)), (1.0, stats.norm.cdf(-0.3 / std))):
        assert abs((h == value).mean() - share) < 5 * (share * (1 - share) / draws) ** 0.5
    inside = h[(h > 0) & (h < 1)]
    assert stats.kstest(inside, stats.truncnorm(-0.7 / std, 0.3 / std, loc=0.7, scale=std).cdf).pvalue > 1e-6


def test_evaluation_and_derivative() -> None:
    neuron = gradest.neuron("stochastic_gate")
    a = torch.tensor([-2.0, -0.4, 0.2, 3.0])
    assert neuron.threshold(a, 0.5).tolist() == pytest.approx([0, 0.1, 0.7, 1])
    assert neuron.threshold(a, 0.6).tolist() == pytest.approx([0, 0, 0.7, 1])
    noise = torch.tensor([2.0, -0.2, 0.1, 0.0])
    assert neuron.backward(a, noise, torch.full((4,), 3.0)).tolist() == [3.0, 0.0, 3.0, 0.0]


def test_rounding_to_16_bits_does_not_close_a_gate_to_the_gradient() -> None:
    """0.9981 is 1 in bfloat16, and yet the derivative there is 1."""
    neuron, key = gradest.neuron("stochastic_gate", std=1e-6), gradest.Key(1)
    a = torch.full((64, 1), 0.498046875, dtype=torch.bfloat16)
    h = neuron.sample(key, a, 1)
    assert 10 < int(h.eq(1).sum()) < 54
    assert neuron.pullback(key, a, h, torch.ones_like(h)).eq(1).all()


def test_what_is_refused() -> None:
    for std in (0.0, -1.0, 1e-7, 1e7, float("nan")):
        with pytest.raises(InvalidOptions, match="std"):
            gradest.neuron("stochastic_gate", std=std)
    with pytest.raises(InvalidInput, match="stochastic_gate"):
        gradest.sample({"name": "stochastic_gate", "std": 1e-6}, torch.full((1, 1), 1e36))
