"""The softmax of a normal vector: its law against scipy, noisy_sigmoid and differences, and pathwise derivatives."""

import numpy as np
import pytest
import torch
from scipy import special, stats

import gradest
from gradest.errors import InvalidOptions

A = torch.tensor([[[0.6, -0.4, 1.1]]], dtype=torch.float64)


def unit(std=1.0):
    return gradest.neuron("logistic_normal", std=std)


def loss(h):
    """Of one unit of three classes."""
    return torch.exp(1.3 * h[..., 0, 0]) + torch.sin(3 * h[..., 0, 1])


def on_a_grid(a, std):
    """E[loss], by a sum over a grid of the two log-ratios to the last class, with their bivariate normal density."""
    x = np.arange(-9, 9, 0.2) * std
    ratios = np.stack(np.meshgrid(x, x, indexing="ij"), -1)
    density = stats.multivariate_normal([0, 0], std**2 * np.array([[2, 1], [1, 2]])).pdf(ratios)
    logits = np.concatenate([ratios + (a[:2] - a[2]), np.zeros((*ratios.shape[:2], 1))], -1)
    values = loss(torch.from_numpy(special.softmax(logits, -1))[:, :, None]).numpy()
    return float((density * values).sum() * (0.2 * std) ** 2)


@pytest.mark.parametrize("std", [0.5, 1.0, 2.0])
def test_the_law_and_its_derivative(std):
    """To 1e-6; the slope by a difference of sums on a grid."""
    value, gradient = gradest.exact(loss, A, unit(std))
    a = A[0, 0].numpy()
    assert value.item() == pytest.approx(on_a_grid(a, std), abs=1e-6)
    for i, step in enumerate(1e-3 * np.eye(3)):
        slope = (on_a_grid(a + step, std) - on_a_grid(a - step, std)) / 2e-3
        assert gradient[0, 0, i].item() == pytest.approx(slope, abs=1e-5)


@pytest.mark.parametrize("std", [0.3, 1.0, 4.0])
def test_two_classes_are_a_noisy_sigmoid(std):
    a = torch.tensor([[0.4, -2.0], [3.0, 3.5], [-9.0, 4.0]], dtype=torch.float64)
    wanted = gradest.neuron("noisy_sigmoid", std=2**0.5 * std).mean(a[:, 0] - a[:, 1])
    torch.testing.assert_close(unit(std).mean(a)[:, 0], wanted, rtol=0, atol=1e-7)


def test_all_gates_of_a_router_are_this_unit():
    """The same noise gives the same output, and another quadrature the same mean."""
    router, key = gradest.neuron("noisy_top_k", k=3), gradest.Key(3)
    torch.testing.assert_close(unit().sample(key, A, 5), router.sample(key, A, 5))
    torch.testing.assert_close(unit().mean(A), router.mean(A), rtol=0, atol=1e-5)


def test_draws_and_means_of_many_classes():
    """40,000 draws: 5 standard errors, and the error of Sobol points that the docstring allows."""
    a = torch.linspace(-2, 2, 8, dtype=torch.float64)[None]
    h = gradest.sample(unit(), a, samples=40_000, seed=3)
    assert ((h.mean(0) - unit().mean(a)).abs() < 5 * h.std(0) / 200 + 0.002).all()
    torch.testing.assert_close(unit().mean(a).sum(), torch.ones((), dtype=torch.float64))


def test_pathwise_is_unbiased():
    """20,000 draws within 5 standard errors, a false alarm of 2e-6; half the gradient is beyond ten."""
    _, gradient = gradest.exact(loss, A, unit())
    found = gradest.estimate(loss, A, unit(), "pathwise", draws=20_000, seed=5)
    assert ((found.gradient - gradient).abs() < 5 * found.standard_error).all()
    assert (gradient.abs() / 2 / found.standard_error).max() > 10


def test_options():
    assert unit().threshold(A, 0.5).tolist() == torch.softmax(A, -1).tolist()
    with pytest.raises(InvalidOptions, match="std"):
        unit(5.0)
