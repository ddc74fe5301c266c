"""Estimators of mixtures of experts: what each estimates, against sums."""

import itertools

import numpy as np
import pytest
import torch

import gradest

A = torch.tensor([[[0.6, -0.4, 0.1, -1.0]]], dtype=torch.float64)
SLOPE = torch.tensor([1.0, -2.0, 0.5, 3.0], dtype=torch.float64)


@pytest.mark.parametrize(("method", "degree"), [("midpoint", 2), ("heun", 3)])
def test_sparse_mixer_is_exact_to_the_order_of_its_rule_for_one_unit(method, degree):
    """30,000 draws within 5 standard errors, a false alarm of 2e-6; one degree more is beyond 10."""
    estimator = {"name": "sparse_mixer", "method": method}
    for power in range(1, degree + 2):

        def f(h, power=power):
            return (h[..., 0, :] @ SLOPE - 1.5) ** power

        _, gradient = gradest.exact(f, A, "categorical")
        found = gradest.estimate(f, A, "categorical", estimator, draws=30_000, seed=5)
        off = ((found.gradient - gradient).abs() / found.standard_error).max()
        assert off < 5 if power <= degree else off > 10
        assert (gradient.abs() / 2 / found.standard_error).max() > 10


def test_sparse_mixer_with_several_units_estimates_what_it_says():
    """The sum over both classes, and over m of both units, of the estimate: 5 standard errors, as above."""
    a = torch.stack([A[0, 0, :3], A[0, 0, 1:]])
    first, second = SLOPE[:3], SLOPE[1:]

    def f(h):
        return (h[..., 0, :] @ first) * (h[..., 1, :] @ second) + (h[..., 0, :] @ second) ** 2

    p, wanted = torch.softmax(a, -1), torch.zeros_like(a)
    rule = [(1.0, 0.25), (1 / 3, 0.75)]
    for (i, j), (one, two) in itertools.product(itertools.product(range(3), repeat=2), itertools.product(rule, rule)):
        h = torch.eye(3, dtype=torch.float64)[[i, j]]
        at = (h * torch.tensor([[one[0]], [two[0]]])).requires_grad_()
        along = (torch.autograd.grad(f(at), at)[0] * h).sum(-1, keepdim=True)
        wanted += p[0, i] * p[1, j] * one[1] * two[1] * along * (h - p)
    found = gradest.estimate(f, a, "categorical", "sparse_mixer", draws=20_000, seed=6)
    assert ((found.gradient - wanted).abs() < 5 * found.standard_error).all()
    assert (wanted.abs() / 2 / found.standard_error).max() > 10
    gap = gradest.exact(f, a, "categorical")[1] - wanted
    assert gap.abs().max() > 0.05  # products of units are scaled, too


def test_dense_mixer_is_the_gradient_of_the_mean_loss_of_dense_gates_for_linear_losses():
    """By Gauss-Hermite quadrature over the noise of four items; 5 standard errors over 20,000 draws."""
    x, w = np.polynomial.hermite_e.hermegauss(14)
    noise = torch.cartesian_prod(*[torch.from_numpy(x)] * 4)
    weight = torch.cartesian_prod(*[torch.from_numpy(w / np.sqrt(2 * np.pi))] * 4).prod(-1)
    a = A.clone().requires_grad_()
    (wanted,) = torch.autograd.grad((weight * (torch.softmax(a[0, 0] + noise, -1) @ SLOPE)).sum(), a)
    neuron = gradest.neuron("noisy_top_k")
    found = gradest.estimate(lambda h: h[..., 0, :] @ SLOPE, A, neuron, "dense_mixer", draws=20_000, seed=5)
    assert ((found.gradient - wanted).abs() < 5 * found.standard_error).all()
    assert (wanted.abs() / 2 / found.standard_error).max() > 10
    assert (gradest.exact(lambda h: h[..., 0, :] @ SLOPE, A, neuron)[1] - wanted).abs().max() > 0.05


def test_dense_mixer_is_held_noise_if_all_gates_are_open():
    neuron, f = gradest.neuron("noisy_top_k", k=4), lambda h: (h[..., 0, :] @ SLOPE) ** 3
    mine, theirs = (
        gradest.estimate(f, A, neuron, name, draws=3, seed=2).gradient for name in ("dense_mixer", "held_noise")
    )
    torch.testing.assert_close(mine, theirs)


def test_load_balance():
    objective = gradest.objective("load_balance")
    points = torch.tensor([[[1.0, 0, 0], [1, 0, 0]], [[0.5, 0.5, 0], [0, 0.4, 0.6]], [[0, 0, 0], [0, 0, 0]]])
    total = np.array([0.5, 0.9, 0.6])
    assert objective(points).tolist() == pytest.approx([2, total.var() / total.mean() ** 2, 0])
    assert objective(torch.ones(1, 4, 5, 7)).eq(0).all()
    moving = points.clone().requires_grad_()
    objective(moving).sum().backward()
    assert torch.isfinite(moving.grad).all()


def test_a_router_learns_to_balance_its_load():
    """All tokens prefer one expert; 60 steps of the penalty through the gates spread them."""
    torch.manual_seed(3)
    a = torch.nn.Parameter(torch.tensor([2.0, 0, 0, 0]) + 0.1 * torch.randn(32, 4))
    neuron, objective = gradest.neuron("noisy_top_k"), gradest.objective("load_balance")
    optimizer = torch.optim.Adam([a], lr=0.1)
    before = neuron.expected_load(a.detach()).std()
    for step in range(60):
        value, _ = gradest.expect(objective, a, neuron, "dense_mixer", seed=step)
        optimizer.zero_grad()
        value.backward()
        optimizer.step()
    assert neuron.expected_load(a.detach()).std() < 0.3 * before
