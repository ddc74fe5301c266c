"""grpo, dr_grpo, opo, otb and pass_at_k on layers: what each estimates, over every group of samples."""

from itertools import product

import pytest
import torch

import gradest
from gradest.analysis.comparison import comparable_estimators
from gradest.contract.estimator import Feedback
from gradest.errors import InvalidOptions
from gradest_estimators.pass_at_k import PassAtK
from tests.nn.test_graph import Belief, check, surrogate

A = torch.tensor([0.4, -0.9], dtype=torch.float64)
K = 3


def skewed(h):
    return (h[..., 0] * 2 - h[..., 1] + 0.3) ** 3 + 5


def groups(neuron, a):
    """Every group of K outputs `[K, groups, *event]`, and the differentiable probability of each."""
    values, weights = neuron.law(a)
    if neuron.event_ndim == 1:
        singles = [torch.stack(h) for h in product(*values.unbind(-1))]
        chances = [torch.stack(p).prod() for p in product(*weights.unbind(-1))]
    else:
        singles = [torch.stack(h) for h in product(*[list(values[:, unit]) for unit in range(values.shape[1])])]
        chances = [
            torch.stack(p).prod() for p in product(*[list(weights[:, unit]) for unit in range(weights.shape[1])])
        ]
    chosen = list(product(range(len(singles)), repeat=K))
    points = torch.stack([torch.stack([singles[i] for i in group]) for group in chosen], 1)
    return points, torch.stack([torch.stack([chances[i] for i in group]).prod() for group in chosen])


def loss_of(neuron, h):
    return skewed(h) if neuron.event_ndim == 1 else skewed(h[..., 0])


def expectation(estimator, neuron, a):
    """The expectation of the estimate, `[*event]`."""
    points, probability = groups(neuron, a)
    wide = a.expand(points.shape[1:])
    draw = gradest.Draw(neuron, wide, gradest.Key(0), points, torch.full((K,), 1 / K))
    gradient, state = gradest.estimator(estimator).backward(draw, Feedback(loss_of(neuron, points)), {})
    assert state == {}
    return (probability[(..., *[None] * a.ndim)] * gradient).sum(0)


def gradient_of(neuron, a, value):
    """The gradient of Σ P(group) value(group), the values being constants."""
    a = a.clone().requires_grad_()
    return torch.autograd.grad((groups(neuron, a)[1] * value).sum(), a)[0]


CASES = [("bernoulli", A), ("bipolar", A), ("categorical", torch.tensor([[0.4, -0.9, 0.1], [1.0, 0.2, -0.3]]).double())]


@pytest.mark.parametrize(("name", "a"), CASES, ids=[name for name, _ in CASES])
def test_what_each_estimates_on_a_layer(name, a):
    neuron = gradest.neuron(name)
    points, _ = groups(neuron, a)
    loss = loss_of(neuron, points)
    plain = gradient_of(neuron, a, loss.mean(0))
    score = neuron.score(points, a.expand(points.shape[1:]))
    group = {"samples": K}
    torch.testing.assert_close(expectation({"name": "dr_grpo", **group}, neuron, a), (K - 1) / K * plain)

    energy = score.square().flatten(2).sum(-1)
    baseline = (energy * loss).sum(0) / energy.sum(0)
    opo = expectation({"name": "opo", **group}, neuron, a)
    torch.testing.assert_close(opo, gradient_of(neuron, a, loss.mean(0) - baseline / K))
    assert not torch.allclose(opo, (K - 1) / K * plain, rtol=0.01)

    torch.testing.assert_close(expectation({"name": "otb", **group}, neuron, a), opo)

    for unbiased in ("opo", "otb"):
        found = expectation({"name": unbiased, "leave_one_out": True, **group}, neuron, a)
        torch.testing.assert_close(found, plain)

    for k in (2, 3):
        found = expectation({"name": "pass_at_k", "k": k, **group}, neuron, a)
        torch.testing.assert_close(found, gradient_of(neuron, a, loss[:k].amin(0)))


def test_grpo_on_a_layer_is_its_weights_times_the_scores():
    neuron = gradest.neuron("bernoulli")
    points, probability = groups(neuron, A)
    loss = skewed(points)
    weights = (loss - loss.mean(0)) / (loss.std(0) + 1e-6) / K
    wanted = (probability * (weights[..., None] * neuron.score(points, A)).sum(0).T).sum(-1)
    torch.testing.assert_close(expectation({"name": "grpo", "samples": K}, neuron, A), wanted)


def test_the_baseline_of_opo_becomes_that_of_bengio_2013():
    """For one unit and a large group it is Corollary 1: exact up to 2 %, at 20,000 samples of a fixed seed."""
    a, samples = torch.tensor([-2.0], dtype=torch.float64), 20_000
    estimator = gradest.estimator("opo", samples=samples)
    draw = estimator.forward(gradest.neuron("bernoulli"), a, gradest.Key(1), {})
    h, p = draw.points[:, 0], torch.sigmoid(a[0])
    loss = (2 * h + 0.3) ** 3 + 5
    optimal = p * loss[h == 0].mean() + (1 - p) * loss[h == 1].mean()  # the weights are swapped
    weights, _ = estimator.credit(loss, {}, estimator.features(draw.neuron, draw.points, a))
    used = loss - samples * weights
    torch.testing.assert_close(used, optimal.expand_as(used), rtol=0.02, atol=0)
    assert abs(float(loss.mean() / optimal) - 1) > 0.05


def test_a_baseline_weighted_by_the_score_lessens_the_variance():
    """With one rare unit the mean loss is far from the optimal baseline: the variance falls below a fifth of rloo's."""
    a = torch.tensor([-2.5])
    variances = {
        name: gradest.estimate(lambda h: 3 * h[..., 0], a, estimator=spec, draws=4000, seed=2).variance.item()
        for name, spec in {
            "rloo": {"name": "rloo", "samples": 128},
            "opo": {"name": "opo", "samples": 128, "leave_one_out": True},
            "otb": {"name": "otb", "samples": 128, "leave_one_out": True},
        }.items()
    }
    assert variances["opo"] == pytest.approx(variances["otb"], rel=1e-4)  # the same for one unit
    assert variances["opo"] < 0.2 * variances["rloo"]


def test_exact_of_the_best_is_the_sum_over_every_way_to_draw():
    loss, gradient = gradest.exact(skewed, A, "bernoulli", gradest.MaxOfSamples(2))
    a = A.clone().requires_grad_()
    p = torch.sigmoid(a)
    outcomes = [torch.tensor(h, dtype=torch.float64) for h in product((0, 1), repeat=2)]
    chance = [torch.where(h == 1, p, 1 - p).prod() for h in outcomes]
    wanted = sum(
        chance[i] * chance[j] * min(skewed(outcomes[i]), skewed(outcomes[j])) for i in range(4) for j in range(4)
    )
    torch.testing.assert_close(loss, wanted.detach())
    torch.testing.assert_close(gradient, torch.autograd.grad(wanted, a)[0])
    assert float(loss) < float(gradest.exact(skewed, A)[0])


def test_pass_at_k_in_a_comparison():
    """It is compared with its own target, and left out unless it is named; for k = 1 its target is E[L]."""
    two, one = {"name": "pass_at_k", "k": 2}, {"name": "pass_at_k", "k": 1}
    rows = gradest.compare(skewed, A.float(), estimators=[two, one], draws=20_000, seed=0).rows
    assert [row.claim for row in rows] == ["none, of E[min L] of 2 samples", "none"]
    assert all(row.bias_in_se < 3 for row in rows)  # root mean square of two coordinates: false alarm below 2e-4
    assert "pass_at_k" not in [built.name for built in comparable_estimators(gradest.neuron("bernoulli"))]


def test_the_value_of_pass_at_k_is_that_of_its_target():
    found = gradest.estimate(
        skewed, A.float(), estimator={"name": "pass_at_k", "samples": 5, "k": 3}, draws=20_000, seed=0
    )
    wanted, _ = gradest.exact(skewed, A, "bernoulli", gradest.MaxOfSamples(3))
    plain, _ = gradest.exact(skewed, A, "bernoulli")
    assert float(found.loss) == pytest.approx(float(wanted), rel=0.01)
    assert abs(float(plain / wanted) - 1) > 0.05


def test_expect_trains_the_parameters_of_the_best_loss():
    weight = torch.tensor([1.0, -0.5], requires_grad=True)
    value, _ = gradest.expect(
        lambda h: (h * weight).sum(-1), A.float(), estimator={"name": "pass_at_k", "samples": 2, "k": 2}, seed=3
    )
    points = gradest.sample("bernoulli", A.float(), 2, 3)
    losses = (points * weight.detach()).sum(-1)
    torch.testing.assert_close(value.detach(), losses.amin(0))
    (gradient,) = torch.autograd.grad(value, weight)
    torch.testing.assert_close(gradient, points[losses.argmin()])


@pytest.mark.parametrize("flatten", [False, True])
def test_paths_through_two_layers(flatten):
    """Against enumeration, with a loss that depends on both layers and on all parameters."""
    unbiased = {"leave_one_out": True}
    check({"name": "opo", **unbiased}, {"name": "otb", **unbiased}, 3, flatten)


def test_the_best_of_paths_through_two_layers():
    """pass_at_k in a graph of four paths, against the exact gradient of the best of two; z as in tests/nn/test_graph.py."""
    torch.manual_seed(1)
    model, x = Belief("pass_at_k", "pass_at_k"), torch.tensor([[0.5, -1.0]])
    parameters, outcomes = list(model.parameters()), list(product((0.0, 1.0), repeat=5))
    chances, losses = [], []
    for outcome in outcomes:
        h, g = torch.tensor([outcome[:3]]), torch.tensor([outcome[3:]])
        p, q = torch.sigmoid(model.inner(x)), torch.sigmoid(model.outer(h))
        chances.append(torch.where(h == 1, p, 1 - p).prod() * torch.where(g == 1, q, 1 - q).prod())
        losses.append(model.loss(x, h, g)[0])
    chance, loss = torch.stack(chances), torch.stack(losses)
    best = (chance[:, None] * chance * torch.minimum(loss[:, None], loss)).sum()
    wanted = torch.cat([slope.flatten() for slope in torch.autograd.grad(best, parameters)])
    found = []
    for _ in range(60):
        slopes = torch.autograd.grad(surrogate(model, x.expand(1500, 2), 4), parameters)
        found.append(torch.cat([slope.flatten() for slope in slopes]))
    error = torch.stack(found).std(0) / 60**0.5
    assert float(((torch.stack(found).mean(0) - wanted) / error).abs().max()) < 5
    assert float(wanted.abs().max()) > 40 * float(error.max())


def test_the_options_of_pass_at_k():
    assert gradest.estimator("pass_at_k", k=9).samples == 9
    assert gradest.estimator("pass_at_k", k=3).samples == 4
    assert gradest.estimator("pass_at_k", k=9).spec() == {"name": "pass_at_k", "k": 9}
    assert gradest.estimator(PassAtK(k=9).spec()) == PassAtK(k=9)
    with pytest.raises(InvalidOptions, match="the best of k = 5 samples needs at least as many, not samples = 4"):
        gradest.estimator("pass_at_k", samples=4, k=5)


def test_huge_and_tiny_losses():
    for name in ("grpo", "dr_grpo", "opo", "otb", "pass_at_k"):
        for size in (1e30, 1e-30):
            found = gradest.estimate(lambda h, size=size: size * skewed(h), A.float(), estimator=name, draws=50, seed=0)
            assert bool(torch.isfinite(found.gradient).all()), name
