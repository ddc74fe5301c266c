"""The bound of several samples as a target: its exact value and gradient, and vimco, which estimates them."""

from itertools import product

import pytest
import torch

import gradest
from gradest.analysis.bias import measure_bias
from gradest.contract.estimator import Feedback
from gradest.errors import TooManyPoints
from gradest_estimators.vimco import Vimco

W = torch.tensor([1.0, -0.7, 0.5], dtype=torch.float64)
A = torch.tensor([[0.4, -0.9, 1.3], [2.0, 0.1, -0.4]], dtype=torch.float64)


def cubic(h):
    return ((h * W.to(h)).sum(-1) + 0.3) ** 3


def brute_force(f, a, samples):
    """E[-log mean exp(-L)] over every way to draw `samples` times D bits, differentiable."""
    total = torch.zeros(a.shape[:-1], dtype=a.dtype)
    p = torch.sigmoid(a)
    bits = [torch.tensor(h, dtype=a.dtype) for h in product((0, 1), repeat=a.shape[-1])]
    for drawn in product(bits, repeat=samples):
        h = torch.stack(drawn)[:, None].expand(samples, *a.shape)
        probability = torch.where(h == 1, p, 1 - p).prod(-1).prod(0)
        total = total - probability * torch.log(torch.exp(-f(h)).mean(0))
    return total


@pytest.mark.parametrize("samples", [1, 2, 3])
def test_exact_is_the_sum_over_every_way_to_draw(samples):
    a = A.clone().requires_grad_()
    wanted = brute_force(cubic, a, samples)
    (gradient,) = torch.autograd.grad(wanted.sum(), a)
    loss, found = gradest.exact(cubic, A, "bernoulli", gradest.Target(samples))
    assert torch.allclose(loss, wanted.detach(), atol=1e-12)
    assert torch.allclose(found, gradient, atol=1e-12)


def test_one_sample_is_the_plain_expectation():
    for one, two in zip(gradest.exact(cubic, A), gradest.exact(cubic, A, target=gradest.Target(1)), strict=True):
        assert torch.equal(one, two)


@pytest.mark.parametrize("neuron", ["noisy_rectifier", "stochastic_times_smooth"])
def test_exact_of_units_that_move_with_a(neuron):
    """Against central differences of its own value, where the outputs move as well as their probabilities."""
    a, step = torch.tensor([[0.3], [-1.0]], dtype=torch.float64), 1e-4

    def f(h):
        return (h.sum(-1) - 0.4) ** 2

    value, gradient = gradest.exact(f, a, neuron, gradest.Target(2))
    upper, lower = (gradest.exact(f, a + s * step, neuron, gradest.Target(2))[0] for s in (1, -1))
    assert torch.allclose(gradient[:, 0], (upper - lower) / (2 * step), rtol=1e-4)
    assert bool((value < gradest.exact(f, a, neuron)[0]).all())  # Jensen: -log of a mean is below the mean of -log


def test_too_many_terms_is_an_error_that_counts_them():
    with pytest.raises(TooManyPoints, match=r"of 3 samples over 256 configurations has 256\^3 terms"):
        gradest.exact(cubic_of_any, torch.zeros(8), "bernoulli", gradest.Target(3))


def test_terms_whose_number_has_a_million_digits_are_not_counted_out():
    with pytest.raises(TooManyPoints, match=r"of 4000000 samples over 4 configurations has 4\^4000000 terms"):
        gradest.exact(cubic_of_any, torch.zeros(2), "bernoulli", gradest.Target(4_000_000))


def cubic_of_any(h):
    return (h.sum(-1) - 2) ** 3


def test_combine():
    loss = torch.tensor([[1.0, -50.0, 1e30], [2.0, 700.0, 1e30], [0.5, 3.0, -1e30]], requires_grad=True)
    found = gradest.Target(3).combine(loss)
    wanted = -torch.logsumexp(-loss.double(), 0) + torch.log(torch.tensor(3.0))
    assert torch.allclose(found.double(), wanted, rtol=1e-6)
    (slope,) = torch.autograd.grad(found.sum(), loss)
    assert torch.allclose(slope, torch.softmax(-loss.detach(), 0))


@pytest.mark.parametrize("baseline", ["geometric", "arithmetic"])
def test_mean_is_the_exact_gradient(baseline):
    """Over every pair of samples, by its own formula: no chance involved."""
    a, estimator = A[0], Vimco(baseline=baseline)
    bits = torch.tensor(list(product((0.0, 1.0), repeat=3)), dtype=torch.float64)
    p = torch.sigmoid(a)
    probability = torch.where(bits == 1, p, 1 - p).prod(-1)
    neuron, total = gradest.neuron("bernoulli"), torch.zeros(3, dtype=torch.float64)
    for i, j in product(range(8), repeat=2):
        points = bits[[i, j]]
        draw = gradest.Draw(neuron, a, gradest.Key(0), points, torch.full((2,), 0.5))
        gradient, _ = estimator.backward(draw, Feedback(cubic(points)), {})
        total = total + probability[i] * probability[j] * gradient
    assert torch.allclose(total, gradest.exact(cubic, a, target=gradest.Target(2))[1], atol=1e-12)


def test_more_samples_tighten_the_bound_and_stay_unbiased():
    exact = [float(gradest.exact(cubic, A[0], target=gradest.Target(k))[0]) for k in (1, 2, 3)]
    assert exact == sorted(exact, reverse=True)
    for baseline in ("geometric", "arithmetic"):
        records = list(measure_bias(Vimco(samples=4, baseline=baseline), gradest.neuron("bernoulli")))
        assert all(record.agrees_with_exact for record in records)


def test_the_baseline_lessens_the_variance():
    """Against the score times the bound itself."""

    class Plain(Vimco):
        def backward(self, draw, feedback, state):
            value = self.target().combine(feedback.get_loss())
            return value[..., None] * draw.neuron.score(draw.points, draw.a).sum(0), state

    def shifted(h):
        return cubic(h) + 5

    with_baseline, without = (
        gradest.estimate(shifted, A.float(), estimator=estimator, draws=4000, seed=1).variance.mean()
        for estimator in (Vimco(samples=4), Plain(samples=4))
    )
    assert with_baseline < 0.05 * without


def test_expect_trains_the_parameters_of_the_loss_on_the_bound():
    weight = W.float().clone().requires_grad_()
    a = A.float().clone().requires_grad_()

    def f(h):
        return (h * weight).sum(-1) ** 2

    value, _ = gradest.expect(f, a, estimator={"name": "vimco", "samples": 5}, seed=3)
    points = gradest.sample("bernoulli", a.detach(), 5, 3)
    loss = f(points)
    assert torch.allclose(value, -torch.logsumexp(-loss, 0) + torch.log(torch.tensor(5.0)))
    (found,) = torch.autograd.grad(value.sum(), weight)
    share = torch.softmax(-loss.detach(), 0)
    (wanted,) = torch.autograd.grad((share * loss).sum(), weight)
    assert torch.allclose(found, wanted)


def test_a_loss_that_reads_a_itself_gets_its_path_too():
    """As a variational bound does, whose log-weight holds log q(h|a): value and score together are the whole gradient."""
    exact_a = A[0].clone().requires_grad_()
    (wanted,) = torch.autograd.grad(brute_force(lambda h: cubic(h) + h @ exact_a, exact_a[None], 2).sum(), exact_a)
    a = A[0].expand(200_000, 3).clone().requires_grad_()
    value, _ = gradest.expect(lambda h: cubic(h) + (h * a).sum(-1), a, estimator="vimco", seed=0)
    value.sum().backward()
    error = a.grad.std(0) / len(a) ** 0.5
    assert float(((a.grad.mean(0) - wanted) / error).abs().max()) < 5  # false alarm below 2e-6
    assert bool((wanted.abs() > 10 * error).any())


def test_compare_leaves_it_out_unless_it_is_named():
    table = gradest.compare(cubic, A.float(), draws=100, seed=0, warm_up=2)
    assert "vimco" not in [row.estimator for row in table.rows]
    (row,) = gradest.compare(cubic, A.float(), estimators=["vimco"], draws=20_000, seed=0).rows
    assert row.claim == "none, of E[-log mean exp(-L)] of 2 samples"
    assert row.bias_in_se < 3


def test_is_recommended_for_no_plain_expectation():
    (row,) = [row for row in gradest.recommend("bernoulli", ["loss"]).rejected if row.estimator == "vimco"]
    assert row.reasons == ("estimates the gradient of E[-log mean exp(-L)] of 2 samples",)


@pytest.mark.parametrize("size", [1e4, 1e30])
def test_losses_of_any_size(size):
    found = gradest.estimate(lambda h: size * h.sum(-1), A.float(), estimator="vimco", draws=50, seed=0)
    assert bool(torch.isfinite(found.gradient).all())
