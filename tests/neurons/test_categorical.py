"""Units of several classes: the categorical neuron by closed form, and objectives, exact and compare on events of two dims."""

import itertools

import numpy as np
import pytest
import torch
from scipy import special, stats

import gradest
from gradest.analysis.comparison import comparable_estimators
from gradest.contract.neuron import Relaxable
from gradest.errors import InvalidInput

NEURON = gradest.neuron("categorical")
A = torch.tensor([[0.3, -1.2, 0.8], [2.0, 0.0, -0.5]], dtype=torch.float64)  # two units of three classes
SATURATED = torch.tensor([[40.0, 0.0, -40.0], [1e4, -1e4, 0.0], [-1e4, -1e4, -1e4]], dtype=torch.float64)


def test_probabilities_and_scores_in_the_tails():
    p = special.softmax(SATURATED.numpy(), -1)
    np.testing.assert_allclose(NEURON.probability(SATURATED), p, rtol=1e-12)
    for index in range(3):
        h = NEURON.one_hot(torch.full((3,), index), SATURATED)
        assert h.sum(-1).tolist() == [1, 1, 1]
        np.testing.assert_allclose(
            NEURON.log_prob(h, SATURATED), special.log_softmax(SATURATED.numpy(), -1)[:, index], rtol=1e-12
        )
        score = NEURON.score(h, SATURATED).numpy()
        others = np.delete(p, index, -1).sum(-1)  # 1 - p, whose digits 1 - p itself has lost
        np.testing.assert_allclose(score[:, index], others, rtol=1e-12)
        np.testing.assert_allclose(np.delete(score, index, -1), -np.delete(p, index, -1), rtol=1e-12)
    assert NEURON.score(torch.tensor([1.0, 0.0, 0.0]), torch.tensor([40.0, 0.0, 0.0]))[0] > 0  # in float32 too


def test_two_classes_are_a_bernoulli_unit_with_the_difference_for_its_logit():
    a, bernoulli = A[:, :2], gradest.neuron("bernoulli")
    difference = a[:, 0] - a[:, 1]
    assert torch.allclose(NEURON.mean(a)[:, 0], bernoulli.mean(difference))
    for value in (0.0, 1.0):
        h, b = torch.tensor([value, 1 - value], dtype=torch.float64), torch.tensor(value, dtype=torch.float64)
        assert torch.allclose(NEURON.log_prob(h, a), bernoulli.log_prob(b, difference))
        assert torch.allclose(NEURON.score(h, a)[:, 0], bernoulli.score(b, difference))


def test_the_law_of_draws_is_softmax():
    h = gradest.sample(NEURON, A, samples=40_000, seed=3)
    assert set(h.unique().tolist()) == {0, 1}
    assert torch.equal(h.sum(-1), torch.ones(40_000, 2))
    for unit in range(2):
        counts = h[:, unit].sum(0)
        assert stats.chisquare(counts, 40_000 * special.softmax(A[unit].numpy())).pvalue > 1e-6
    joint = h[:, 0].T @ h[:, 1]  # units are independent
    assert stats.chi2_contingency(joint).pvalue > 1e-6


def test_outputs_are_in_law_and_support_says_so():
    values, weights = NEURON.law(A)
    assert values.shape == (3, 2, 3)
    assert torch.equal(values[1], torch.tensor([[0.0, 1, 0]] * 2))
    assert torch.allclose(weights, torch.softmax(A, -1).T)
    with pytest.raises(TypeError, match="law"):
        NEURON.support()


def test_threshold_opens_the_likeliest_class_at_any_level():
    for level in (0.0, 0.5, 1.0):
        assert NEURON.threshold(A, level).tolist() == [[0, 0, 1], [1, 0, 0]]
    assert NEURON.threshold(torch.zeros(1, 3), 0.5).tolist() == [[1, 0, 0]]


def test_relaxations():
    a = A.expand(20_000, 2, 3)
    noise = NEURON.noise(gradest.Key(3), a, 1)[0]
    h, relaxed = NEURON.forward(a, noise), NEURON.relax(a, noise, 0.7)
    assert torch.equal(relaxed.argmax(-1), h.argmax(-1))
    assert torch.allclose(relaxed.sum(-1), torch.ones(()).double())
    fresh = gradest.Key(4).uniform_like(a, 1, 2)[0]
    conditional = NEURON.conditional_relax(a, h, fresh, 0.7)
    assert torch.equal(conditional.argmax(-1), h.argmax(-1))
    for unit, index in itertools.product(range(2), range(3)):
        # averaged over h, and for each h as well, the conditional relaxation has the law of the unconditional one
        columns = relaxed[:, unit, index], conditional[:, unit, index]
        assert stats.ks_2samp(*(column.numpy() for column in columns)).pvalue > 1e-6
        for chosen in range(3):
            given = h[:, unit, chosen] == 1
            assert stats.ks_2samp(*(column[given].numpy() for column in columns)).pvalue > 1e-6


def test_relaxations_are_finite_and_differentiable_at_saturation():
    a = SATURATED.float().requires_grad_()
    for noise, index in itertools.product((2.0**-24, 0.5, 1 - 2.0**-24), range(3)):
        u, h = torch.full((3, 3), noise), NEURON.one_hot(torch.full((3,), index), a)
        for relaxed in (NEURON.relax(a, u, 0.1), NEURON.conditional_relax(a, h, u, 0.1)):
            (slope,) = torch.autograd.grad((relaxed * relaxed).sum(), a)
            assert bool(torch.isfinite(relaxed).all() and torch.isfinite(slope).all())


def test_exact_is_the_sum_over_the_joint_law():
    def f(h):
        return (h[..., 0, :] * torch.tensor([1.0, -2.0, 0.5]).to(h)).sum(-1) * (1 + h[..., 1, 2]) ** 2

    a = A.clone().requires_grad_()
    p, eye = torch.softmax(a, -1), torch.eye(3, dtype=torch.float64)
    wanted = sum(p[0, i] * p[1, j] * f(torch.stack([eye[i], eye[j]])) for i, j in itertools.product(range(3), repeat=2))
    (gradient,) = torch.autograd.grad(wanted, a)
    loss, found = gradest.exact(f, A, neuron=NEURON)
    assert torch.allclose(loss, wanted)
    assert torch.allclose(found, gradient, atol=1e-12)
    value, _ = gradest.expect(f, a, neuron=NEURON, estimator="enumeration")
    (by_enumeration,) = torch.autograd.grad(value, a)
    assert torch.allclose(value, wanted)
    assert torch.allclose(by_enumeration, gradient, atol=1e-12)


def test_a_unit_of_several_classes_has_the_sum_of_its_classes_parts():
    points = torch.tensor([[[1.0, 0, 0], [0, 1, 0]]])
    target = [[0.5, 0.0, 0.0], [0.0, 0.0, 1.0]]
    for reduction, wanted in (("sum", 2.25), ("mean", 1.125)):
        objective = gradest.objective("quadratic", target=target, event_ndim=2, reduction=reduction)
        assert objective(points).tolist() == [wanted]


def test_the_wrong_event_ndim_is_named():
    with pytest.raises(InvalidInput, match="set event_ndim=2 on quadratic"):
        gradest.compare(gradest.objective("quadratic"), A, neuron=NEURON, draws=2)


@pytest.mark.parametrize(
    "objective",
    [
        gradest.objective("quadratic", target=[0.2, 0.5, 0.1], event_ndim=2),
        gradest.objective("cross_entropy", weight=torch.arange(12.0).reshape(2, 2, 3).cos(), labels=1),
    ],
    ids=lambda objective: objective.name,
)
def test_compare_with_the_estimators_that_fit(objective):
    table = gradest.compare(objective, A.float(), neuron=NEURON, draws=400, seed=1, warm_up=3)
    assert [row.estimator for row in table.rows] == [estimator.name for estimator in comparable_estimators(NEURON)]
    for row in table.rows:
        assert row.claim != "none" or row.bias_in_se < 5


def test_cross_entropy_reads_all_classes_of_all_units():
    weight = torch.randn(4, 2, 3, generator=torch.Generator().manual_seed(0))
    points = gradest.sample(NEURON, A.float().expand(5, 2, 3), samples=2, seed=1)
    found = gradest.objective("cross_entropy", weight=weight, labels=[0, 1, 2, 3, 0])(points)
    flat = gradest.objective("cross_entropy", weight=weight.flatten(1), labels=[0, 1, 2, 3, 0])(points.flatten(-2))
    assert torch.equal(found, flat)
    with pytest.raises(InvalidInput, match="weight is for 2×3 units, but the points have 3×2"):
        gradest.objective("cross_entropy", weight=weight, labels=0)(points.transpose(-1, -2))


@pytest.mark.parametrize("temperature", [0.3, 2.0])
def test_the_derivative_of_the_relaxation_is_that_of_autograd(temperature):
    a, grad = A.clone(), torch.randn(5, 2, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    a[1, 2] = -torch.inf
    noise = gradest.Key(1).uniform_like(a, 5, 2)
    wanted = Relaxable.relax_backward(NEURON, a, noise, temperature, grad)
    relaxed = NEURON.relax(a, noise, temperature)
    assert wanted.abs().max() > 0.1
    for given in (None, relaxed):
        found = NEURON.relax_backward(a, noise, temperature, grad, given)
        torch.testing.assert_close(found, wanted, rtol=1e-10, atol=1e-12)

    class Sharper(type(NEURON)):
        name = "sharper"

        def relax(self, a, noise, temperature):
            return super().relax(a, noise, temperature / 2)

    class Perturbed(type(NEURON)):
        name = "sharply_perturbed"

        def perturbed(self, a, noise):
            return 2 * super().perturbed(a, noise)

    for sharp in (Sharper(), Perturbed()):
        found = sharp.relax_backward(a, noise, 2 * temperature, grad, sharp.relax(a, noise, 2 * temperature))
        torch.testing.assert_close(found, wanted, rtol=1e-10, atol=1e-12)
