"""Binary units with a Gaussian copula: probabilities against scipy's normal orthants and a grid, samples, scores, estimators.

Statistical tests allow five standard errors: a false alarm has probability below 6e-7 for each number.
"""

import itertools
import math

import numpy as np
import pytest
import torch
from scipy import integrate, special, stats

import gradest
from gradest.errors import TooManyPoints

A = torch.tensor([[[0.6, -1.4, 2.1]]], dtype=torch.float64)
OUTPUTS = torch.tensor(list(itertools.product([0.0, 1.0], repeat=3)), dtype=torch.float64)[:, None, None]


def unit(correlation=0.5):
    return gradest.neuron("correlated_bernoulli", correlation=correlation)


def loss(h):
    """Of groups of three units, which meet."""
    h = h[..., 0, :]
    return torch.sin(h[..., 0] + 2 * h[..., 1] * h[..., 2]) + h[..., 1] - 2 * h[..., 0] * h[..., 2]


def on_a_grid(a, correlation):
    """P(h) of all outputs of one group, differentiable in a, by a sum over a grid of the factor."""
    t = torch.special.ndtri(torch.sigmoid(a))
    f = torch.arange(-9, 9, 0.01, dtype=torch.float64)[:, None]
    p = torch.special.ndtr((t + math.sqrt(correlation) * f) / math.sqrt(1 - correlation))
    h = OUTPUTS[:, 0, 0, None]
    given = torch.where(h > 0, p, 1 - p).prod(-1)
    return 0.01 * (given * torch.exp(-0.5 * f[:, 0] ** 2)).sum(-1) / math.sqrt(2 * math.pi)


@pytest.mark.parametrize("correlation", [0.0, 0.3, 0.9])
def test_the_probabilities_are_those_of_normal_orthants(correlation):
    """scipy integrates the orthant of three variables to about 1e-5."""
    values, weights = unit(correlation).law(A)
    assert torch.equal(values, OUTPUTS)
    torch.testing.assert_close(weights.sum(0), torch.ones_like(weights[0]), rtol=0, atol=1e-9)
    place = stats.norm.ppf(special.expit(A[0, 0].numpy()))
    matrix = (1 - correlation) * np.eye(3) + correlation
    for h, weight in zip(OUTPUTS[:, 0, 0].numpy(), weights[:, 0, 0], strict=True):
        sign = 2 * h - 1
        orthant = stats.multivariate_normal(np.zeros(3), matrix * np.outer(sign, sign)).cdf(sign * place)
        assert weight.item() == pytest.approx(orthant, abs=3e-5)


@pytest.mark.parametrize("correlation", [0.0, 0.5, 0.95])
def test_the_law_and_its_derivative_are_those_of_a_fine_grid(correlation):
    a = A.clone().requires_grad_()
    wanted = on_a_grid(a[0, 0], correlation)
    _, weights = unit(correlation).law(a)
    torch.testing.assert_close(weights[:, 0, 0], wanted, rtol=1e-8, atol=1e-12)
    towards = torch.linspace(-1, 2, 8, dtype=torch.float64)
    (slope,) = torch.autograd.grad((towards * weights[:, 0, 0]).sum(), a, retain_graph=True)
    torch.testing.assert_close(slope, torch.autograd.grad((towards * wanted).sum(), a)[0], rtol=1e-7, atol=1e-10)
    score = unit(correlation).score(OUTPUTS, A)
    torch.testing.assert_close(
        (towards[:, None] * weights[:, 0] * score[:, 0, 0]).sum(0), slope[0, 0], rtol=1e-7, atol=1e-10
    )


@pytest.mark.parametrize(
    ("n", "correlation", "size"), [(1, 0.95, 5), (10, 0.95, 5), (10, 0.5, 40), (300, 0.9, 1), (300, 0.5, 3)]
)
def test_log_probabilities_of_many_units_and_in_tails(n, correlation, size):
    """Of outputs as likely as not, against scipy's adaptive integral about the largest value of the integrand."""
    generator = torch.Generator().manual_seed(3)
    a = size * torch.randn(1, 1, n, dtype=torch.float64, generator=generator)
    h = (torch.rand(1, 1, n, dtype=torch.float64, generator=generator) < 0.5).double()
    sign, logit = 2 * h[0, 0].numpy() - 1, a[0, 0].numpy()
    t = -np.sign(logit) * special.ndtri(special.expit(-abs(logit)))

    def log_integrand(f):
        x = sign * (t + math.sqrt(correlation) * f[..., None]) / math.sqrt(1 - correlation)
        return special.log_ndtr(x).sum(-1) - 0.5 * f * f - 0.5 * math.log(2 * math.pi)

    grid = np.linspace(-60, 60, 12_001)
    values = np.concatenate([log_integrand(part) for part in np.array_split(grid, 6)])
    top, at = values.max(), grid[values.argmax()]
    kept = grid[values > top - 45]
    area, _ = integrate.quad(
        lambda f: math.exp(log_integrand(np.asarray(f)) - top), kept[0], kept[-1], points=[at], limit=500, epsabs=0
    )
    assert unit(correlation).log_prob(h, a).item() == pytest.approx(top + math.log(area), rel=1e-9, abs=1e-8)


@pytest.mark.parametrize("correlation", [0.0, 0.8])
def test_samples_have_the_law(correlation):
    """40,000 draws; without the correlation one probability is off by 26 standard errors."""
    draws = 40_000
    h = gradest.sample(unit(correlation), A, samples=draws, seed=4)[:, 0, 0]
    share = torch.bincount((h @ torch.tensor([4.0, 2, 1], dtype=torch.float64)).int(), minlength=8) / draws
    p = on_a_grid(A[0, 0], correlation)
    assert bool(((share - p).abs() < 5 * (p * (1 - p) / draws).sqrt()).all())


def test_each_unit_by_itself_is_a_bernoulli_unit():
    torch.testing.assert_close(unit().mean(A), torch.sigmoid(A))
    torch.testing.assert_close(unit().threshold(A, 0.5), (A > 0).double())
    alone = A[0, 0, :, None, None]
    torch.testing.assert_close(
        unit(0.9).log_prob(torch.ones_like(alone), alone)[..., 0], torch.nn.functional.logsigmoid(alone)[..., 0, 0]
    )


def test_the_relaxed_form_is_above_a_half_where_the_unit_is_1():
    relaxed = gradest.neuron("correlated_binary_concrete", correlation=0.7)
    h, soft = (gradest.sample(neuron, A, samples=500, seed=2) for neuron in (unit(0.7), relaxed))
    assert torch.equal(h, (soft > 0.5).double())


@pytest.mark.parametrize("size", [40.0, 349.0, 1e4])
def test_scores_are_derivatives_in_the_tails(size):
    a = torch.tensor([[[-size, size, 0.3]]], dtype=torch.float64, requires_grad=True)
    log_prob = unit().log_prob(OUTPUTS, a)
    for h, one in zip(OUTPUTS, log_prob, strict=True):
        (wanted,) = torch.autograd.grad(one.sum(), a, retain_graph=True)
        torch.testing.assert_close(unit().score(h, a)[0], wanted[0], rtol=1e-8, atol=1e-12)
    rare = unit().score(torch.tensor([[[1.0, 1, 1]]], dtype=torch.float64), a)[0, 0, 0].item()
    assert rare == pytest.approx(1.0 if size < 350 else 0.0, abs=1e-6)  # of log P(h_1 = 1), about a_1


@pytest.mark.parametrize(
    "estimator",
    ["rloo", "vimco", "muprop", {"name": "double_cv", "samples": 3}, "reinforce_centered", "pass_at_k"],
)
def test_estimators_agree_with_the_sum_over_all_outputs(estimator):
    """Of their own targets; 2,000 draws, of which the largest coordinate has ten standard errors or more."""
    estimator = gradest.estimator(estimator)
    a, n = A.clone().requires_grad_(), estimator.target().samples
    p = on_a_grid(a[0, 0], 0.8)
    losses = loss(OUTPUTS)[:, 0]
    joint, each = p, losses[None]
    for _ in range(n - 1):
        joint = (joint[:, None] * p).flatten()
    each = torch.stack([x.flatten() for x in torch.meshgrid(*[losses] * n, indexing="ij")])
    (wanted,) = torch.autograd.grad((joint * estimator.target().combine(each)).sum(), a)
    found = gradest.estimate(loss, A, unit(0.8), estimator, draws=2_000, seed=6)
    assert ((found.gradient - wanted).abs() < 5 * found.standard_error).all()
    assert (wanted.abs() / found.standard_error).max() > 10


def test_straight_through_is_exact_for_linear_losses_alone():
    def linear(h):
        return h[..., 0, :] @ torch.tensor([1.0, -2, 0.5], dtype=torch.float64)

    through = gradest.estimator("straight_through", derivative="sigmoid")
    assert str(through.bias(unit())) == "exact to order 1"
    for f, exact in ((linear, True), (loss, False)):
        found = gradest.estimate(f, A, unit(), through, draws=1_000, seed=1)
        _, wanted = gradest.exact(f, A, unit())
        close = (found.gradient - wanted).abs() <= 5 * found.standard_error + 1e-12
        assert bool(close.all()) is exact


def test_a_law_of_too_many_outputs_is_refused_and_estimators_go_on():
    a = torch.zeros(1, 1, 40)
    with pytest.raises(TooManyPoints, match=r"2\^40|1099511627776"):
        gradest.exact(lambda h: h.sum((-1, -2)), a, unit())
    with pytest.raises(TooManyPoints, match="listing the outputs of 17 correlated units"):
        unit().law(torch.zeros(1, 1, 17))
    with pytest.raises(gradest.errors.Incompatible):
        gradest.expect(lambda h: h.sum((-1, -2)), a, unit(), "disarm")
    found = gradest.estimate(lambda h: h.sum((-1, -2)) ** 2, a, unit(), "rloo", draws=50, seed=1)
    assert bool(found.gradient.isfinite().all())


def test_a_row_has_the_same_bits_in_any_batch():
    a = torch.randn(37, 2, 5, generator=torch.Generator().manual_seed(0))
    h = gradest.sample(unit(), a, samples=3, seed=0)
    together = unit().log_prob(h, a), unit().score(h, a)
    for row in (0, 17, 36):
        alone = (
            unit().log_prob(h[:, row : row + 1], a[row : row + 1]),
            unit().score(h[:, row : row + 1], a[row : row + 1]),
        )
        assert all(torch.equal(x[:, row : row + 1], y) for x, y in zip(together, alone, strict=True))


@pytest.mark.parametrize("shape", [(0, 2), (3, 0)])
def test_nothing_has_no_scores(shape):
    """Neither no draws nor no rows."""
    a, h = torch.zeros(shape[1], 2, 3), torch.zeros(*shape, 2, 3)
    assert unit().score(h, a).shape == h.shape
    assert unit().log_prob(h, a).shape == (*shape, 2)


@pytest.mark.parametrize("shape", [(), (30,), (5, 30)])
def test_many_samples_of_few_units_have_the_same_bits(shape):
    """They are computed once for each output, and looked up; so are those at pre-activations that are expanded."""
    a = torch.randn(2, 2, 3, generator=torch.Generator().manual_seed(0))
    h = (torch.rand(*shape, 2, 2, 3, generator=torch.Generator().manual_seed(1)) < 0.5).float()
    found = unit().log_prob(h, a), unit().score(h, a)
    for one in itertools.product(*map(range, shape)):
        assert torch.equal(found[0][one], unit().log_prob(h[one], a))
        assert torch.equal(found[1][one], unit().score(h[one], a))
    if shape:
        wide = a.expand(*shape[-1:], 2, 2, 3)
        assert torch.equal(unit().log_prob(h, wide), found[0])
        assert torch.equal(unit().score(h, wide), found[1])
