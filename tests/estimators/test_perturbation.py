"""spsa and evolution: unbiased for a smoothed loss, whose distance from the loss goes with the square of the scale."""

from itertools import product

import numpy as np
import pytest
import torch

import gradest
from gradest.contract.estimator import Draw, Feedback
from gradest_estimators.evolution import Evolution
from gradest_estimators.spsa import Spsa
from tests.selection import deep

A = torch.tensor([0.4, -0.9], dtype=torch.float64)
NEURONS = ["bernoulli", "noisy_rectifier", "stochastic_times_smooth", "sigmoid", "binomial"]


def f(h):
    return ((h * torch.tensor([1.0, -0.7]).to(h)).sum(-1) + 0.3) ** 3


def directions(estimator, count=40):
    """The law of Δ for two units, as values and weights: exact for signs, by so many Gauss-Hermite nodes for normal numbers."""
    if isinstance(estimator, Spsa):
        nodes, weights = np.array([-1.0, 1.0]), np.array([0.5, 0.5])
    else:
        nodes, weights = np.polynomial.hermite_e.hermegauss(count)
        weights = weights / weights.sum()
    for (x, p), (y, q) in product(zip(nodes, weights, strict=True), repeat=2):
        yield torch.tensor([x, y]), p * q


def smoothed_gradient(estimator, neuron, count=40):
    """E[(J(a + cΔ) - J(a - cΔ)) / 2c · Δ], J by enumeration."""
    deltas, weights = zip(*directions(estimator, count), strict=True)
    delta, weight, c = torch.stack(deltas), torch.tensor(weights), estimator.scale
    upper, lower = (gradest.exact(f, A + side * c * delta, neuron)[0] for side in (1, -1))
    return ((weight * (upper - lower) / (2 * c))[:, None] * delta).sum(0)


@pytest.mark.parametrize("neuron", [NEURONS[0], *deep(*NEURONS[1:])])
@pytest.mark.parametrize("estimator", [Spsa(), Evolution(), Spsa(scale=0.3, samples=6)], ids=lambda e: e.label())
def test_unbiased_for_the_smoothed_loss(estimator, neuron):
    wanted = smoothed_gradient(estimator, neuron)
    found = gradest.estimate(f, A, neuron, estimator, draws=200_000, seed=11)
    assert float(((found.gradient - wanted) / found.standard_error).abs().max()) < 5  # false alarm below 2e-6
    assert bool((wanted.abs() > 20 * found.standard_error).all())


@pytest.mark.parametrize("kind", [Spsa, Evolution])
@pytest.mark.parametrize("neuron", NEURONS)
def test_the_bias_goes_with_the_square_of_the_scale(kind, neuron):
    """At scales this small J is a polynomial of degree 3 in c to within rounding, so five nodes have its integral."""
    exact = gradest.exact(f, A, neuron)[1]
    large, small = ((smoothed_gradient(kind(scale=c), neuron, 5) - exact).norm() for c in (0.02, 0.01))
    assert 3.9 < float(large / small) < 4.1


@pytest.mark.parametrize("kind", [Spsa, Evolution])
@pytest.mark.parametrize("neuron", ["sigmoid", "rectifier"])
def test_a_deterministic_unit_at_a_small_scale_has_its_derivative(kind, neuron):
    a = torch.tensor([0.7, 1.2], dtype=torch.float64)
    exact = gradest.exact(f, a, neuron)[1]
    found = gradest.estimate(f, a, neuron, kind(scale=1e-4), draws=100_000, seed=3)
    assert float(((found.gradient - exact) / found.standard_error).abs().max()) < 5
    assert bool((exact.abs() > 10 * found.standard_error).any())


def test_both_points_share_their_noise():
    """Without which the variance at a small scale would go with 1/c²: here it goes with 1/c."""
    variances = [
        float(gradest.estimate(f, A, "bernoulli", Spsa(scale=c), draws=100_000, seed=0).variance.mean())
        for c in (0.1, 0.01)
    ]
    assert 8 < variances[1] / variances[0] < 12


def test_directions_and_points():
    a, neuron = torch.zeros(50_000, 2), gradest.neuron("noisy_rectifier")
    for estimator, fourth in ((Spsa(), 1.0), (Evolution(), 3.0)):
        draw = estimator.forward(neuron, a, gradest.Key(1), {})
        delta = draw.saved["delta"]
        noise = neuron.noise(gradest.Key(1), a, 1)
        assert torch.equal(draw.points[:1], neuron.forward(a + delta, noise))
        assert torch.equal(draw.points[1:], neuron.forward(a - delta, noise))
        assert float(delta.mean()) == pytest.approx(0, abs=5 / 1e5**0.5)
        assert float(delta.square().mean()) == pytest.approx(1, abs=0.03)
        assert float((delta**4).mean()) == pytest.approx(fourth, abs=0.2)
        assert float((delta[..., 0] * delta[..., 1]).mean()) == pytest.approx(0, abs=5 / 5e4**0.5)


def test_by_hand():
    delta = torch.tensor([[[1.0, -1.0]]])
    draw = Draw(
        gradest.neuron("bernoulli"),
        torch.zeros(1, 2),
        gradest.Key(0),
        torch.zeros(2, 1, 2),
        torch.ones(2),
        {"delta": delta},
    )
    gradient, _ = Spsa(scale=0.5).backward(draw, Feedback(torch.tensor([[3.0], [1.0]])), {})
    assert torch.equal(gradient, torch.tensor([[2.0, -2.0]]))


def test_odd_numbers_of_points_are_refused():
    with pytest.raises(gradest.GradestError, match="multiple of 2"):
        gradest.estimator("spsa", samples=3)
