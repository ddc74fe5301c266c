"""Random orders: the law against draws of one item after the other, and the means and the score against all n! orders."""

import itertools
import math

import numpy as np
import pytest
import torch
from scipy import stats

import gradest
from gradest.errors import TooManyPoints

UNIT = gradest.neuron("plackett_luce")
A = torch.tensor([[0.3, -0.9, 1.4, 0.2]], dtype=torch.float64)
COST = torch.tensor(
    [[0.3, -1.0, 0.8, 0.1], [1.2, 0.4, -0.7, 0.5], [0.0, 0.9, 0.6, -1.1], [-0.4, 0.2, 1.5, 0.7]]
).double()


def by_hand(order, a):
    """P(order), by the weights that are left at each place."""
    w = np.exp(a)
    return math.prod(w[order[place]] / w[list(order[place:])].sum() for place in range(len(order)))


def assignment(h):
    """A loss that is not linear in h."""
    return (h[..., 0, :, :] * COST.to(h)).sum((-1, -2)).square()


def test_the_law_is_that_of_draws_without_replacement():
    values, weights = UNIT.law(A)
    orders = [tuple(order) for order in values[:, 0].argmax(-1).tolist()]
    assert orders == list(itertools.permutations(range(4)))
    assert values.sum(-1).eq(1).all()
    assert values.sum(-2).eq(1).all()
    wanted = torch.tensor([by_hand(order, A[0].numpy()) for order in orders])
    torch.testing.assert_close(weights[:, 0], wanted, rtol=1e-12, atol=0)
    torch.testing.assert_close(UNIT.log_prob(values, A)[:, 0], wanted.log())


def test_draws_have_the_law():
    """40,000 draws; chi-square fails with probability 1e-6, and would see weights that are those of reversed logits."""
    orders = gradest.sample(UNIT, A, samples=40_000, seed=3)[:, 0].argmax(-1)
    number = (orders * torch.tensor([64, 16, 4, 1])).sum(-1)
    kinds = list(itertools.permutations(range(4)))
    counts = [int((number == sum(i * 4 ** (3 - place) for place, i in enumerate(order))).sum()) for order in kinds]
    assert sum(counts) == 40_000
    for a, right in ((A[0].numpy(), True), (-A[0].numpy(), False)):
        p = stats.chisquare(counts, [40_000 * by_hand(order, a) for order in kinds]).pvalue
        assert (p > 1e-6) == right


@pytest.mark.parametrize("scale", [1.0, 8.0, 40.0])
def test_means_and_score_against_all_orders(scale):
    """The sums over all orders share no code with the integral, and the score is the derivative of log P by autograd."""
    a = (scale * A).requires_grad_()
    values, weights = UNIT.law(a)
    mean, slope = (weights[..., None, None] * values).sum(0), torch.randn_like(values[0])
    torch.testing.assert_close(UNIT.mean(a), mean, rtol=0, atol=1e-11)
    (wanted,) = torch.autograd.grad((mean * slope).sum(), a, retain_graph=True)
    torch.testing.assert_close(torch.autograd.grad((UNIT.mean(a) * slope).sum(), a)[0], wanted, rtol=0, atol=1e-10)
    score = UNIT.score(values, a)
    torch.testing.assert_close((weights[..., None] * score).sum(0), torch.zeros_like(a), rtol=0, atol=1e-12)
    for h, found in zip(values[::5], score[::5], strict=True):
        torch.testing.assert_close(torch.autograd.grad(UNIT.log_prob(h, a).sum(), a)[0], found, rtol=0, atol=1e-12)


def test_means_of_many_items():
    """Places and items have sums of 1; the first place is a softmax, and a common constant changes nothing."""
    a = 3 * torch.randn(2, 30, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    mean = UNIT.mean(a)
    torch.testing.assert_close(mean.sum(-1), torch.ones_like(a))
    torch.testing.assert_close(mean.sum(-2), torch.ones_like(a))
    torch.testing.assert_close(mean[:, 0], torch.softmax(a, -1), rtol=0, atol=1e-11)
    torch.testing.assert_close(UNIT.mean(a + 500), mean)


@pytest.mark.parametrize("estimator", [{"name": "rloo", "samples": 4}, "reinforce_average"], ids=str)
def test_estimators_by_the_score_are_unbiased(estimator):
    """20,000 draws within 5 standard errors, a false alarm of 2e-6; half the gradient is beyond ten."""
    _, gradient = gradest.exact(assignment, A, UNIT)
    found = gradest.estimate(assignment, A, UNIT, estimator, draws=20_000, seed=5)
    assert ((found.gradient - gradient).abs() < 5 * found.standard_error).all()
    assert (gradient.abs() / 2 / found.standard_error).max() > 10


def test_h_puts_numbers_in_order():
    a = torch.tensor([[1.0, 3.0, 2.0]])
    h = UNIT.threshold(a, 0.5)
    assert (h[0] @ a[0]).tolist() == [3, 2, 1]
    assert UNIT.threshold(torch.zeros(1, 3), 0.5)[0].tolist() == torch.eye(3).tolist()
    far = torch.tensor([[0.0, 1e4, -1e4]])
    assert gradest.sample(UNIT, far, samples=50, seed=1).argmax(-1).eq(torch.tensor([1, 0, 2])).all()
    assert UNIT.score(UNIT.threshold(far, 0.5), far).eq(0).all()


def test_a_layer_learns_to_sort():
    """A layer of one group trains on whole samples: the cost of an assignment falls to the least of all 24."""
    layer, a = (
        gradest.nn.Expectation("plackett_luce", {"name": "rloo", "samples": 8}),
        torch.nn.Parameter(torch.zeros(1, 4)),
    )
    optimizer = torch.optim.Adam([a], lr=0.2)
    torch.manual_seed(0)
    for _ in range(80):
        optimizer.zero_grad()
        layer(lambda h: (h[..., 0, :, :] * COST.to(h)).sum((-1, -2)), a).sum().backward()
        optimizer.step()
    least = min(
        sum(float(COST[place, item]) for place, item in enumerate(order)) for order in itertools.permutations(range(4))
    )
    assert (UNIT.threshold(a, 0.5)[0] * COST).sum().item() == pytest.approx(least, abs=1e-6)


def test_too_many_orders_are_refused():
    with pytest.raises(TooManyPoints, match="10! ="):
        UNIT.law(torch.zeros(1, 10))
    with pytest.raises(TooManyPoints):
        gradest.exact(lambda h: h.sum((-1, -2, -3)), torch.zeros(30, 12), UNIT)
