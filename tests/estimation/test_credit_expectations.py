"""The gradient that credit and score_surrogate give in expectation, by enumeration of every group of K samples."""

import itertools
import math

import pytest
import torch

import gradest
from tests.estimation.score_functions import LOSS, unbiased_score_functions


def best(loss, k):
    """The mean of the least loss over all subsets of k samples."""
    subsets = itertools.combinations(range(len(loss)), k)
    return torch.stack([loss[list(subset)].amin(0) for subset in subsets]).mean(0)


K = 3
OUTCOME_LOSS = torch.tensor([0.2, -1.0, 0.9, 1.7], dtype=torch.float64)
OUTCOME_LENGTH = torch.tensor([1.0, 4.0, 2.0, 3.0], dtype=torch.float64)
THETA = torch.tensor([0.4, -0.3, 0.1, 0.8], dtype=torch.float64)
GROUPS = torch.cartesian_prod(*[torch.arange(4)] * K).T  # [K, 64]


def group_probability(theta):
    return torch.softmax(theta, -1)[GROUPS].prod(0)


def gradient_of(value):
    """The gradient in the logits of Σ_groups P(group) value(group)."""
    theta = THETA.clone().requires_grad_()
    return torch.autograd.grad((group_probability(theta) * value).sum(), theta)[0]


def expected_gradient(estimator, loss, state=None, features=None):
    """E[Σ_k weights_k score_k], by autograd of score_surrogate at every group; it must be what the weights of credit say."""
    theta = THETA.clone().requires_grad_()
    log_prob = torch.log_softmax(theta, -1)[GROUPS]
    value, _ = gradest.score_surrogate(log_prob, loss, estimator, state, features)
    (found,) = torch.autograd.grad((group_probability(THETA) * value).sum(), theta)
    weights, _ = gradest.credit(estimator, loss, state, features)
    score = torch.eye(4, dtype=torch.float64)[GROUPS] - torch.softmax(THETA, -1)
    torch.testing.assert_close(found, torch.einsum("n,kn,knc->c", group_probability(THETA), weights, score))
    return found


PLAIN = gradient_of(OUTCOME_LOSS[GROUPS].mean(0))


@pytest.mark.parametrize("estimator", unbiased_score_functions(), ids=lambda estimator: estimator.label())
def test_those_without_bias_estimate_their_target(estimator):
    """With any K; those with a state in their second step."""
    given = {name: getattr(estimator, name) for name in estimator.model_fields_set - {"samples"}}
    spec, loss = {"name": estimator.name, **given}, OUTCOME_LOSS[GROUPS]
    features = {
        "nvil": torch.linspace(-1, 1, 128, dtype=torch.float64).reshape(64, 2),
        "opo": OUTCOME_LENGTH[GROUPS],
        "otb": OUTCOME_LENGTH[GROUPS],
    }.get(estimator.name)
    if estimator.name == "nvil":  # what is known before the samples are drawn is the same for every group
        features = features[:1].expand(64, 2)
    _, state = gradest.credit(spec, loss + 1, features=features)
    target = type(estimator).build(**given, samples=K).target()
    parts = loss if target.samples == 1 else torch.stack(list(loss)[: target.samples])
    wanted = PLAIN if target.samples == 1 else gradient_of(target.combine(parts))
    torch.testing.assert_close(expected_gradient(spec, loss, state, features), wanted, rtol=1e-10, atol=1e-12)


def test_dr_grpo_estimates_a_fraction_of_the_gradient():
    torch.testing.assert_close(expected_gradient("dr_grpo", OUTCOME_LOSS[GROUPS]), (K - 1) / K * PLAIN)


@pytest.mark.parametrize("name", ["opo", "otb"])
def test_opo_estimates_the_loss_less_a_share_of_its_baseline(name):
    loss, length = OUTCOME_LOSS[GROUPS], OUTCOME_LENGTH[GROUPS]
    baseline = (length * loss).sum(0) / length.sum(0)
    wanted = gradient_of(loss.mean(0) - baseline / K)
    found = expected_gradient(name, loss, features=length)
    torch.testing.assert_close(found, wanted)
    assert not torch.allclose(found, (K - 1) / K * PLAIN, rtol=0.01)
    equal = expected_gradient(name, loss, features=torch.ones_like(length))
    torch.testing.assert_close(equal, (K - 1) / K * PLAIN)


def test_grpo_rescales_the_gradient_of_a_probability():
    """For losses 0 and 1 by c_K(q), from the binomial law of the other K - 1 losses; it tends to 1/√(q(1-q))."""
    binary = torch.tensor([0.0, 1.0, 1.0, 0.0], dtype=torch.float64)
    q = float(torch.softmax(THETA, -1) @ binary)

    def factor(samples):
        total = 0.0
        for ones in range(samples):
            chance = math.comb(samples - 1, ones) * q**ones * (1 - q) ** (samples - 1 - ones)
            group = torch.tensor([0.0] * (samples - 1 - ones) + [1.0] * ones, dtype=torch.float64)
            one, zero = (float(first_weight_of_grpo(torch.cat([group.new_tensor([x]), group]))) for x in (1.0, 0.0))
            total += samples * chance * (one - zero)
        return total

    found = expected_gradient("grpo", binary[GROUPS])
    torch.testing.assert_close(found, factor(K) * gradient_of(binary[GROUPS].mean(0)), rtol=1e-5, atol=0)
    assert factor(400) == pytest.approx((q * (1 - q)) ** -0.5, rel=0.01)
    assert abs(factor(K) / (q * (1 - q)) ** -0.5 - 1) > 0.1


def first_weight_of_grpo(x):
    """The weight of the first sample of a group."""
    return ((x - x.mean()) / (x.std() + 1e-6))[0] / len(x)


@pytest.mark.parametrize("k", [1, 2, 3, 5])
def test_pass_at_k_by_its_definition(k):
    """Its weights are the mean over all subsets of what a sample adds, its value the mean least loss; ties included."""
    loss = torch.tensor([[1.0, 0.3, 1.0, -2.0, 0.7], [0.0, 1.0, 1.0, 0.0, 1.0]], dtype=torch.float64).T
    weights, _ = gradest.credit({"name": "pass_at_k", "k": k}, loss)
    wanted = torch.zeros_like(loss)
    for subset in itertools.combinations(range(5), k):
        for i in subset:
            rest = [j for j in (subset if k > 1 else range(5)) if j != i]
            other = loss[rest].amin(0) if k > 1 else loss[rest].mean(0)
            wanted[i] += (loss[list(subset)].amin(0) - other) / math.comb(5, k)
    torch.testing.assert_close(weights, wanted)
    value, _ = gradest.score_surrogate(torch.zeros_like(loss), loss, {"name": "pass_at_k", "k": k})
    torch.testing.assert_close(value, best(loss, k))


@pytest.mark.parametrize("k", [2, 3])
def test_the_expectation_of_pass_at_k_is_the_gradient_of_the_best_of_k(k):
    found = expected_gradient({"name": "pass_at_k", "k": k}, OUTCOME_LOSS[GROUPS])
    torch.testing.assert_close(found, gradient_of(OUTCOME_LOSS[GROUPS][:k].amin(0)))


def test_pass_at_k_is_rloo_for_k_of_one():
    torch.testing.assert_close(gradest.credit({"name": "pass_at_k", "k": 1}, LOSS)[0], gradest.credit("rloo", LOSS)[0])


def test_pass_at_k_of_many_samples():
    """Binomial coefficients of 1024 exceed every float; the weights and the value do not."""
    right = torch.zeros(1024, dtype=torch.float64)
    right[:9] = 1
    estimator = {"name": "pass_at_k", "k": 500}
    weights, _ = gradest.credit(estimator, 1 - right)
    wrong = math.comb(1015, 499) / math.comb(1024, 500)  # exact integers, divided
    torch.testing.assert_close(weights[:9], torch.full((9,), -wrong, dtype=torch.float64))
    assert bool((weights[9:] == 0).all())
    value, _ = gradest.score_surrogate(torch.zeros_like(right), 1 - right, estimator)
    assert float(value) == pytest.approx(math.comb(1015, 500) / math.comb(1024, 500))
    assert bool(torch.isfinite(gradest.credit(estimator, torch.linspace(-1e30, 1e30, 1024))[0]).all())
