"""Estimators for units that choose k of n items, against all sets."""

import math

import numpy as np
import pytest
import torch
from scipy import stats

import gradest
from gradest.contract.neuron import Subset
from gradest_estimators.gumbel_top_k import relaxed_top_k
from tests.selection import deep

FIVE = gradest.neuron("k_subset", k=5)


def normal(*shape, seed=3):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


A = normal(1, 10).float()
SLOPE = normal(10, seed=1).float()
MIXED = normal(10, 10, seed=2).float() / 3


def linear(h):
    return h[..., 0, :] @ SLOPE


def quadratic(h):
    return (h[..., 0, :] @ MIXED).square().sum(-1) + linear(h)


@pytest.mark.parametrize(
    "estimator",
    [
        "reinforce",
        "reinforce_average",
        "nvil",
        {"name": "double_cv", "samples": 3},
        *deep("reinforce_centered", {"name": "rloo", "samples": 4}, "muprop"),
    ],
    ids=str,
)
def test_no_bias_over_252_sets(estimator):
    """Five standard errors at each of ten coordinates, a false alarm of 6e-6; half the gradient is more than ten off."""
    _, gradient = gradest.exact(quadratic, A, FIVE)
    found = gradest.estimate(quadratic, A, FIVE, estimator, draws=20_000, seed=5)
    assert ((found.gradient - gradient).abs() < 5 * found.standard_error).all()
    assert (gradient / 2 / found.standard_error).abs().max() > 10


def test_enumeration_is_exact():
    found = gradest.estimate(quadratic, A, FIVE, "enumeration", draws=2, seed=5)
    assert found.evaluations == 252
    torch.testing.assert_close(found.gradient, gradest.exact(quadratic, A, FIVE)[1], rtol=1e-4, atol=1e-6)


def test_simple_and_muprop_have_no_variance_on_linear_losses():
    _, gradient = gradest.exact(linear, A, FIVE)
    for name in ("simple", "muprop"):
        found = gradest.estimate(linear, A, FIVE, name, draws=50, seed=5)
        torch.testing.assert_close(found.gradient, gradient, rtol=1e-4, atol=1e-6)
        assert found.variance.max() < 1e-10


def test_simple_is_the_covariance_times_the_slope():
    """Its mean over all sets, by enumeration; the biased estimate of the mean of 4,000 draws is within five standard errors."""
    values, weights = FIVE.law(A.double())
    values, weights = values[:, 0], weights[:, 0]
    mean = weights @ values
    covariance = (values - mean).T @ ((values - mean) * weights[:, None])
    slopes = torch.func.vmap(torch.func.grad(lambda h: quadratic(h[None])))(values.float()).double()
    wanted = covariance @ (weights @ slopes)
    found = gradest.estimate(quadratic, A, FIVE, "simple", draws=4000, seed=5)
    assert ((found.gradient[0] - wanted).abs() < 5 * found.standard_error[0]).all()
    assert (wanted / 2 / found.standard_error[0]).abs().max() > 10
    gap = (wanted - gradest.exact(quadratic, A, FIVE)[1][0]).norm() / wanted.norm()
    assert gap > 0.1  # so the bias is seen


@pytest.mark.parametrize(("n", "k", "scale"), [(10, 5, 1), (10, 5, 40), (10, 1, 3), (4, 4, 1), (6, 2, 1000)])
def test_the_kernel_of_the_mean_is_the_derivative(n, k, scale):
    neuron, a, grad = gradest.neuron("k_subset", k=k), scale * normal(3, 2, n), normal(3, 2, n, seed=1) + 5
    torch.testing.assert_close(neuron.mean_backward(a, grad), Subset.mean_backward(neuron, a, grad), rtol=0, atol=1e-13)
    a[..., 0] = -torch.inf
    if k < n:
        torch.testing.assert_close(
            neuron.mean_backward(a, grad), Subset.mean_backward(neuron, a, grad), rtol=0, atol=1e-13
        )


def test_one_item_has_the_estimates_of_one_hot_units():
    """The marginals of one item are its softmax, and a relaxed top 1 is a softmax."""
    one, categorical, a = gradest.neuron("k_subset", k=1), gradest.neuron("categorical"), normal(2, 3, 4)
    grad, key = normal(5, 2, 3, 4, seed=1), gradest.Key(3)
    for name, other in (("simple", "straight_through"), ("gumbel_top_k", "straight_through_gumbel")):
        mine, theirs = gradest.estimator(name, samples=5), gradest.estimator(other, samples=5)
        if name == "simple":
            theirs = theirs.with_options(derivative="sigmoid")
        else:
            mine, theirs = mine.with_options(temperature=0.7), theirs.with_options(temperature=0.7)
        draws = mine.forward(one, a, key, {}), theirs.forward(categorical, a, key, {})
        if name == "gumbel_top_k":
            assert torch.equal(draws[0].points, draws[1].points)
        feedback = gradest.Feedback(None, grad)
        torch.testing.assert_close(mine.backward(draws[0], feedback, {})[0], theirs.backward(draws[1], feedback, {})[0])


def test_the_relaxed_top_k():
    x = normal(7, 6)
    wanted, alpha = torch.zeros_like(x), x.clone()
    for _ in range(3):
        p = torch.softmax(alpha / 0.7, -1)
        wanted, alpha = wanted + p, alpha + torch.log(1 - p)
    torch.testing.assert_close(relaxed_top_k(x, 3, 0.7), wanted)
    assert torch.autograd.gradcheck(lambda y: relaxed_top_k(y, 3, 0.7), x.requires_grad_())
    cold = relaxed_top_k(x, 3, 1e-3)
    assert torch.equal(cold.topk(3, -1).indices.sort(-1).values, x.topk(3, -1).indices.sort(-1).values)
    torch.testing.assert_close(cold.sum(-1), torch.full((7,), 3.0, dtype=torch.float64))
    apart = torch.tensor([2e4, -1e4, 0.0, 1e4, -torch.inf], requires_grad=True)
    relaxed = relaxed_top_k(apart, 3, 0.1)
    torch.testing.assert_close(relaxed, torch.tensor([1.0, 0, 1, 1, 0]))
    assert torch.isfinite(torch.autograd.grad(relaxed.square().sum(), apart)[0]).all()


@pytest.mark.parametrize("k", [1, 2, 5])
def test_the_noise_of_any_k_items_sums_to_nearly_a_gumbel_variable(k):
    """The largest of s exponential variables, less log s. A false alarm of 1e-6; 10 % of its scale would be seen."""
    estimator, neuron = gradest.estimator("imle", samples=20_000), gradest.neuron("k_subset", k=k)
    noise = estimator.noise(neuron, torch.zeros(1, k), gradest.Key(3)).sum(-1).flatten().numpy()

    def law(x):
        return (1 - np.exp(-(x + math.log(10)))) ** 10

    assert stats.kstest(noise, law).pvalue > 1e-6
    assert stats.kstest(1.1 * noise, law).pvalue < 1e-6


def test_imle_is_a_difference_of_means_of_its_own_law():
    """For a linear loss E[ĝ] = (m(a) - m(a - λc))/λ, with m the mean of MAP(a + ε); five standard errors, power as above.

    For k = 1 and many terms ε is a Gumbel variable, so m is the softmax, up to 0.3 % for 100 terms.
    """
    neuron, a, slope, step = gradest.neuron("k_subset", k=1), normal(1, 4).float(), SLOPE[:4], 0.5
    estimator = gradest.estimator("imle", step=step, terms=100)
    found = gradest.estimate(lambda h: h[..., 0, :] @ slope, a, neuron, estimator, draws=10_000, seed=5)
    wanted = (torch.softmax(a, -1) - torch.softmax(a - step * slope, -1)) / step
    assert ((found.gradient - wanted).abs() < 5 * found.standard_error + 0.002).all()
    assert (wanted / 2 / (found.standard_error + 0.0004)).abs().max() > 10
    _, gradient = gradest.exact(lambda h: h[..., 0, :] @ slope, a, neuron)
    assert torch.nn.functional.cosine_similarity(found.gradient, gradient) > 0.9  # and the sign is right


def test_imle_adapts_its_step():
    """α rises while fewer entries than wanted are nonzero, and falls else; λ is α ‖a‖/‖L'‖."""
    estimator = gradest.estimator("imle", adaptive=True, step=2.0, rate=0.5, decay=0.0)
    a, key = 3 * normal(2, 1, 6), gradest.Key(3)
    neuron = gradest.neuron("k_subset", k=2)
    state = estimator.init(neuron, a)
    draw = estimator.forward(neuron, a, key, state)
    none, grad = gradest.Feedback(None, torch.zeros_like(draw.points)), 1e3 * normal(1, 2, 1, 6, seed=1)
    gradient, state = estimator.backward(draw, none, state)
    assert gradient.eq(0).all()
    assert state["log_share"] == pytest.approx(math.log(1.5))
    gradient, after = estimator.backward(draw, gradest.Feedback(None, grad), state)
    size = 2.0 * 1.5 * a.norm(dim=(-2, -1), keepdim=True) / grad.norm(dim=(-2, -1), keepdim=True)
    moved = draw.saved["noisy"] - size * grad
    wanted = (draw.points - torch.zeros_like(moved).scatter(-1, moved.topk(2, -1).indices, 1)) / size
    torch.testing.assert_close(gradient, wanted[0])
    nonzero = gradient.ne(0).double().sum() / 2
    assert nonzero > 1
    assert after["nonzero"] == nonzero
    assert after["log_share"] == pytest.approx(0)
    for _ in range(500):  # a loss without a slope would raise α for ever
        state = estimator.backward(draw, none, state)[1]
    assert state["log_share"] == 50


def test_masked_items_have_no_gradient():
    a = torch.tensor([[0.3, -torch.inf, 0.8, -0.2, -torch.inf], [1.0, 0.5, -torch.inf, 0.0, 2.0]])
    neuron = gradest.neuron("k_subset", k=3)
    for name in ("simple", "gumbel_top_k", "imle", "rloo", "muprop", {"name": "imle", "adaptive": True}):
        moving = a.clone().requires_grad_()
        loss, _ = gradest.expect(gradest.objective("quadratic", target=0.3, event_ndim=2), moving, neuron, name, seed=1)
        loss.sum().backward()
        assert torch.isfinite(moving.grad).all()
        assert moving.grad[torch.isinf(a)].eq(0).all()
