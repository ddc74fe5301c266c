"""The Poisson unit against scipy's, and what meets a law that lists no last output."""

import numpy as np
import pytest
import torch
from scipy import special, stats

import gradest
from gradest.errors import TooManyPoints
from gradest.estimation.exact import closed_form

TAILS = torch.tensor([-300.0, -40.0, -3.0, -0.5, 0.0, 0.5, 3.0, 40.0, 1e4], dtype=torch.float64)
RATES = np.logaddexp(0, TAILS.numpy())
POISSON = gradest.neuron("poisson")


def test_closed_forms():
    np.testing.assert_allclose(POISSON.mean(TAILS), RATES, rtol=1e-12)
    np.testing.assert_allclose(POISSON.active_probability(TAILS), -np.expm1(-RATES), rtol=1e-12)
    h = torch.arange(6.0, dtype=torch.float64)[:, None]
    np.testing.assert_allclose(POISSON.log_prob(h, TAILS), stats.poisson.logpmf(h.numpy(), RATES), rtol=1e-9, atol=1e-9)
    near = torch.tensor([9800.0, 10_000.0, 10_300.0], dtype=torch.float64)
    np.testing.assert_allclose(POISSON.log_prob(near, TAILS[-1]), stats.poisson.logpmf(near.numpy(), 1e4), rtol=1e-10)
    slope = special.expit(TAILS.numpy())
    np.testing.assert_allclose(POISSON.score(h, TAILS)[:, 2:], (h.numpy() / RATES - 1)[:, 2:] * slope[2:], rtol=1e-9)
    # where λ is as good as 0: h σ/λ = h, and -σ
    np.testing.assert_allclose(POISSON.score(h, TAILS)[:, 0], [-np.exp(-300.0), 1, 2, 3, 4, 5], rtol=1e-9)


def test_law_leaves_out_the_share_it_states():
    for a, rate in zip(TAILS, RATES, strict=True):
        values, weights = POISSON.law(a[None])
        first, last = values.min().item(), values.max().item()
        assert (values.diff(dim=0) == 1).all()
        assert stats.poisson.cdf(first - 1, rate) + stats.poisson.sf(last, rate) <= 1e-12
        assert len(values) <= 30 + 15 * rate**0.5
        np.testing.assert_allclose(weights[:, 0], stats.poisson.pmf(values[:, 0].numpy(), rate), rtol=1e-8, atol=1e-300)
    values, weights = POISSON.law(TAILS)  # each unit about its own λ, as many counts as the largest needs
    assert torch.allclose(weights.sum(0), torch.ones(9, dtype=torch.float64), atol=1e-10)
    np.testing.assert_allclose((values * weights).sum(0), RATES, rtol=1e-10, atol=1e-12)
    assert POISSON.law(torch.zeros(0, 3))[0].shape[1:] == (0, 3)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_forward_inverts_the_distribution_function(dtype):
    z = torch.linspace(2.0**-20, 1 - 2.0**-20, 501, dtype=dtype)[:, None]
    a = TAILS.to(dtype)
    h = POISSON.forward(a, z)
    rate = np.logaddexp(0, a.double().numpy())
    below, at = (stats.poisson.cdf(h.double().numpy() - step, rate) for step in (1, 0))
    assert (below <= z.double().numpy() + 1e-9).all()
    assert (at > z.double().numpy() - 1e-9).all()
    assert (h.diff(dim=0) >= 0).all()
    ends = POISSON.forward(a, torch.tensor([[2.0**-24], [1 - 2.0**-24]], dtype=dtype))
    np.testing.assert_array_equal(ends[:, 2:8], stats.poisson.ppf([[2.0**-24], [1 - 2.0**-24]], rate[2:8]))


@pytest.mark.parametrize("a", [-2.0, 0.7, 6.0])
def test_samples(a):
    rate = float(np.logaddexp(0, a))
    h = gradest.sample(POISSON, torch.full((40_000, 1), a), seed=1).flatten().numpy()
    edges = [k for k in range(40) if 40_000 * stats.poisson.pmf(k, rate) > 10]
    expected = [
        stats.poisson.cdf(edges[0], rate),
        *stats.poisson.pmf(edges[1:-1], rate),
        stats.poisson.sf(edges[-2], rate),
    ]
    counts = np.bincount(np.clip(h, edges[0], edges[-1]).astype(int) - edges[0], minlength=len(edges))
    assert stats.chisquare(counts, 40_000 * np.array(expected)).pvalue > 1e-6


@pytest.mark.parametrize("size", [1e4, 1e30, 3e38])
def test_any_finite_pre_activation_will_do(size):
    a = torch.tensor([size, -size])
    h = gradest.sample(POISSON, a, samples=4, seed=1)
    for x in (h, POISSON.mean(a), POISSON.score(h, a)):
        assert torch.isfinite(x).all()
    assert (h[:, 1] == 0).all()
    assert ((h[:, 0] - size).abs() <= 8 * size**0.5 + 1e-6 * size).all()


def test_a_row_does_not_depend_on_how_far_others_search():
    a, noise = torch.tensor([0.5, 2.0]), torch.tensor([0.3, 0.9])
    alone = POISSON.forward(a, noise)
    among = POISSON.forward(torch.cat([a, torch.tensor([1e8])]), torch.cat([noise, torch.tensor([0.5])]))
    assert torch.equal(among[:2], alone)


def test_exact_gradient():
    a = torch.tensor([0.3, -1.0], dtype=torch.float64)
    loss, gradient = gradest.exact(lambda h: h.prod(-1) + h[..., 0] ** 2, a, neuron=POISSON)
    rate, slope = torch.nn.functional.softplus(a), torch.sigmoid(a)
    assert torch.allclose(loss, rate.prod() + rate[0] + rate[0] ** 2, rtol=1e-10)
    wanted = slope * torch.stack([rate[1] + 1 + 2 * rate[0], rate[0]])
    assert torch.allclose(gradient, wanted, rtol=1e-10)


def test_enumeration_does_not_fit():
    assert not gradest.estimator("enumeration").accepts(POISSON)


def test_a_law_that_is_too_long_is_said_to_be():
    a = torch.full((1000, 2), 1e12)
    with pytest.raises(TooManyPoints, match="counts"):
        POISSON.law(a)
    objective = gradest.objective("quadratic")
    assert closed_form(objective, a, POISSON) is None
    table = gradest.compare(objective, a, POISSON, estimators=["rloo"], draws=3, seed=1)
    assert table.rows[0].bias is None
