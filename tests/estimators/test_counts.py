"""Relaxations of counts: eat against the moments of a Poisson process, and the generalised Gumbel-softmax against sums on grids.

Statistical tests allow five standard errors: a false alarm has probability below 6e-7 for each number.
"""

import math

import numpy as np
import pytest
import torch
from scipy import integrate, special

import gradest
from gradest.contract.estimator import Feedback
from gradest.errors import InvalidOptions

RATES = torch.tensor([[-1.5, 0.6, 3.0, 300.0]], dtype=torch.float64)  # of which the last takes the normal limit


def step(x, indicator):
    if indicator == "sigmoid":
        return special.expit(x)
    x = np.clip(x, -1, 1)
    return 0.5 + 0.75 * x - 0.25 * x**3


def moment_of_step(power, indicator, width):
    """∫ φ((1 - t)/τ)^power dt over t > 0, the factor of the rate in a cumulant of the count (Campbell's theorem)."""
    places = [1 - width, 1, 1 + width, 1 + 18 * width]
    found = integrate.quad(
        lambda t: step((1 - t) / width, indicator) ** power,
        0,
        1 + 40 * width,
        points=[p for p in places if p > 0],
        limit=500,
    )
    return found[0]


@pytest.mark.parametrize(
    ("indicator", "width"),
    [
        ("cubic", 0.5),
        ("sigmoid", 0.5),
        pytest.param("cubic", 1.0, marks=pytest.mark.deep),
        pytest.param("sigmoid", 0.1, marks=pytest.mark.deep),
    ],
)
def test_eat_has_the_gradient_of_the_moments_of_its_count(indicator, width):
    """E[s] = λ m and Var s = λ v, so the gradients of w s and (w s)² are known; 4,000 draws."""
    mean, square = (moment_of_step(power, indicator, width) for power in (1, 2))
    rate, slope = torch.log1p(torch.exp(RATES)), torch.sigmoid(RATES)
    estimator = {"name": "eat", "indicator": indicator, "temperature": width}
    for f, value, gradient in (
        (lambda h: 0.7 * h.sum(-1), 0.7 * mean * rate.sum(-1), 0.7 * mean * slope),
        (
            lambda h: h.square().sum(-1),
            (square * rate + (mean * rate).square()).sum(-1),
            (square + 2 * mean**2 * rate) * slope,
        ),
    ):
        found = gradest.estimate(f, RATES, "poisson", estimator, draws=4_000, seed=2)
        assert bool(((found.gradient - gradient).abs() < 5 * found.standard_error).all())
        assert bool((gradient.abs() / 2 > 8 * found.standard_error).all())  # a wrong factor of two would show
        assert float((found.loss - value).abs() / value) < 0.03


def test_the_cubic_is_exact_for_linear_losses_and_the_sigmoid_is_not():
    assert moment_of_step(1, "cubic", 0.5) == pytest.approx(1, abs=1e-9)
    assert moment_of_step(2, "cubic", 0.5) == pytest.approx(1 - 4.5 / 35, abs=1e-9)
    assert moment_of_step(1, "sigmoid", 0.5) == pytest.approx(0.5 * math.log1p(math.exp(2)), abs=1e-9)
    neuron = gradest.neuron("poisson")
    assert gradest.estimator("eat").bias(neuron) == gradest.Bias.exact_to_order(1)
    assert gradest.estimator("eat", indicator="sigmoid").bias(neuron) == gradest.Bias.BIASED


@pytest.mark.parametrize("indicator", ["cubic", "sigmoid"])
def test_the_slope_of_eat_is_that_of_its_points(indicator):
    """By differences at fixed noise, in the normal limit too."""
    estimator, neuron = gradest.estimator("eat", samples=50, indicator=indicator), gradest.neuron("poisson")
    upper, lower = (estimator.forward(neuron, RATES + s, gradest.Key(4), {}).points for s in (1e-6, -1e-6))
    draw = estimator.forward(neuron, RATES, gradest.Key(4), {})
    weights = torch.cos(draw.points * 3)
    gradient, _ = estimator.backward(draw, Feedback(None, weights), {})
    wanted = (weights * (upper - lower) / 2e-6).mean(0)
    torch.testing.assert_close(gradient, wanted, rtol=1e-5, atol=1e-7)


def test_eat_without_a_step_to_speak_of_counts_as_the_unit_does():
    """At the lowest temperature all counts but a few are whole, and have the probabilities of the unit."""
    a = torch.full((4000, 1), 0.8, dtype=torch.float64)
    draw, _ = gradest.ask("poisson", {"name": "eat", "temperature": 1e-3}, a, seed=3)
    whole = draw.points.round()
    assert float(((draw.points - whole).abs() < 1e-9).double().mean()) > 0.99
    share = torch.stack([(whole == k).double().mean() for k in range(5)])
    p = gradest.neuron("poisson").log_prob(torch.arange(5.0, dtype=torch.float64), a[0]).exp()
    assert bool(((share - p).abs() < 5 * (p * (1 - p) / 4000).sqrt()).all())


def test_a_cubic_step_may_not_be_cut():
    with pytest.raises(InvalidOptions, match="at most 1 for the cubic"):
        gradest.estimator("eat", temperature=1.5)
    gradest.estimator("eat", indicator="sigmoid", temperature=1.5)


def relaxed_gradient(a, trials, temperature, slope):
    """E[L'(s) ds/da] for one binomial unit of at most two trials, summed over differences of Gumbel noise to the first count.

    The slope ds/da is taken by differences of the softmax.
    """
    x = np.arange(-24, 24, 0.1)
    noise = np.stack(np.broadcast_arrays(0.0, *(x[:, None], x[None])[:trials]), -1).reshape(-1, trials + 1)
    rest = np.exp(-noise[:, 1:])
    density = special.factorial(trials) * rest.prod(-1) / (1 + rest.sum(-1)) ** (trials + 1)
    counts = np.arange(trials + 1)

    def mean(a):
        log_p = np.log(special.binom(trials, counts)) + counts * a - trials * np.logaddexp(0, a)
        return special.softmax((log_p + noise) / temperature, -1) @ counts

    moved = (mean(a + 1e-5) - mean(a - 1e-5)) / 2e-5
    return (slope(mean(a)) * moved * density).sum() * 0.1**trials


@pytest.mark.parametrize("trials", [1, 2])
def test_the_generalised_gumbel_softmax_is_unbiased_for_its_relaxed_objective(trials):
    """Within five standard errors of 40,000 draws; half of the gradient is beyond twenty."""
    a = torch.tensor([[0.4], [-1.3]], dtype=torch.float64)
    found = gradest.estimate(
        lambda h: torch.sin(2 * h).sum(-1),
        a,
        {"name": "binomial", "trials": trials},
        {"name": "generalised_gumbel_softmax", "temperature": 0.6},
        draws=40_000,
        seed=7,
    )
    wanted = [relaxed_gradient(x, trials, 0.6, lambda s: 2 * np.cos(2 * s)) for x in a[:, 0].tolist()]
    for gradient, error, right in zip(found.gradient[:, 0], found.standard_error[:, 0], wanted, strict=True):
        assert abs(gradient - right) < 5 * error
        assert abs(right) / 2 > 10 * error


def test_two_outcomes_are_the_concrete_relaxation():
    """The gradient has the law of `concrete` on a Bernoulli unit: mean and variance of 40,000 draws agree."""
    a = torch.tensor([[0.4, -1.3]], dtype=torch.float64)

    def f(h):
        return torch.sin(2 * h).sum(-1)

    one = gradest.estimate(f, a, {"name": "binomial", "trials": 1}, "generalised_gumbel_softmax", draws=40_000, seed=7)
    two = gradest.estimate(f, a, "bernoulli", "concrete", draws=40_000, seed=8)
    error = (one.standard_error.square() + two.standard_error.square()).sqrt()
    assert bool(((one.gradient - two.gradient).abs() < 5 * error).all())
    torch.testing.assert_close(one.variance, two.variance, rtol=0.1, atol=0)


def test_the_counts_with_a_weight_follow_the_rate():
    """At the lowest temperature the relaxed counts have the probabilities of the unit, also at a rate of 1,000."""
    a = torch.tensor([[0.5], [1000.0]], dtype=torch.float64).expand(2, 2000).reshape(2, 2000)[..., None]
    estimator = {"name": "generalised_gumbel_softmax", "temperature": 1e-3, "outcomes": 300}
    draw, _ = gradest.ask("poisson", estimator, a, seed=3)
    h = draw.points[0, ..., 0]
    rate = torch.log1p(torch.exp(a[:, 0, 0].clamp(max=30))).where(a[:, 0, 0] < 30, a[:, 0, 0])
    assert bool(((h.mean(1) - rate).abs() < 5 * (rate / 2000).sqrt()).all())
    torch.testing.assert_close(h.var(1), rate, rtol=0.2, atol=0)


def test_units_with_a_relaxation_of_their_own_are_refused():
    estimator = gradest.estimator("generalised_gumbel_softmax")
    taken = {name for name in gradest.registry.neurons if estimator.accepts(gradest.neuron(name))}
    assert taken == {"binomial", "poisson"}
