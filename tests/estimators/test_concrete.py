"""The concrete estimators: unbiased for the relaxed loss, which scipy integrates, and equal at the sample's own derivative."""

import pytest
import torch
from scipy import integrate, special, stats

import gradest


def f(h):
    return (h[..., 0] - 0.3) ** 3 + h[..., 0]


def relaxed_gradient(a, tau):
    """d/da ∫ f(σ((a + z)/τ)) p(z) dz."""

    def integrand(z):
        s = special.expit((a + z) / tau)
        return (3 * (s - 0.3) ** 2 + 1) * s * (1 - s) / tau * stats.logistic.pdf(z)

    return integrate.quad(integrand, -50, 50, limit=500)[0]


@pytest.mark.parametrize("tau", [0.5, 1.0])
def test_concrete_is_unbiased_for_the_relaxed_loss(tau):
    a = torch.tensor([0.4], dtype=torch.float64)
    found = gradest.estimate(f, a, estimator={"name": "concrete", "temperature": tau}, draws=100_000, seed=1)
    wanted = relaxed_gradient(0.4, tau)
    assert abs(found.gradient.item() - wanted) < 5 * found.standard_error.item()
    assert wanted > 50 * found.standard_error.item()


def test_the_two_differ_in_where_they_ask_alone():
    neuron, a = gradest.neuron("bipolar"), torch.tensor([[0.4, -1.0]])
    relaxed, hard = (gradest.estimator(name) for name in ("concrete", "straight_through_concrete"))
    one, two = (estimator.forward(neuron, a, gradest.Key(3), {}) for estimator in (relaxed, hard))
    assert ((one.points > 0) == (two.points > 0)).all()
    assert set(two.points.unique().tolist()) <= {-1.0, 1.0}
    grad = torch.tensor([[[2.0, -3.0]]])
    gradients = [
        estimator.backward(draw, gradest.Feedback(None, grad), {})[0]
        for estimator, draw in ((relaxed, one), (hard, two))
    ]
    assert torch.equal(*gradients)
    s = (one.points[0] + 1) / 2
    assert torch.allclose(gradients[0], grad[0] * 2 * s * (1 - s) / 0.5, rtol=1e-5)


def test_gumbel_softmax_is_unbiased_for_the_relaxed_loss():
    """Which is the loss of the relaxed unit, whose law is a quadrature."""
    a = torch.tensor([[0.4, -0.9, 0.1]], dtype=torch.float64)
    weight = torch.tensor([1.0, -0.7, 0.5], dtype=torch.float64)

    def cubic(h):
        return ((h * weight).sum((-1, -2)) + 0.3) ** 3

    _, wanted = gradest.exact(cubic, a, {"name": "gumbel_softmax", "temperature": 0.5})
    found = gradest.estimate(cubic, a, "categorical", "gumbel_softmax", draws=100_000, seed=1)
    assert float(((found.gradient - wanted) / found.standard_error).abs().max()) < 5  # false alarm below 2e-6
    assert bool((wanted.abs() > 20 * found.standard_error).any())
    draw = gradest.estimator("gumbel_softmax").forward(gradest.neuron("categorical"), a, gradest.Key(1), {})
    assert torch.equal(draw.points.argmax(-1), gradest.sample("categorical", a, 1, 1).argmax(-1))
