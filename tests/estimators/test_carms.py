"""CARMS, summed over all K-tuples of classes with the joint law of its coupling, which is computed here by other means."""

import itertools
import math

import pytest
import torch

import gradest
from gradest_estimators.carms import _log_conditionals, _pair_corrections

NEURON = gradest.neuron("categorical")
A = torch.tensor([[0.3, -1.2, 0.8, 0.1], [1.4, 0.0, -0.5, 0.6]], dtype=torch.float64)
WEIGHT = torch.tensor([[1.0, -2.0, 0.5, 0.9], [0.3, 1.1, -0.7, 2.0]], dtype=torch.float64)


def cubic(h):
    return ((h * WEIGHT[:, : h.shape[-1]].to(h)).sum((-1, -2)) - 0.6) ** 3


def together(q, taking, samples):
    """P(exactly these of K samples take a class of conditional probability q), by inclusion and exclusion.

    P(d_k > x for k in S) is (1 - |S| x)^(K-1) for d ~ Dirichlet(1, ..., 1), and sample k takes the class where d_k > x.
    """
    x = 1 - q ** (1 / (samples - 1))
    rest = samples - sum(taking)
    at_least = [max(0.0, 1 - (sum(taking) + more) * x) ** (samples - 1) for more in range(rest + 1)]
    return sum((-1) ** more * math.comb(rest, more) * p for more, p in enumerate(at_least))


def joint_law(p, samples):
    """The probability of every K-tuple of classes of one unit, from the rarest class to the most probable one."""
    order = sorted(range(len(p)), key=lambda c: p[c])
    found = {(None,) * samples: 1.0}
    for place, c in enumerate(order):
        left = sum(p[b] for b in order[place:])
        after = {}
        for classes, weight in found.items():
            for taking in itertools.product([0, 1], repeat=samples):
                chance = float(all(taking)) if place == len(p) - 1 else together(p[c] / left, taking, samples)
                now = tuple(c if was is None and take else was for was, take in zip(classes, taking, strict=True))
                after[now] = after.get(now, 0.0) + weight * chance
        found = after
    return {classes: weight for classes, weight in found.items() if weight > 1e-15}


def points_and_weights(a, samples):
    """All outcomes of two units, `[K, outcomes, units, classes]`, and their probabilities."""
    laws = [list(joint_law(p.tolist(), samples).items()) for p in torch.softmax(a, -1)]
    pairs = list(itertools.product(*laws))
    classes = torch.tensor([[one[0], two[0]] for one, two in pairs])  # [outcomes, units, K]
    weight = torch.tensor([one[1] * two[1] for one, two in pairs], dtype=torch.float64)
    return torch.nn.functional.one_hot(classes, a.shape[-1]).double().movedim(2, 0), weight


@pytest.mark.parametrize(("samples", "classes", "scale"), [(2, 4, 1), (2, 4, 4), (3, 4, 1), (4, 3, 1), (3, 2, 2)])
def test_the_mean_over_all_outcomes_is_exact(samples, classes, scale):
    a = scale * A[:, :classes]
    points, weight = points_and_weights(a, samples)
    assert float(weight.sum()) == pytest.approx(1, abs=1e-12)
    draw = gradest.Draw(NEURON, a.expand(len(weight), -1, -1), gradest.Key(0), points, torch.ones(samples) / samples)
    estimator = gradest.estimator("carms", samples=samples)
    found, _ = estimator.backward(draw, gradest.Feedback(cubic(points)), {})
    _, wanted = gradest.exact(cubic, a, neuron=NEURON)
    torch.testing.assert_close((weight[:, None, None] * found).sum(0), wanted, rtol=0, atol=1e-10)


@pytest.mark.parametrize("samples", [2, 3])
def test_forward_draws_from_this_law(samples):
    """20,000 draws; 5 standard errors for each of at most 128 tuples, so a false alarm of 1e-4 for this seed's choice."""
    draws = 20_000
    draw = gradest.estimator("carms", samples=samples).forward(NEURON, A.expand(draws, 2, 4), gradest.Key(5), {})
    classes = draw.points.argmax(-1)  # [K, draws, units]
    for unit in range(2):
        law = joint_law(torch.softmax(A[unit], -1).tolist(), samples)
        tuples, counts = classes[..., unit].unique(dim=1, return_counts=True)
        seen = {tuple(column.tolist()): int(n) for column, n in zip(tuples.T, counts, strict=True)}
        assert seen.keys() <= law.keys()
        for outcome, p in law.items():
            assert abs(seen.get(outcome, 0) / draws - p) < 5 * math.sqrt(p * (1 - p) / draws)


def test_of_two_classes_it_is_arms():
    a = torch.randn(40, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64) * 3
    pair = torch.stack([a, torch.zeros_like(a)], -1)
    for samples in (2, 3, 5):
        carms, arms = (gradest.estimator(name, samples=samples) for name in ("carms", "arms"))
        binary = arms.forward(gradest.neuron("bernoulli"), a, gradest.Key(3), {})
        points = torch.stack([binary.points, 1 - binary.points], -1)
        loss = torch.randn(samples, 40, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
        draw = gradest.Draw(NEURON, pair, gradest.Key(0), points, binary.weights)
        found, _ = carms.backward(draw, gradest.Feedback(loss), {})
        wanted, _ = arms.backward(binary, gradest.Feedback(loss), {})
        torch.testing.assert_close(found, torch.stack([wanted, -wanted], -1), rtol=0, atol=1e-12)


@pytest.mark.parametrize("classes", [2, 3, 10])
def test_the_correction_lies_between_a_half_and_two(classes):
    a = torch.randn(300, classes, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    for samples, scale in itertools.product((2, 3, 8), (0.0, 1.0, 40.0, 400.0)):
        correction = _pair_corrections(_log_conditionals(scale * a)[1], samples - 1)[:, :-1]
        assert float(correction.min()) >= 0.5
        assert float(correction.max()) < 2


def test_masked_classes_and_single_classes_have_no_gradient():
    a = torch.tensor([[0.3, -torch.inf, 0.8, -torch.inf], [-torch.inf, 0.0, -torch.inf, -torch.inf]])
    loss, _ = gradest.expect(cubic, a.requires_grad_(), NEURON, "carms", seed=1)
    loss.backward()
    assert torch.isfinite(a.grad).all()
    assert bool((a.grad[0, [0, 2]] != 0).all())
    assert bool((a.grad[torch.isinf(a)] == 0).all())
    assert bool((a.grad[1] == 0).all())


@pytest.mark.parametrize("samples", [2, 4])
def test_it_has_less_variance_than_rloo(samples):
    carms, rloo = (
        gradest.estimate(cubic, A, NEURON, {"name": name, "samples": samples}, draws=10_000, seed=1).variance.mean()
        for name in ("carms", "rloo")
    )
    assert carms < 0.95 * rloo
