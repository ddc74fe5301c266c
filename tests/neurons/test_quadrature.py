"""Quadratures of continuous units against scipy, at narrow and wide noise, and what exact says of their error."""

import itertools

import numpy as np
import pytest
import torch
from scipy import integrate, special, stats

import gradest
from gradest.contract.neuron import Continuous
from gradest.errors import Inexact, InvalidInput, InvalidOptions

A = torch.tensor([[0.4, -1.3]], dtype=torch.float64)


def over(density, width, f, a, scale):
    """E[f(a + width z)] by scipy, with more intervals where f varies: near a + width z = 0, on the given scale."""
    points = sorted(
        x for x in (-a / width + side * scale / width for side in (-30, -5, -1, 0, 1, 5, 30)) if abs(x) < 39
    )
    edges = [-40.0, *points, 40.0]
    parts = [
        integrate.quad(lambda z: f(a + width * z) * density(z), left, right, epsabs=1e-13, limit=200)[0]
        for left, right in itertools.pairwise(edges)
    ]
    return sum(parts)


def concrete(temperature):
    return (
        gradest.neuron("binary_concrete", temperature=temperature),
        lambda f, a: over(
            stats.logistic.pdf, 1.0, lambda x: f(special.expit(np.clip(x / temperature, -700, 700))), a, temperature
        ),
    )


def noisy_sigmoid(std):
    return (
        gradest.neuron("noisy_sigmoid", std=std),
        lambda f, a: over(stats.norm.pdf, std, lambda x: f(special.expit(x)), a, 1.0),
    )


def hard_concrete(temperature):
    return (
        gradest.neuron("hard_concrete", temperature=temperature),
        lambda f, a: over(
            stats.logistic.pdf,
            1.0,
            lambda x: f(np.clip(1.2 * special.expit(np.clip(x / temperature, -700, 700)) - 0.1, 0, 1)),
            a,
            temperature,
        ),
    )


UNITS = {
    **{f"binary_concrete {t}": concrete(t) for t in (10.0, 0.1, 0.05, 0.02, 1e-3)},
    **{f"noisy_sigmoid {s}": noisy_sigmoid(s) for s in (0.05, 5.0, 20.0, 50.0)},
    **{f"hard_concrete {t}": hard_concrete(t) for t in (0.05, 2 / 3, 50.0)},
}


QUICK = ("binary_concrete 0.001", "noisy_sigmoid 0.05", "noisy_sigmoid 50.0", "hard_concrete 0.6666666666666666")


@pytest.mark.parametrize(
    "name", [name if name in QUICK else pytest.param(name, marks=pytest.mark.deep) for name in UNITS]
)
def test_means_and_expectations_of_narrow_and_wide_units(name):
    """The gradient is compared with a central difference of scipy's integral; at 0.001, a wrong sign or factor would show."""
    neuron, expectation = UNITS[name]
    wanted = [expectation(lambda h: h, a) for a in A[0].tolist()]
    np.testing.assert_allclose(neuron.mean(A)[0], wanted, atol=1e-6)
    np.testing.assert_allclose(neuron.law(A)[1].sum(0), 1, rtol=1e-12)

    def cubic(h):
        return (h - 0.3) ** 3 + 5

    loss, gradient = gradest.exact(lambda h: cubic(h).sum(-1), A, neuron)
    np.testing.assert_allclose(loss, sum(expectation(cubic, a) for a in A[0].tolist()), atol=1e-6)
    step = 0.01
    slopes = [(expectation(cubic, a + step) - expectation(cubic, a - step)) / (2 * step) for a in A[0].tolist()]
    np.testing.assert_allclose(gradient[0], slopes, rtol=1e-3)
    objective = gradest.objective("quadratic", target=0.3)
    squares = sum(expectation(lambda h: (h - 0.3) ** 2, a) for a in A[0].tolist()) / 2
    np.testing.assert_allclose(objective.expectation(neuron, A), squares, atol=1e-6)


@pytest.mark.parametrize("a", [-40.0, -3.0, 0.0, 30.0, 36.0, 1e4])
@pytest.mark.parametrize(
    "spec", ["noisy_rectifier", {"name": "noisy_rectifier", "distribution": "gaussian", "std": 3.0}]
)
def test_the_rectifier_far_from_0(spec, a):
    neuron, at = gradest.neuron(spec), torch.tensor([[a]], dtype=torch.float64)
    values, weights = neuron.law(at)
    np.testing.assert_allclose(weights.sum(0), 1, rtol=1e-12)
    np.testing.assert_allclose((weights * values).sum(0), neuron.mean(at), rtol=1e-9, atol=1e-30)
    loss, gradient = gradest.exact(lambda h: h.sum(-1), at, neuron)
    np.testing.assert_allclose(loss, neuron.mean(at)[0], rtol=1e-9, atol=1e-30)
    np.testing.assert_allclose(gradient, neuron.active_probability(at), rtol=1e-6, atol=1e-30)


CONTINUOUS = ["gaussian", "noisy_rectifier", "noisy_sigmoid", "binary_concrete", "hard_concrete"]


@pytest.mark.parametrize("name", [*CONTINUOUS, "gumbel_softmax"])
def test_every_built_in_continuous_unit_says_so_and_converges(name):
    neuron = gradest.neuron(name)
    assert isinstance(neuron, Continuous)
    a = A[..., None] * torch.tensor([1.0, -1.0, 0.3], dtype=torch.float64) if neuron.event_ndim == 2 else A
    means = []
    for level in (-1, 0, 1):
        values, weights = neuron.quadrature(a, level)
        np.testing.assert_allclose(weights.sum(0), 1, rtol=1e-12)
        means.append((weights.reshape(*weights.shape, *[1] * (values.ndim - weights.ndim)) * (values / 2).exp()).sum(0))
    coarse, fine = (float((mean - means[2]).abs().max()) for mean in means[:2])
    assert fine < max(coarse / 4, 1e-9)


@pytest.mark.parametrize("name", CONTINUOUS)
def test_a_loss_that_jumps_is_refused_or_right(name):
    """A jump of one unit is integrated to the stated tolerance, with its gradient; one of two units together is refused."""
    neuron, a = gradest.neuron(name), A[:, :1]
    loss, gradient = gradest.exact(lambda h: (h > 0.3).double().sum(-1), a, neuron, tolerance=3e-3)
    h = gradest.sample(neuron, a.expand(200_000, 1), seed=5)
    share = (h > 0.3).double().mean()
    assert abs(float(loss - share)) < 5 * float((share * (1 - share) / 200_000).sqrt()) + 3e-3
    assert gradient.item() > 0.1  # the pathwise derivative is 0 almost everywhere
    with pytest.raises(Inexact, match=r"quadrature.*estimate"):
        gradest.exact(lambda h: (h.sum(-1) > 0.61803).double(), A, neuron, tolerance=1e-6)


def test_the_tolerance_is_checked():
    for tolerance in (0, -1.0, "1", True, float("nan")):
        with pytest.raises(InvalidInput, match="tolerance"):
            gradest.exact(lambda h: h.sum(-1), A, "gaussian", tolerance=tolerance)


def test_a_separable_objective_refuses_what_its_quadrature_cannot_do():
    class Wave(gradest.Separable):
        name, summary = "wave", "sin of 10^5 h"

        def per_unit(self, h):
            return (1e5 * h).sin()

    with pytest.raises(Inexact, match="wave"):
        Wave().expectation(gradest.neuron("gaussian"), A)
    table = gradest.compare(Wave(), A, "gaussian", ["pathwise"], draws=2, seed=1)
    assert table.exact is None
    assert "not accurate for wave" in table.no_exact
    assert table.no_exact in table.to_markdown()
    assert table.rows[0].bias is None


def test_compare_does_not_call_pathwise_biased_at_a_low_temperature():
    """20,000 draws; an unbiased estimate is beyond 5 standard errors with probability 1e-6. The old quadrature gave 70."""
    neuron = gradest.neuron("binary_concrete", temperature=0.02)
    table = gradest.compare(lambda h: (2 * h[..., 0] - h[..., 1]) ** 2, A, neuron, ["pathwise"], draws=20_000, seed=1)
    assert table.rows[0].bias_in_se < 5
    assert table.no_exact is None


@pytest.mark.parametrize("std", [1e-6, 1e6])
@pytest.mark.parametrize("name", ["gaussian", "noisy_sigmoid", "noisy_rectifier"])
def test_the_narrowest_and_the_widest_noise_have_a_mean(name, std):
    options = {"distribution": "gaussian"} if name == "noisy_rectifier" else {}
    neuron = gradest.neuron(name, std=std, **options)
    for dtype in (torch.float32, torch.float64):
        loss, gradient = gradest.exact(lambda h: h.mean(-1), torch.tensor([[0.0], [0.5]], dtype=dtype), neuron)
        assert bool(torch.isfinite(loss).all() and torch.isfinite(gradient).all())
    with pytest.raises(InvalidOptions, match="std"):
        gradest.neuron(name, std=10 * std if std > 1 else std / 10, **options)
