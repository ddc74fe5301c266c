"""The softmax of a normal vector beside a fixed class: its law by a sum on a grid, its density, and estimators.

Statistical tests allow five standard errors: a false alarm has probability below 6e-7 for each number.
"""

import numpy as np
import pytest
import torch
from scipy import special, stats

import gradest

A = torch.tensor([[[0.6, -0.9]]], dtype=torch.float64)


def unit(std=1.0):
    return gradest.neuron("invertible_gaussian", std=std)


def loss(h):
    """Of one unit of three classes."""
    return torch.exp(1.3 * h[..., 0, 0]) + torch.sin(3 * h[..., 0, 2])


def on_a_grid(a, std, f=loss):
    """E[f], by a sum over a grid of the two normal variables."""
    z = np.arange(-8, 8, 0.05)
    pairs = np.stack(np.meshgrid(z, z, indexing="ij"), -1)
    logits = np.concatenate([a + std * pairs, np.zeros((*pairs.shape[:2], 1))], -1)
    values = f(torch.from_numpy(special.softmax(logits, -1))[:, :, None]).numpy()
    return float((stats.norm.pdf(pairs).prod(-1) * values).sum() * 0.05**2)


@pytest.mark.parametrize("std", [0.5, 1.0, 2.0])
def test_the_law_and_its_derivative(std):
    """To 1e-6; the slope by a difference of sums on a grid."""
    value, gradient = gradest.exact(loss, A, unit(std))
    a = A[0, 0].numpy()
    assert value.item() == pytest.approx(on_a_grid(a, std), abs=1e-6)
    for i, step in enumerate(1e-3 * np.eye(2)):
        slope = (on_a_grid(a + step, std) - on_a_grid(a - step, std)) / 2e-3
        assert gradient[0, 0, i].item() == pytest.approx(slope, abs=1e-5)


def test_one_pre_activation_is_a_noisy_sigmoid():
    """The same noise gives the same output, and another quadrature the same mean."""
    a, key = torch.tensor([[0.4], [-3.0]], dtype=torch.float64), gradest.Key(3)
    noisy = gradest.neuron("noisy_sigmoid", std=0.7)
    torch.testing.assert_close(unit(0.7).mean(a)[:, 0], noisy.mean(a[:, 0]), rtol=0, atol=1e-7)
    h = unit(0.7).sample(key, a, 3)
    torch.testing.assert_close(h[..., 0], noisy.forward(a, unit(0.7).noise(key, a, 3))[..., 0])
    torch.testing.assert_close(h.sum(-1), torch.ones_like(h[..., 0]))


def log_density(h, a, std):
    """As the docstring has it, up to a constant."""
    ratio = torch.log(h[..., :-1] / h[..., -1:])
    return -((ratio - a) ** 2).sum(-1) / (2 * std**2) - torch.log(h).sum(-1)


def test_the_output_has_an_inverse_and_a_density():
    """The score is the derivative of the density at a fixed output, and the density that of the map: 1/|dh/da| = 1/Π h."""
    neuron, key = unit(0.6), gradest.Key(5)
    noise, h = neuron.noise(key, A, 20), neuron.sample(key, A, 20)
    torch.testing.assert_close(torch.log(h[..., :-1] / h[..., -1:]), A + noise)
    a = A.clone().requires_grad_()
    (wanted,) = torch.autograd.grad(log_density(h[3], a, 0.6).sum(), a)
    torch.testing.assert_close(neuron.density_score(A, noise)[3], wanted)
    slopes = torch.stack([neuron.backward(A, noise, e.expand_as(h)) for e in torch.eye(3, dtype=torch.float64)], -2)
    volume = torch.linalg.det(slopes[..., :2, :])
    torch.testing.assert_close(volume, h.prod(-1))


@pytest.mark.parametrize("estimator", ["pathwise", "lax"])
def test_estimators_are_unbiased(estimator):
    """8,000 draws; lax also on a loss that jumps. Half of the gradient is beyond eight standard errors."""

    def jumps(h):
        return loss(h) + (h[..., 0, 1] > 0.3).to(h.dtype)

    f = jumps if estimator == "lax" else loss
    found = gradest.estimate(f, A, unit(), estimator, draws=8_000, seed=5)
    if estimator == "lax":  # the grid is too coarse for differences of a jump, whose share is P(h_1 > 0.3)
        _, gradient = gradest.exact(loss, A, unit())
        jump = gradest.estimate(lambda h: (h[..., 0, 1] > 0.3).to(h.dtype), A, unit(), "lax", draws=8_000, seed=6)
        error = (found.standard_error.square() + jump.standard_error.square()).sqrt()
        share = slope_of_share(A[0, 0].numpy())
        assert (np.abs(jump.gradient[0, 0].numpy() - share) < 5 * jump.standard_error[0, 0].numpy()).all()
        assert np.abs(share).max() / 2 > 8 * jump.standard_error.max().item()
        gradient = gradient + torch.from_numpy(share)
    else:
        _, gradient = gradest.exact(f, A, unit())
        error = found.standard_error
    assert ((found.gradient - gradient).abs() < 5 * error).all()
    assert (gradient.abs() / 2 / error).max() > 8


def slope_of_share(a):
    """d P(h_1 > 0.3)/da: h_1 > 0.3 where a_1 + z_1 > log(3/7) + log(1 + exp(a_0 + z_0)); an integral over z_0."""

    def share(a):
        z = np.arange(-9, 9, 0.001)
        bound = np.log(3 / 7) + np.logaddexp(0, a[0] + z)
        return (stats.norm.pdf(z) * stats.norm.sf(bound - a[1])).sum() * 0.001

    return np.array([(share(a + step) - share(a - step)) / 2e-4 for step in 1e-4 * np.eye(2)])
