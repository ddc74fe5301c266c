"""Estimators for units of several classes, each summed over its whole sample space where that is finite."""

import itertools
import math
from collections import Counter

import pytest
import torch

import gradest
import gradest.nn
from gradest.errors import Incompatible
from tests.estimators.one_hot import NEURON, WEIGHT, A, P, assert_close, cubic, linear, one_hot, over_samples
from tests.selection import deep


def points_of(chosen):
    """h, and for each unit h with the unit in each of its other chosen classes."""
    h = one_hot([chosen[0][0], chosen[1][0]])
    points = [h]
    for unit in range(2):
        for other in chosen[unit][1:]:
            flipped = h.clone()
            flipped[unit] = one_hot(other)
            points.append(flipped)
    return torch.stack(points)


def mean_over(estimator, outcomes, f):
    """E of gradient and value, where a unit chooses classes with the probabilities `outcomes(unit)`, units independent."""
    gradient, value, total = torch.zeros_like(A), torch.zeros(()).double(), 0.0
    for (one, p1), (two, p2) in itertools.product(outcomes(0), outcomes(1)):
        chosen = torch.tensor([one, two])
        points = points_of((one, two))
        draw = gradest.Draw(NEURON, A, gradest.Key(0), points, torch.ones(len(points)), {"chosen": chosen})
        found, _ = estimator.backward(draw, gradest.Feedback(f(points)), {})
        weight = estimator.class_weights(NEURON, A, chosen)
        table = [f(points)[:1], f(points)[1:].reshape(2, -1)]
        gradient += p1 * p2 * found
        value += p1 * p2 * sum((weight[unit] * torch.cat([table[0], table[1][unit]])).sum() / 2 for unit in range(2))
        total += p1 * p2
    assert total == pytest.approx(1, abs=1e-12)
    return gradient, value


def without_replacement(k):
    def outcomes(unit):
        for order in itertools.permutations(range(4), k):
            p, left = 1.0, 1.0
            for index in order:
                p, left = p * float(P[unit, index]) / left, left - float(P[unit, index])
            yield list(order), p

    return outcomes


def in_a_circle(unit):
    for index in range(4):
        yield [(index + step) % 4 for step in range(4)], float(P[unit, index])


def summed_and_sampled(k):
    def outcomes(unit):
        top = P[unit].argsort(descending=True)[:k].tolist()
        rest = [index for index in range(4) if index not in top]
        left = float(P[unit, rest].sum())
        for z in rest:
            yield [z, *top], float(P[unit, z])  # the unit's own sample is outside of T
            for drawn in top:  # or inside, and z is independent of it
                yield [drawn, *(t for t in top if t != drawn), z], float(P[unit, drawn] * P[unit, z]) / left

    return outcomes


CASES = {
    "measure_valued": ("measure_valued", in_a_circle),
    "local_expectation": ("local_expectation", in_a_circle),
    "sum_and_sample, 1": ("sum_and_sample", summed_and_sampled(1)),
    "sum_and_sample, 2": ({"name": "sum_and_sample", "summed": 2}, summed_and_sampled(2)),
    "unordered_set, 2": ("unordered_set", without_replacement(2)),
    "unordered_set, 3": ({"name": "unordered_set", "samples": 3}, without_replacement(3)),
    "unordered_set, 4": ({"name": "unordered_set", "samples": 4}, without_replacement(4)),
}


@pytest.mark.parametrize("case", [*list(CASES)[:-1], *deep(*list(CASES)[-1:])])
@pytest.mark.parametrize("f", [*deep(linear), cubic])
def test_the_mean_over_all_choices_is_exact(case, f):
    spec, outcomes = CASES[case]
    gradient, value = mean_over(gradest.estimator(spec), outcomes, f)
    loss, wanted = gradest.exact(f, A, neuron=NEURON)
    assert_close(gradient, wanted, 1e-11)
    assert_close(value, loss, 1e-11)


def first_and_others(classes):
    """The class drawn, and the others in any order."""
    return classes[0], *sorted(classes[1:])


@pytest.mark.parametrize("case", CASES)
def test_forward_makes_these_choices_and_asks_at_these_points(case):
    spec, outcomes = CASES[case]
    estimator, draws = gradest.estimator(spec), 20_000
    draw = estimator.forward(NEURON, A.expand(draws, 2, 4), gradest.Key(5), {})
    assert len(draw.points) == estimator.evaluations(NEURON, (2, 4))
    chosen = draw.saved["chosen"]
    for row in range(20):
        assert torch.equal(draw.points[:, row], points_of(chosen[row].tolist()))
        weight = estimator.class_weights(NEURON, A, chosen[row]) / 2
        assert_close(draw.weights[:, row], torch.cat([weight[:, 0].sum()[None], weight[:, 1:].flatten()]))
    for unit in range(2):
        wanted, seen = Counter(), Counter(first_and_others(row) for row in chosen[:, unit].tolist())
        for classes, p in outcomes(unit):
            wanted[first_and_others(classes)] += p
        assert seen.keys() <= wanted.keys()
        for classes, p in wanted.items():
            assert abs(seen[classes] / draws - p) < 5 * math.sqrt(p * (1 - p) / draws) + 1e-12


@pytest.mark.parametrize(
    "spec",
    [
        "measure_valued",
        "local_expectation",
        {"name": "sum_and_sample", "summed": 9},
        {"name": "unordered_set", "samples": 9},
    ],
)
def test_with_all_classes_asked_for_one_unit_has_no_variance(spec):
    def f(h):
        return (h[..., 0, :] * WEIGHT[0].to(h)).sum(-1) ** 3

    found = gradest.estimate(f, A[:1], NEURON, spec, draws=200, seed=1)
    loss, truth = gradest.exact(f, A[:1], neuron=NEURON)
    assert found.evaluations == 4
    assert float(found.variance.max()) < 1e-25
    assert_close(found.gradient, truth)
    assert_close(found.loss, loss)


def test_local_expectation_of_one_hot_units_is_measure_valued():
    """And, as its docstring says, Σ_c L(c) dp_c/da, term by term."""
    draws, found = [], []
    for name in ("measure_valued", "local_expectation"):
        estimator = gradest.estimator(name)
        draws.append(estimator.forward(NEURON, A, gradest.Key(4), {}))
        found.append(estimator.backward(draws[-1], gradest.Feedback(cubic(draws[-1].points)), {})[0])
    assert torch.equal(draws[0].points, draws[1].points)
    assert torch.equal(*found)
    wanted = torch.zeros_like(A)
    for unit, c in itertools.product(range(2), range(4)):
        h = draws[0].points[0].clone()
        h[unit] = one_hot(c)
        wanted[unit] += cubic(h) * P[unit, c] * (one_hot(c) - P[unit])
    assert_close(found[0], wanted)


def test_the_built_in_baseline_and_the_sum_reduce_the_variance():
    def variance(spec):
        return float(gradest.estimate(cubic, A, NEURON, spec, draws=4000, seed=1).variance.mean())

    rloo = variance({"name": "rloo", "samples": 3})  # as many evaluations
    assert variance("unordered_set") < rloo
    assert variance("sum_and_sample") < rloo


def test_a_single_class_has_no_gradient():
    a = torch.zeros(2, 3, 1)
    for name in ("arsm", "measure_valued", "sum_and_sample", "unordered_set"):
        value, _ = gradest.expect(lambda h: h.sum((-1, -2)), a.requires_grad_(), NEURON, name)
        (gradient,) = torch.autograd.grad(value.sum(), a)
        assert value.tolist() == [3, 3]
        assert torch.equal(gradient, torch.zeros(2, 3, 1))


def test_arsm_of_two_classes_is_arm():
    a = torch.randn(50, 2, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    estimator = gradest.estimator("arsm")
    draw = estimator.forward(NEURON, a, gradest.Key(3), {})

    def f(h):
        return (h * torch.tensor([[1.0, -2.0], [0.5, 3.0]]).to(h)).sum((-1, -2)) ** 2

    found, _ = estimator.backward(draw, gradest.Feedback(f(draw.points)), {})
    exponential = -NEURON.noise(gradest.Key(3), a, 1)[0].log()
    u, logit = exponential[..., 0] / exponential.sum(-1), a[..., 0] - a[..., 1]
    first, second = (u < torch.sigmoid(logit)).double(), (u > torch.sigmoid(-logit)).double()
    losses = [f(torch.stack([b, 1 - b], -1)) for b in (second, first)]
    arm = (losses[0] - losses[1])[:, None] * (u - 0.5)
    assert_close(found, torch.stack([arm, -arm], -1))


def test_arsm_by_hand():
    """Two units of four classes, the formula term by term; like the true gradient it sums to 0 over a unit's classes."""
    estimator = gradest.estimator("arsm")
    draw = estimator.forward(NEURON, A, gradest.Key(4), {})
    found, _ = estimator.backward(draw, gradest.Feedback(cubic(draw.points)), {})
    noise = NEURON.noise(gradest.Key(4), A, 1)[0]
    pi = -noise.log() / -noise.log().sum(-1, keepdim=True)

    def exchanged(c, j):
        order = list(range(4))
        order[c], order[j] = order[j], order[c]
        return cubic(one_hot((pi[:, order] * torch.exp(-A)).argmin(-1)))

    wanted = torch.zeros_like(A)
    for unit, c, j in itertools.product(range(2), range(4), range(4)):
        centred = exchanged(c, j) - sum(exchanged(m, j) for m in range(4)) / 4
        wanted[unit, c] += centred * (1 - 4 * pi[unit, j]) / 4
    assert float(found.abs().max()) > 0.1
    assert_close(found, wanted)
    assert_close(found.sum(-1), torch.zeros(2))


def test_a_layer_of_one_sample_refuses_what_asks_for_more():
    for name in ("arsm", "measure_valued", "sum_and_sample", "unordered_set"):
        with pytest.raises(Incompatible, match="emits one sample"):
            gradest.nn.Stochastic("categorical", name)


def test_arsm_integrated_over_the_simplex_is_exact():
    """One unit of three classes: a midpoint rule over π in place of random numbers."""
    a, f = A[:1, :3], torch.tensor([1.0, -2.0, 4.0], dtype=torch.float64)
    side = 600
    x, y = torch.meshgrid(*[(torch.arange(side).double() + 0.5) / side] * 2, indexing="ij")
    pi = torch.stack([torch.minimum(x, y), (x - y).abs(), 1 - torch.maximum(x, y)], -1)  # the gaps between uniforms
    pi = pi[x != y].clamp(min=1e-12)
    noise = torch.exp(-pi)[:, None, :]
    estimator = gradest.estimator("arsm")
    batch = a.expand(len(pi), 1, 3)
    points = [NEURON.forward(batch, noise)]
    points += [NEURON.forward(batch, noise[..., order]) for order in ([1, 0, 2], [2, 1, 0], [0, 2, 1])]
    draw = gradest.Draw(NEURON, batch, gradest.Key(0), torch.stack(points), torch.ones(4), {"noise": noise})
    found, _ = estimator.backward(draw, gradest.Feedback((draw.points * f).sum((-1, -2))), {})
    _, wanted = gradest.exact(lambda h: (h * f).sum((-1, -2)), a, neuron=NEURON)
    assert_close(found.mean(0), wanted, 5e-3 * float(wanted.abs().max()))


@pytest.mark.parametrize("f", [linear, cubic])
@pytest.mark.parametrize("spec", ["muprop", "double_cv", {"name": "double_cv", "samples": 3}], ids=str)
def test_the_mean_over_all_samples_is_exact(spec, f):
    estimator = gradest.estimator(spec)
    state = {"alpha": torch.tensor(-1.3).double(), "curvature": torch.tensor(1.0).double()}
    gradient, value, square = over_samples(estimator, f, getattr(estimator, "samples", 1), state)
    loss, wanted = gradest.exact(f, A, neuron=NEURON)
    assert_close(gradient, wanted, 1e-11)
    assert_close(value, loss, 1e-11)
    if estimator.name == "muprop":
        assert bool(((square - gradient**2).abs() < 1e-12).all()) is (
            f is linear
        )  # without variance there, and only there


def rodeo_state(estimator, neuron, a):
    """A state in which every part does something."""
    state = dict(estimator.init(neuron, a))
    for name, value in (("outer", 0.8), ("linear", 1.1), ("constant", 0.3), ("alpha", 0.4)):
        state[name] = state[name] + value
    given = {"weight": 0.5, "spread": 2.0, "first": [0.9, -0.3], "second": [4.0, 1.5]}
    return state | {name: torch.tensor(value, dtype=torch.float64) for name, value in given.items()}


@pytest.mark.parametrize("samples", [2, *deep(3)])
def test_rodeo_has_the_gradient_as_its_mean_at_any_state(samples):
    estimator = gradest.estimator("rodeo", samples=samples)
    gradient, value, square = over_samples(estimator, cubic, samples, rodeo_state(estimator, NEURON, A))
    loss, wanted = gradest.exact(cubic, A, neuron=NEURON)
    assert_close(gradient, wanted, 1e-10)
    assert_close(value, loss, 1e-10)
    rloo = over_samples(gradest.estimator("rloo", samples=samples), cubic, samples)[2]
    assert not torch.allclose(square, rloo, rtol=0.05)  # the control variates are no small correction


def test_rodeo_of_two_classes_is_that_of_a_binary_unit():
    a = torch.linspace(-2, 2, 12, dtype=torch.float64).reshape(4, 3)
    estimator, binary = gradest.estimator("rodeo", samples=3), gradest.neuron("bernoulli")
    state, pair = rodeo_state(estimator, binary, a), torch.stack([a, torch.zeros_like(a)], -1)
    draw = estimator.forward(binary, a, gradest.Key(1), state)
    loss, grad = draw.points.sum(-1).sin(), draw.points.sum(-1, keepdim=True).cos() * torch.ones_like(draw.points)
    wanted, _ = estimator.backward(draw, gradest.Feedback(loss, grad), state)
    points = torch.stack([draw.points, 1 - draw.points], -1)
    both = gradest.Feedback(loss, torch.stack([grad, torch.zeros_like(grad)], -1))
    found, _ = estimator.backward(gradest.Draw(NEURON, pair, gradest.Key(1), points, draw.weights), both, state)
    assert_close(found, torch.stack([wanted, -wanted], -1))


def test_rodeo_and_double_cv_fall_far_below_rloo_on_one_hot_units():
    a = torch.linspace(-1, 1, 60, dtype=torch.float64).reshape(20, 3)

    def f(h):
        return ((h * torch.arange(3).to(h)).sum((-1, -2)) - 30) ** 2

    rloo = gradest.estimate(f, a, NEURON, "rloo", draws=2000, seed=1)
    learned = gradest.estimate(f, a, NEURON, "double_cv", draws=2000, seed=1)
    assert learned.variance.mean() < 0.3 * rloo.variance.mean()
    state, rows = None, a.expand(8, 20, 3).clone().requires_grad_()
    for seed in range(50):
        _, state = gradest.expect(f, rows, NEURON, "rodeo", seed=seed, state=state)
    rodeo = gradest.estimate(f, a, NEURON, "rodeo", draws=2000, seed=1, state=state)
    assert rodeo.variance.mean() < 0.3 * rloo.variance.mean()
