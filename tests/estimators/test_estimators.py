"""Estimators: the published values, and what each one's docstring states. The contract tests hold the biases."""

import itertools

import pytest
import torch

import gradest
from gradest.errors import InvalidOptions, TooManyPoints
from tests.selection import deep

TOY = gradest.objective("quadratic", target=0.499)


def test_reinforce_on_one_unit():
    found = gradest.estimate(TOY, torch.zeros(1), estimator="reinforce", draws=20_000, seed=1)
    assert found.variance.item() == pytest.approx(0.015625, rel=0.01)  # (0.25)² · p(1-p), 0.015625 at θ = 0
    assert abs(found.gradient.item() - 5.0e-4) < 5 * found.standard_error.item()


@pytest.mark.parametrize("p", [*deep(0.5), 0.2])
def test_the_optimal_baseline_leaves_one_unit_without_variance(p):
    a = torch.logit(torch.tensor([p], dtype=torch.float64))

    def f(h):
        return (3 * h[..., 0] - 1) ** 2

    found = gradest.estimate(f, a, estimator="reinforce_centered", draws=4000, seed=1, warm_up=200)
    plain = gradest.estimate(f, a, estimator="reinforce", draws=4000, seed=1)
    # the averages only approach the expectations, with decay .9 to within about a quarter
    assert found.variance.item() < 0.5 * plain.variance.item()
    neuron, estimator = gradest.neuron("bernoulli"), gradest.estimator("reinforce_centered")
    # with the expectations themselves in place of the averages, L̄ = (1-p) E[L|1] + p E[L|0], there is none at all
    baseline = (1 - p) * 4.0 + p * 1.0
    square = torch.tensor([p * (1 - p)], dtype=torch.float64)
    state = {"numerator": baseline * square, "denominator": square}
    perfect = gradest.estimate(f, a, neuron, estimator, draws=1000, seed=1, state=state)
    assert perfect.variance.item() < 1e-20
    assert perfect.gradient.item() == pytest.approx(p * (1 - p) * 3, rel=1e-9)


def test_the_baselines_weights_are_swapped():
    """E[s² L] / E[s²] = (1-p) E[L|1] + p E[L|0], by enumeration over three units."""
    p = torch.tensor([0.2, 0.7, 0.5], dtype=torch.float64)
    numerator, denominator = torch.zeros(3, dtype=torch.float64), torch.zeros(3, dtype=torch.float64)
    given = torch.zeros(2, 3, dtype=torch.float64)
    for bits in itertools.product([0.0, 1.0], repeat=3):
        h = torch.tensor(bits, dtype=torch.float64)
        weight = torch.where(h == 1, p, 1 - p).prod()
        loss = (h * torch.tensor([1.0, -2.0, 0.5])).sum() ** 2 + h[0]
        square = (h - p) ** 2
        numerator += weight * square * loss
        denominator += weight * square
        for value in (0, 1):
            given[value] += (h == value) * weight * loss / torch.where(h == 1, p, 1 - p)
    assert torch.allclose(numerator / denominator, (1 - p) * given[1] + p * given[0])


def test_baselines_move_after_use_and_by_the_stated_decay():
    neuron, a = gradest.neuron("bernoulli"), torch.zeros(2, 3)
    for name in ("reinforce_average", "reinforce_centered"):
        estimator = gradest.estimator(name, decay=0.9)
        start = estimator.init(neuron, a)
        draw = estimator.forward(neuron, a, gradest.Key(1), start)
        loss = torch.tensor([[4.0, 2.0]])
        first, after = estimator.backward(draw, gradest.Feedback(loss), start)
        plain, _ = gradest.estimator("reinforce").backward(draw, gradest.Feedback(loss), {})
        assert torch.equal(first, plain)  # an empty baseline is none
        second, _ = estimator.backward(draw, gradest.Feedback(loss), after)
        assert not torch.equal(second, plain)
        if name == "reinforce_average":
            assert after["total"].item() == pytest.approx(0.3)
            assert after["weight"].item() == pytest.approx(0.1)
            assert torch.allclose(second, (loss[0, :, None] - 3) * (draw.points[0] - 0.5))
        else:  # at p = ½ every s² is ¼: the baseline is the mean loss
            assert torch.allclose(after["denominator"], torch.full((3,), 0.025, dtype=torch.float64))
            assert torch.allclose(second, (loss[0, :, None] - 3) * (draw.points[0] - 0.5), atol=1e-6)


def test_a_baseline_of_an_empty_batch_stays():
    neuron, a = gradest.neuron("bernoulli"), torch.zeros(0, 3)
    for name in ("reinforce_average", "reinforce_centered"):
        estimator = gradest.estimator(name)
        state = {key: value + 0.5 for key, value in estimator.init(neuron, a).items()}
        draw = estimator.forward(neuron, a, gradest.Key(1), state)
        gradient, after = estimator.backward(draw, gradest.Feedback(torch.zeros(1, 0)), state)
        assert gradient.shape == (0, 3)
        assert all(torch.equal(after[key], state[key]) for key in state)


def test_two_hundred_units():
    """f = mean (b - .499)², θ = 0, K = 2: the published variances per coordinate."""
    a = torch.zeros(200)
    for spec, variance in (
        ("rloo", 1.25e-9),
        ({"name": "reinforce", "samples": 2}, 7.8e-3),
    ):
        found = gradest.estimate(TOY, a, estimator=spec, draws=4000, seed=1)
        assert found.variance.mean().item() == pytest.approx(variance, rel=0.03)
        z = (found.gradient - 2.5e-6) / found.standard_error
        assert z.square().mean().item() == pytest.approx(1, abs=0.5)  # five standard deviations of 200 squared normals


def test_rloo_by_hand():
    neuron, a = gradest.neuron("bernoulli"), torch.tensor([[0.3, -0.8]])
    estimator = gradest.estimator("rloo", samples=3)
    draw = estimator.forward(neuron, a, gradest.Key(2), {})
    loss = torch.tensor([[1.0], [2.0], [6.0]])
    gradient, _ = estimator.backward(draw, gradest.Feedback(loss), {})
    score = draw.points - torch.sigmoid(a)
    wanted = ((1 - 4) * score[0] + (2 - 3.5) * score[1] + (6 - 1.5) * score[2]) / 3  # the mean of the others, each
    assert torch.allclose(gradient, wanted)
    with pytest.raises(InvalidOptions, match="greater than or equal to 2"):
        gradest.estimator("rloo", samples=1)


def test_straight_through_by_hand():
    neuron, a = gradest.neuron("bernoulli"), torch.tensor([[0.3, -1.8]])
    grad = torch.tensor([[[2.0, 5.0]]])
    p = torch.sigmoid(a)
    steep = torch.sigmoid(2 * a)
    for options, wanted in (
        ({}, [2.0, 5.0]),
        ({"slope": 3.0}, [6.0, 15.0]),
        ({"derivative": "clipped"}, [2.0, 0.0]),
        ({"derivative": "sigmoid"}, (torch.tensor([2.0, 5.0]) * p * (1 - p))[0].tolist()),
        ({"derivative": "sigmoid", "slope": 2.0}, (torch.tensor([2.0, 5.0]) * 2 * steep * (1 - steep))[0].tolist()),
    ):
        estimator = gradest.estimator("straight_through", **options)
        draw = estimator.forward(neuron, a, gradest.Key(2), {})
        gradient, _ = estimator.backward(draw, gradest.Feedback(None, grad), {})
        assert gradient[0].tolist() == pytest.approx(wanted)


def test_straight_through_stalls_on_the_toy():
    """Its mean is 2(p - t), zero at p = t, and below it of the wrong sign: there the loss falls with p only if t > ½."""
    below = torch.logit(torch.tensor([0.3], dtype=torch.float64))
    found = gradest.estimate(TOY, below, estimator="straight_through", draws=20_000, seed=1)
    _, truth = gradest.exact(TOY, below)
    assert found.gradient.item() == pytest.approx(2 * (0.3 - 0.499), abs=5 * found.standard_error.item())
    assert found.gradient.item() * truth.item() < 0


def test_held_noise_is_half_of_the_gradient_and_pathwise_score_all_of_it():
    a = torch.tensor([0.5, -1.0], dtype=torch.float64)
    linear = gradest.objective("linear")
    _, truth = gradest.exact(linear, a, neuron="stochastic_times_smooth")
    for name, share in (("held_noise", 0.5), ("pathwise_score", 1.0)):
        found = gradest.estimate(linear, a, "stochastic_times_smooth", name, draws=100_000, seed=1)
        assert ((found.gradient - share * truth).abs() < 5 * found.standard_error).all()
        assert (found.standard_error < 0.02 * truth).all()  # enough to tell a half from a whole fifty times over


def test_held_noise_can_have_the_wrong_sign_on_a_quadratic():
    a = torch.tensor([-1.0], dtype=torch.float64)
    f = gradest.objective("quadratic", target=0.42)  # wrong between √p = t and √p = 4t/3
    _, truth = gradest.exact(f, a, neuron="stochastic_times_smooth")
    found = gradest.estimate(f, a, "stochastic_times_smooth", "held_noise", draws=50_000, seed=1)
    assert found.gradient.item() * truth.item() < 0
    assert abs(found.gradient.item()) > 20 * found.standard_error.item()


def test_enumeration_refuses_too_many_points():
    with pytest.raises(TooManyPoints):
        gradest.expect(lambda h: h.sum(-1), torch.zeros(25), estimator="enumeration")


@pytest.mark.parametrize("cls", gradest.registry.estimators.values(), ids=lambda cls: cls.name)
def test_each_states_what_it_is(cls):
    assert cls.needs
    assert cls.summary
    assert cls.reference or cls.name == "enumeration"
