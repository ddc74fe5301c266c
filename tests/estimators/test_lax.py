"""LAX: its mean by quadrature over the noise, at parameters of the network that are not 0, and what it learns."""

import math

import pytest
import torch

import gradest
from gradest.contract.numerics import gauss_legendre

UNITS = {
    "gaussian": ({"name": "gaussian", "std": 0.6}, [0.3]),
    "diagonal_gaussian": ("diagonal_gaussian", [[0.3, -0.4]]),
}


def parts(unit):
    spec, a = UNITS[unit]
    neuron, a = gradest.neuron(spec), torch.tensor(a, dtype=torch.float64)
    return neuron, a, (a[0], 0.6) if unit == "gaussian" else (a[0, 0], a[0, 1].exp())


def smooth(h):
    return (h.sum(-1) - 0.4) ** 3 + h.sum(-1).sin()


def jumps(h):
    return 2.0 * (h.sum(-1) > 0.5)


def state_of(estimator, neuron, a):
    state = dict(estimator.init(neuron, a))
    numbers = {"outer": 0.8, "linear": -1.1, "constant": 0.3}
    return state | {name: state[name] + value for name, value in numbers.items()}


@pytest.mark.parametrize("unit", UNITS)
@pytest.mark.parametrize("f", [smooth, jumps])
def test_the_mean_over_the_noise_is_exact(unit, f, monkeypatch):
    """Nodes of z below and above the jump, in place of random numbers."""
    neuron, a, (mean, std) = parts(unit)
    jump = float((0.5 - mean) / std)
    x, w = gauss_legendre(512)
    z = torch.cat([-12 + (jump + 12) * x, jump + (12 - jump) * x])
    weight = torch.cat([(jump + 12) * w, (12 - jump) * w]) * torch.exp(-0.5 * z**2) / math.sqrt(2 * math.pi)
    noise = (z if unit == "diagonal_gaussian" else 0.6 * z)[None, :, None]
    monkeypatch.setattr(type(neuron), "noise", lambda *_: noise)
    estimator, rows = gradest.estimator("lax", learn=False), a.expand(len(z), *a.shape)
    points = neuron.forward(rows, noise)
    draw = gradest.Draw(neuron, rows, gradest.Key(0), points, torch.ones(1))
    found, _ = estimator.backward(draw, gradest.Feedback(f(points).double()), state_of(estimator, neuron, a))
    inner = a.clone().requires_grad_()
    m, s = (inner[0], 0.6) if unit == "gaussian" else (inner[0, 0], inner[0, 1].exp())
    above = 1 + torch.erf((m - 0.5) / s / math.sqrt(2))
    value = above if f is jumps else (weight * smooth((m + s * z)[:, None])).sum()
    (wanted,) = torch.autograd.grad(value, inner)
    torch.testing.assert_close((weight[(..., *[None] * a.ndim)] * found).sum(0), wanted, rtol=0, atol=1e-9)


@pytest.mark.parametrize("unit", UNITS)
def test_the_score_is_the_derivative_of_the_log_density(unit):
    neuron, a, _ = parts(unit)
    noise = neuron.noise(gradest.Key(1), a, 7)
    h, moving = neuron.forward(a, noise), a.expand(7, *a.shape).clone().requires_grad_()
    m, s = (moving[:, 0], torch.tensor(0.6)) if unit == "gaussian" else (moving[:, 0, 0], moving[:, 0, 1].exp())
    (wanted,) = torch.autograd.grad(torch.distributions.Normal(m, s).log_prob(h[:, 0]).sum(), moving)
    torch.testing.assert_close(neuron.density_score(a, noise), wanted, rtol=1e-6, atol=1e-9)


def test_it_lowers_the_variance_as_it_learns():
    neuron, a, state = gradest.neuron("gaussian", std=0.3), torch.tensor([0.3, -0.8]), None
    lax = gradest.estimator("lax", learning_rate=0.2)
    rows = a.expand(8, 2).clone().requires_grad_()
    for seed in range(60):
        _, state = gradest.expect(lambda h: (h.sum(-1) - 1) ** 2, rows, neuron, lax, seed=seed, state=state)
    first, then = (
        gradest.estimate(lambda h: (h.sum(-1) - 1) ** 2, a, neuron, lax, draws=4000, seed=1, state=known)
        for known in (lax.init(neuron, a), state)
    )
    assert then.variance.mean() < 0.6 * first.variance.mean()


def test_it_starts_as_reinforce():
    neuron, a, _ = parts("gaussian")
    estimator = gradest.estimator("lax", samples=3)
    draw = estimator.forward(neuron, a, gradest.Key(2), estimator.init(neuron, a))
    found, _ = estimator.backward(draw, gradest.Feedback(smooth(draw.points)), estimator.init(neuron, a))
    wanted = (smooth(draw.points)[:, None] * (draw.points - a) / 0.36).mean(0)
    torch.testing.assert_close(found, wanted)
