"""Relaxed binary units with a Gaussian copula: their law by a sum over a grid of the two normal variables, and estimators.

Statistical tests allow five standard errors: a false alarm has probability below 6e-7 for each number.
"""

import numpy as np
import pytest
import torch
from scipy import special, stats

import gradest

A = torch.tensor([[[0.6, -1.4, 2.1]]], dtype=torch.float64)
PAIR = torch.tensor([[[0.7, -1.2]]], dtype=torch.float64)


def relaxed(**options):
    return gradest.neuron("correlated_binary_concrete", **options)


def loss(h):
    """Of a group of two units, which meet."""
    return torch.sin(h[..., 0, 0] + 2 * h[..., 0, 1] * h[..., 0, -1]) + h[..., 0, -1]


def on_a_grid(a, correlation, temperature):
    """E[loss] of two relaxed units, by a sum over a grid of the two normal variables."""
    z = np.arange(-8, 8, 0.04)
    density = stats.multivariate_normal([0, 0], [[1, correlation], [correlation, 1]])
    pairs = np.stack(np.meshgrid(z, z, indexing="ij"), -1)
    h = special.expit((a + special.log_ndtr(pairs) - special.log_ndtr(-pairs)) / temperature)
    return float((density.pdf(pairs) * loss(torch.from_numpy(h)[:, :, None]).numpy()).sum() * 0.04**2)


@pytest.mark.parametrize(("correlation", "temperature"), [(0.5, 0.5), (0.9, 2.0)])
def test_the_relaxed_law_and_its_derivative(correlation, temperature):
    neuron = relaxed(correlation=correlation, temperature=temperature)
    value, gradient = gradest.exact(loss, PAIR, neuron)
    a = PAIR[0, 0].numpy()
    assert value.item() == pytest.approx(on_a_grid(a, correlation, temperature), abs=1e-6)
    for i, step in enumerate(1e-3 * np.eye(2)):
        slope = (on_a_grid(a + step, correlation, temperature) - on_a_grid(a - step, correlation, temperature)) / 2e-3
        assert gradient[0, 0, i].item() == pytest.approx(slope, abs=1e-5)


def test_pathwise_is_unbiased_on_the_relaxed_units():
    """20,000 draws; half of the gradient is beyond ten standard errors."""
    _, gradient = gradest.exact(loss, PAIR, relaxed())
    found = gradest.estimate(loss, PAIR, relaxed(), "pathwise", draws=20_000, seed=5)
    assert ((found.gradient - gradient).abs() < 5 * found.standard_error).all()
    assert (gradient.abs() / 2 / found.standard_error).max() > 10


def test_each_unit_by_itself_is_the_binary_concrete_one():
    """The means; the law of two units without correlation; and shares of samples above ½, which are σ(a)."""
    torch.testing.assert_close(relaxed().mean(A), gradest.neuron("binary_concrete").mean(A))
    values, weights = relaxed(correlation=0.0).law(PAIR)
    torch.testing.assert_close(
        (weights[..., None] * values).sum(0), gradest.neuron("binary_concrete").mean(PAIR), rtol=0, atol=1e-7
    )
    p = torch.sigmoid(A)
    share = (gradest.sample(relaxed(correlation=0.9), A, samples=20_000, seed=4) > 0.5).double().mean(0)
    assert bool(((share - p).abs() < 5 * (p * (1 - p) / 20_000).sqrt()).all())


@pytest.mark.parametrize("correlation", [0.0, 0.8])
def test_two_units_are_above_a_half_as_often_as_two_normal_ones(correlation):
    """P(both > ½) is the normal orthant probability of scipy; 20,000 draws."""
    h = gradest.sample(relaxed(correlation=correlation), PAIR, samples=20_000, seed=4)[:, 0, 0]
    both = float((h > 0.5).all(-1).double().mean())
    place = stats.norm.ppf(special.expit(PAIR[0, 0].numpy()))
    p = stats.multivariate_normal([0, 0], [[1, correlation], [correlation, 1]]).cdf(place)
    assert abs(both - p) < 5 * np.sqrt(p * (1 - p) / 20_000)
