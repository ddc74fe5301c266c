"""Sparse one-hot units: the entmax against its definition, derivatives up to the third, the score where the support moves."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from scipy import optimize, stats
from torch import Tensor

import gradest
from gradest.errors import InvalidOptions, TooManyPoints

ALPHAS = [1.5, 1.7, 2.0]
A = torch.tensor([[[0.4, -0.2, -1.6], [0.3, 0.9, 0.5]], [[2.5, -0.2, 0.1], [0.0, 0.0, -0.9]]], dtype=torch.float64)


def unit(alpha: float) -> gradest.Neuron:
    return gradest.neuron("sparse_categorical", alpha=alpha)


def entmax(a: np.ndarray, alpha: float) -> np.ndarray:
    """The probabilities by their definition, with the root found by scipy."""
    x = (alpha - 1) * (a - a.max())

    def weights(root: float) -> np.ndarray:
        return np.maximum(0, x - root) ** (1 / (alpha - 1))

    return weights(optimize.brentq(lambda root: weights(root).sum() - 1, -1.0, 0.0, xtol=1e-15))


def cubic(h: Tensor) -> Tensor:
    """A loss in which the two units meet."""
    weight = torch.tensor([[0.7, -1.1, 0.4], [1.3, 0.2, -0.6]]).to(h)
    return ((h * weight).sum((-1, -2)) - 0.3) ** 3 + 2


@pytest.mark.parametrize("alpha", [1.5, 1.5000001, 1.6, 1.8, 1.999999, 2.0])
@pytest.mark.parametrize("classes", [1, 2, 3, 40])
def test_probabilities_are_those_of_the_definition(alpha: float, classes: int) -> None:
    generator = np.random.default_rng(1)
    for scale in (1e-3, 1.0, 30.0):
        a = generator.normal(size=(6, classes)) * scale
        p = unit(alpha).mean(torch.tensor(a))
        np.testing.assert_allclose(p, [entmax(row, alpha) for row in a], atol=1e-12)
        np.testing.assert_allclose(p.sum(-1), 1, rtol=1e-14)


def test_they_are_the_solution_of_the_optimisation_problem() -> None:
    """No other distribution has a larger pᵀa + H_α(p), with H_α(p) = Σ (p - p^α)/(α (α - 1))."""
    generator = torch.Generator().manual_seed(3)
    for alpha in ALPHAS:

        def value(p: Tensor, alpha: float = alpha) -> Tensor:
            return (p * A).sum(-1) + (p - p**alpha).sum(-1) / (alpha * (alpha - 1))

        p = unit(alpha).mean(A)
        others = -torch.rand(2000, *A.shape, generator=generator, dtype=torch.float64).log()
        others = others / others.sum(-1, keepdim=True)
        for step in (1.0, 0.1, 0.001):
            assert bool((value((1 - step) * p + step * others) < value(p)).all())


@pytest.mark.parametrize("alpha", ALPHAS)
def test_derivatives_up_to_the_third_are_right(alpha: float) -> None:
    neuron, a = unit(alpha), (0.6 * A).requires_grad_()

    def slope(a: Tensor) -> Tensor:
        return torch.autograd.grad((neuron.mean(a) ** 2).sum(), a, create_graph=True)[0]

    assert torch.autograd.gradcheck(neuron.mean, (a,))
    assert torch.autograd.gradcheck(slope, (a,))
    assert torch.autograd.gradgradcheck(slope, (a,))
    p = neuron.mean(a.detach())
    s = torch.where(p > 0, p ** (2 - alpha), 0)
    wanted = torch.diag_embed(s) - s[..., :, None] * s[..., None, :] / s.sum(-1)[..., None, None]
    grad = torch.arange(3.0, dtype=torch.float64).cos().expand_as(a)
    by_hand = (wanted @ grad[..., None])[..., 0]
    torch.testing.assert_close(neuron.smooth_vjp(a.detach(), grad), by_hand)
    torch.testing.assert_close(torch.autograd.grad(neuron.mean(a), a, grad)[0], by_hand)


@pytest.mark.parametrize("alpha", ALPHAS)
def test_the_score_function_is_exact_in_the_mean_where_the_support_moves(alpha: float) -> None:
    """Σ_h P(h) L(h) score(h) over the support is the difference quotient of E[L], on both sides of where a class enters.

    The quotients are of E[L] alone, from probabilities by scipy, so that neither score nor autograd enters the right side.
    """
    neuron = unit(alpha)
    base = torch.tensor([[[0.0, 0.0, 0.0], [0.3, 0.9, 0.5]]], dtype=torch.float64)
    losses = {c: cubic(neuron.one_hot(torch.tensor(c), base[0])) for c in itertools.product(range(3), range(3))}

    def expectation(a: np.ndarray) -> float:
        p = [entmax(row, alpha) for row in a]
        return sum(p[0][i] * p[1][j] * float(losses[i, j]) for i, j in losses)

    seen = set()
    for third in (-0.3, -0.9, -1.05, -1.4, -2.5):  # the third class of the first unit leaves the support on the way
        a = base.clone()
        a[0, 0, 2] = third
        p = neuron.mean(a)
        seen.add(bool(p[0, 0, 2] > 0))
        values, _ = neuron.law(a)
        total = torch.zeros_like(a)
        for (i, j), loss in losses.items():
            h = torch.stack([values[i, :, 0], values[j, :, 1]], 1)
            total += p[0, 0, i] * p[0, 1, j] * loss * neuron.score(h, a)
        for place in np.ndindex(2, 3):
            step = np.zeros((2, 3))
            step[place] = 1e-5
            quotient = (expectation(a[0].numpy() + step) - expectation(a[0].numpy() - step)) / 2e-5
            assert total[(0, *place)].item() == pytest.approx(quotient, abs=1e-6)
    assert seen == {True, False}


@pytest.mark.parametrize("alpha", ALPHAS)
def test_rloo_is_unbiased(alpha: float) -> None:
    """20,000 draws of 4 samples; a coordinate is beyond 5 standard errors with probability 6e-7, and half of it beyond ten."""
    _, gradient = gradest.exact(cubic, A[:1], unit(alpha))
    found = gradest.estimate(cubic, A[:1], unit(alpha), {"name": "rloo", "samples": 4}, draws=20_000, seed=5)
    assert bool(((found.gradient - gradient).abs() <= 5 * found.standard_error + 1e-12).all())
    assert float((gradient.abs() / found.standard_error.clamp(min=1e-12)).max()) > 20


def test_a_class_without_weight() -> None:
    neuron, a = unit(2.0), torch.tensor([[2.0, 0.5, 0.4]])
    assert neuron.mean(a).tolist() == [[1, 0, 0]]
    h = torch.tensor([[0.0, 1.0, 0.0]])
    assert neuron.log_prob(h, a).item() == -np.inf
    assert neuron.score(h, a).eq(0).all()
    assert neuron.log_prob(h.roll(-1, -1), a).item() == 0
    moving = a.clone().requires_grad_()
    neuron.log_prob(torch.tensor([[0.0, 1.0, 0.0]]), moving).sum().backward()
    assert moving.grad is not None
    assert moving.grad.eq(0).all()  # no NaN from the logarithm of 0
    assert gradest.sample(neuron, a.expand(5000, 1, 3), seed=1)[..., 0].eq(1).all()
    masked = torch.tensor([[0.3, -torch.inf, 0.1]], requires_grad=True)
    p = unit(1.5).mean(masked)
    p[0, 0].backward()
    assert masked.grad is not None
    assert p[0, 1] == 0
    assert bool(torch.isfinite(masked.grad).all())
    assert masked.grad[0, 0] > 0


@pytest.mark.parametrize("alpha", [1.5, 2.0])
def test_draws_have_the_law(alpha: float) -> None:
    """20,000 draws; the tests of chi-square fail with probability 1e-6 each."""
    h = gradest.sample(unit(alpha), A[:1], samples=20_000, seed=3)[:, 0]
    p = unit(alpha).mean(A[0]).numpy()
    for row in range(2):
        counts = h[:, row].sum(0).numpy()
        seen = p[row] > 0
        assert counts[~seen].sum() == 0
        assert stats.chisquare(counts[seen], 20_000 * p[row][seen]).pvalue > 1e-6
    assert stats.chi2_contingency((h[:, 0].T @ h[:, 1])[p[0] > 0][:, p[1] > 0]).pvalue > 1e-6


def test_alphas_that_are_refused() -> None:
    for alpha in (1.0, 1.4, 2.1, float("nan")):
        with pytest.raises(InvalidOptions, match="alpha"):
            unit(alpha)


class TestSparseEnumeration:
    def test_one_unit_of_many_classes_takes_as_many_points_as_the_support_needs(self) -> None:
        """Of 500 classes at most 4 have weight: with m = 6 every draw is the exact gradient, and no other class is asked for."""
        generator = torch.Generator().manual_seed(2)
        a = 3 * torch.randn(5, 1, 500, generator=generator, dtype=torch.float64)
        neuron, weight = unit(2.0), torch.randn(500, generator=generator, dtype=torch.float64)
        support = neuron.mean(a) > 0
        assert 1 < int(support.sum(-1).max()) <= 6

        def f(h: Tensor) -> Tensor:
            return ((h * weight).sum((-1, -2)) - 0.3) ** 3

        _, wanted = gradest.exact(f, a, neuron)
        found = gradest.estimate(f, a, neuron, {"name": "sparse_enumeration", "support": 6}, draws=3, seed=1)
        torch.testing.assert_close(found.gradient, wanted)
        assert found.evaluations == 6
        assert float(found.variance.abs().max()) < 1e-24
        draw = gradest.estimator("sparse_enumeration", support=6).forward(neuron, a, gradest.Key(1), {})
        assert bool((draw.points <= support.to(a)).all())
        value, _ = gradest.expect(f, a, neuron, {"name": "sparse_enumeration", "support": 6}, seed=1)
        torch.testing.assert_close(value, gradest.exact(f, a, neuron)[0])

    @pytest.mark.parametrize("name", ["sparse_categorical", "categorical"])
    def test_too_few_classes_are_made_up_for_by_a_draw(self, name: str) -> None:
        """3 classes have weight and m is 2: 20,000 draws within 5 standard errors (6e-7), gradient and value."""
        estimator = {"name": "sparse_enumeration", "support": 2}
        loss, gradient = gradest.exact(cubic, A, name)
        found = gradest.estimate(cubic, A, name, estimator, draws=20_000, seed=7)
        assert float(found.variance.max()) > 1e-6
        assert bool(((found.gradient - gradient).abs() <= 5 * found.standard_error + 1e-9).all())
        assert float((gradient.abs() / found.standard_error.clamp(min=1e-9)).amin(-1).max()) > 20
        draws = 20_000
        value, _ = gradest.expect(cubic, A[:1].expand(draws, 2, 3), name, estimator, seed=8)
        error = value.std() / draws**0.5
        assert abs(float(value.mean() - loss[0])) <= 5 * float(error) + 1e-9

    def test_the_limit(self) -> None:
        estimator = gradest.estimator("sparse_enumeration", support=4)
        assert estimator.evaluations(unit(1.5), (10, 50)) == 4**10
        with pytest.raises(TooManyPoints, match="Use fewer units"):
            estimator.evaluations(unit(1.5), (11, 50))
        assert estimator.evaluations(unit(1.5), (2, 3)) == 9
        assert estimator.evaluations(unit(1.5), (3, 1)) == 1
        with pytest.raises(InvalidOptions, match="support"):
            gradest.estimator("sparse_enumeration", support=1)

    def test_edges(self) -> None:
        """An empty batch, one class, and a saturated unit, whose gradient is exactly 0."""
        for shape in ((0, 2, 3), (4, 2, 1)):
            a = torch.zeros(shape, requires_grad=True)
            loss, _ = gradest.expect(lambda h: (h * 2.0).sum((-1, -2)), a, unit(1.5), "sparse_enumeration", seed=1)
            loss.sum().backward()
            assert a.grad is not None
            assert a.grad.eq(0).all()
        a = torch.tensor([[[40.0, 0.0, -40.0], [1e4, -1e4, 0.0]]], requires_grad=True)
        loss, _ = gradest.expect(cubic, a, unit(2.0), "sparse_enumeration", seed=1)
        loss.sum().backward()
        assert a.grad is not None
        assert a.grad.eq(0).all()
