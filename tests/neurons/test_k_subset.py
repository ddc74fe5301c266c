"""The k-subset neuron against all sets of small groups, in the tails, on large groups, and beside the categorical neuron."""

import itertools
import math

import numpy as np
import pytest
import torch
from scipy import special, stats

import gradest
from gradest.errors import InvalidInput, InvalidOptions, TooManyPoints


def subset(k):
    return gradest.neuron("k_subset", k=k)


def normal(*shape, scale=1.0):
    return scale * torch.randn(*shape, generator=torch.Generator().manual_seed(3), dtype=torch.float64)


def truth(a, k):
    """All sets of one group, `[S, n]`, and the logarithms of their probabilities, by numpy, from the definition."""
    sets = np.array([np.isin(range(len(a)), items) for items in itertools.combinations(range(len(a)), k)], dtype=float)
    return sets, special.log_softmax(sets @ a)


@pytest.mark.parametrize("scale", [1, 40, 1000])
def test_all_252_sets_of_five_of_ten_items(scale):
    neuron, a = subset(5), normal(1, 10, scale=scale)
    sets, log_p = truth(a[0].numpy(), 5)
    h = torch.tensor(sets)[:, None]
    np.testing.assert_allclose(neuron.log_prob(h, a)[:, 0], log_p, rtol=1e-12, atol=1e-12)
    values, weights = neuron.law(a)
    assert sorted(map(tuple, values[:, 0].tolist())) == sorted(map(tuple, sets.tolist()))
    np.testing.assert_allclose(weights[:, 0], np.exp(log_p), rtol=1e-10, atol=1e-60)
    mean = np.exp(log_p) @ sets
    np.testing.assert_allclose(neuron.mean(a)[0], mean, rtol=1e-12, atol=1e-60)
    np.testing.assert_allclose(neuron.score(h, a)[:, 0], sets - mean, atol=1e-12)
    np.testing.assert_allclose(neuron.entropy(a)[0], -np.exp(log_p) @ log_p, rtol=1e-10, atol=1e-12)
    covariance = (sets.T * np.exp(log_p)) @ sets - np.outer(mean, mean)
    jacobian = torch.autograd.functional.jacobian(lambda x: neuron.mean(x)[0], a)[:, 0]
    np.testing.assert_allclose(jacobian, covariance, atol=1e-12)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_arithmetic_of_narrow_types_is_that_of_float64(dtype):
    a = torch.tensor([[40.0, -40.0, 0.5, -0.25, 39.0, -40.0], [1e4, -1e4, 0.0, 0.0, 1e4, 1e4]]).to(dtype)
    neuron, wide = subset(3), a.double()
    h = gradest.sample(neuron, a, 5, seed=1)
    for name in ("mean", "active_probability", "entropy"):
        assert torch.equal(getattr(neuron, name)(a), getattr(neuron, name)(wide).to(dtype))
    for name in ("log_prob", "score"):
        assert torch.equal(getattr(neuron, name)(h, a), getattr(neuron, name)(h.double(), wide).to(dtype))


def test_scores_and_marginals_do_not_cancel_in_the_tails():
    """Each to twelve digits of its own size, which 1 - μ has long lost; the smallest are near e^-80."""
    a = torch.tensor([[40.0, 39.0, 0.3, 0.1, -0.7, -40.0]], dtype=torch.float64)
    neuron = subset(2)
    sets, log_p = truth(a[0].numpy(), 2)
    marginal, left_out = np.exp(log_p) @ sets, np.exp(log_p) @ (1 - sets)
    assert left_out[0] < 1e-15
    chosen = torch.ones_like(a)
    np.testing.assert_allclose(neuron.mean(a)[0], marginal, rtol=1e-12)
    np.testing.assert_allclose(neuron.score(chosen, a)[0], left_out, rtol=1e-12)
    np.testing.assert_allclose(neuron.score(1 - chosen, a)[0], -marginal, rtol=1e-12)
    assert (neuron.score(chosen.float(), a.float()) > 0).all()


def test_one_item_is_the_categorical_unit():
    categorical, one, a = gradest.neuron("categorical"), subset(1), normal(3, 2, 5, scale=10)
    values, weights = one.law(a)
    wanted, shares = categorical.law(a)
    order = (wanted[:, 0, 0] @ values[:, 0, 0].mT).argmax(-1)
    assert torch.equal(values[order], wanted)
    for found, expected in (
        (weights[order], shares),
        (one.log_prob(wanted, a), categorical.log_prob(wanted, a)),
        (one.score(wanted, a), categorical.score(wanted, a)),
        (one.mean(a), categorical.mean(a)),
        (one.threshold(a, 0.5), categorical.threshold(a, 0.5)),
    ):
        torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)


def test_all_items_of_a_group():
    neuron, a = subset(4), normal(2, 1, 4, scale=40)
    assert gradest.sample(neuron, a, 3, seed=1).eq(1).all()
    assert neuron.mean(a).eq(1).all()
    assert neuron.score(torch.ones_like(a), a).eq(0).all()
    assert neuron.entropy(a).abs().max() < 1e-12
    assert torch.autograd.functional.jacobian(neuron.mean, a).eq(0).all()


def test_a_constant_of_a_group_changes_nothing():
    neuron, a = subset(3), torch.tensor([[0.5, -1.0, 2.0, 0.25, -3.0]])
    h = gradest.sample(neuron, a, 100, seed=1)
    for constant in (-64.0, 1024.0):
        assert torch.equal(gradest.sample(neuron, a + constant, 100, seed=1), h)
        assert torch.equal(neuron.mean(a + constant), neuron.mean(a))
        assert torch.equal(neuron.log_prob(h, a + constant), neuron.log_prob(h, a))


def successive(a, k):
    """The law of the k largest of a + Gumbel noise, by the sum over all orders, for the sets of `truth`."""
    w, law = np.exp(a), []
    for items in itertools.combinations(range(len(a)), k):
        orders = np.array(list(itertools.permutations(w[list(items)])))
        before = np.cumsum(orders, -1) - orders
        law.append(np.prod(orders / (w.sum() - before), -1).sum())
    return np.array(law)


def test_shares_of_samples():
    """Chi-square tests of 40,000 draws, each with a false alarm of 1e-6. They see the law of Gumbel top-k, which is near."""
    a, draws = torch.tensor([[1.5, -0.5, 0.3, 0.0, -1.2, 0.7], [40.0, 0.0, 0.4, -0.3, -40.0, 0.1]]), 40_000
    h = gradest.sample(subset(3), a, draws, seed=5)
    for group in range(2):
        sets, log_p = truth(a[group].numpy(), 3)
        counts = (h[:, group].numpy() @ sets.T == 3).sum(0)
        assert counts.sum() == draws
        likely = np.exp(log_p) > 1e-6
        assert counts[~likely].sum() == 0
        assert stats.chisquare(counts[likely], draws * np.exp(log_p[likely]), sum_check=False).pvalue > 1e-6
        if group == 0:
            assert stats.chisquare(counts, draws * successive(a[0].double().numpy(), 3)).pvalue < 1e-9


def test_gumbel_top_k_is_a_wrong_sampler_for_this_score():
    """The figures of the docstring of k_subset, by enumeration."""
    a = np.array([2.0, 1.0, 0.0, -1.0, -2.0])
    sets, log_p = truth(a, 2)
    p, wrong = np.exp(log_p), successive(a, 2)
    assert wrong.sum() == pytest.approx(1)
    score = sets - p @ sets
    constant = wrong @ score
    assert np.abs(constant).max() == pytest.approx(0.049, abs=5e-4)
    loss = (sets @ [1, -2, 3, 0, 1] - 1) ** 2
    gradient = (p * loss) @ score
    bias = (wrong * loss) @ score - gradient
    assert np.linalg.norm(bias) / np.linalg.norm(gradient) == pytest.approx(0.24, abs=5e-3)
    found = gradest.exact(
        lambda h: ((h[..., 0, :] @ torch.tensor([1.0, -2, 3, 0, 1])) - 1) ** 2, torch.tensor(a)[None].float(), subset(2)
    )[1]
    np.testing.assert_allclose(found[0], gradient, rtol=1e-5)


def test_large_groups():
    neuron, a = subset(100), normal(2, 1, 1000, scale=40).float()
    h = gradest.sample(neuron, a, 3, seed=1)
    assert h.sum(-1).eq(100).all()
    mean = neuron.mean(a)
    np.testing.assert_allclose(mean.double().sum(-1), 100, rtol=1e-6)
    for x in (neuron.log_prob(h, a), neuron.score(h, a), neuron.entropy(a)):
        assert torch.isfinite(x).all()
    near = normal(1, 1000, scale=0.01)  # so near to equal that the mean is near k/n, and the law near uniform
    np.testing.assert_allclose(neuron.mean(near), 0.1, atol=0.004)
    np.testing.assert_allclose(neuron.entropy(near), math.log(math.comb(1000, 100)), rtol=1e-4)


def test_masked_items():
    neuron, a = subset(2), normal(3, 2, 4)
    masked = torch.cat([a[..., :1], torch.full_like(a[..., :1], -torch.inf), a[..., 1:]], -1)
    h = gradest.sample(neuron, masked, 200, seed=1)
    assert h[..., 1].eq(0).all()
    kept = [0, 2, 3, 4]
    for name in ("mean", "threshold", "active_probability"):
        method = getattr(neuron, name)
        found, wanted = (method(x) if name != "threshold" else method(x, 0.5) for x in (masked, a))
        assert found[..., 1].eq(0).all()
        torch.testing.assert_close(found[..., kept], wanted)
    torch.testing.assert_close(neuron.log_prob(h, masked), neuron.log_prob(h[..., kept], a))
    torch.testing.assert_close(neuron.score(h, masked)[..., kept], neuron.score(h[..., kept], a))
    torch.testing.assert_close(neuron.entropy(masked), neuron.entropy(a))
    f = gradest.objective("quadratic", target=0.3, event_ndim=2)
    _, gradient = gradest.exact(f, masked, neuron)
    assert gradient[..., 1].eq(0).all()
    torch.testing.assert_close(gradient[..., kept], gradest.exact(f, a, neuron)[1])
    only = torch.full((1, 5), -torch.inf)
    only[0, [1, 3]] = torch.tensor([-7.0, 80.0])
    assert gradest.sample(neuron, only, 50, seed=1).eq(torch.isfinite(only).float()).all()


def test_derivatives_of_every_order():
    neuron, a = subset(2), normal(2, 4).requires_grad_()
    h = neuron.law(a)[0][1].detach()
    for f in (neuron.mean, neuron.entropy, lambda x: neuron.log_prob(h, x), lambda x: neuron.law(x)[1]):
        assert torch.autograd.gradcheck(f, a)
        assert torch.autograd.gradgradcheck(f, a)
    for x in (torch.tensor([[40.0, -40.0, 0.0, 1e4]]), torch.tensor([[-1e4, -1e4, 1e4, -torch.inf]])):
        x.requires_grad_()
        (slope,) = torch.autograd.grad(neuron.mean(x).square().sum() + neuron.entropy(x).sum(), x, create_graph=True)
        (second,) = torch.autograd.grad(slope.sum(), x)
        assert bool(torch.isfinite(slope).all() and torch.isfinite(second).all())


def test_views_broadcasts_and_transforms_have_the_same_bits(monkeypatch):
    neuron, a = subset(3), normal(6, 4, 5).float()
    noise = neuron.noise(gradest.Key(2), a, 4)
    h = neuron.forward(a, noise)
    assert torch.equal(neuron.forward(a.mT.contiguous().mT, noise.mT.contiguous().mT), h)
    assert torch.equal(neuron.forward(a.expand(4, *a.shape), noise), h)
    assert torch.equal(neuron.forward(a, noise[1]), h[1])
    assert torch.equal(neuron.mean(a.mT.contiguous().mT), neuron.mean(a))
    assert torch.equal(torch.func.vmap(neuron.forward, (0, 1), 1)(a, noise), h)
    monkeypatch.setattr("gradest_neurons.k_subset._MAX_TABLE", 50)  # the table of two groups
    assert torch.equal(neuron.forward(a, noise), h)


@pytest.mark.parametrize(
    ("a", "k", "message"),
    [
        (torch.zeros(2, 3, 4), 5, "chooses 5 items of each group, but .* have groups of 4. Give"),
        (torch.zeros(2, 0), 1, r"\[2, 0\]"),
        (torch.zeros(4), 2, "units, classes"),
        (torch.tensor([[0.0, 1, 2, 3], [0.0, 1, -torch.inf, -torch.inf]]), 3, "at least 3 pre-activations"),
        (torch.zeros(1, 1 << 14), 1 << 13, r"n·k of at most 2\^26"),
    ],
)
def test_groups_that_cannot_be_drawn_are_refused(a, k, message):
    f = gradest.objective("linear", event_ndim=2)
    for call in (
        lambda: gradest.sample(subset(k), a, 1, seed=1),
        lambda: gradest.expect(f, a, subset(k), "reinforce"),
        lambda: gradest.exact(f, a, subset(k)),
        lambda: gradest.nn.Stochastic(subset(k), "reinforce")(a),
    ):
        with pytest.raises(InvalidInput, match=message):
            call()


def test_no_items_is_no_option():
    with pytest.raises(InvalidOptions, match="k: "):
        subset(0)


def test_laws_of_too_many_sets_are_refused_before_memory_is_taken():
    for a, k, most in ((torch.zeros(1, 1000), 100, "C(1000, 100)"), (torch.zeros(10_000, 1, 20), 10, "C(20, 10)")):
        with pytest.raises(TooManyPoints) as refused:
            subset(k).law(a)
        assert most in str(refused.value)
    with pytest.raises(TooManyPoints, match="252"):
        gradest.exact(gradest.objective("linear", event_ndim=2), torch.zeros(3, 10), subset(5))


def test_while_the_kernels_are_compiled_torch_computes_the_same(monkeypatch):
    """A kernel returns None until it is compiled, which a fresh installation does in the background."""
    neuron = gradest.neuron("k_subset", k=2)
    a, grad = torch.tensor([[[0.3, -1.2, 0.8, 2.0]]]), torch.tensor([[[1.0, -2.0, 0.5, 3.0]]])
    h = torch.tensor([[[1.0, 0.0, 1.0, 0.0]]])
    wanted = [neuron.mean(a), neuron.score(h, a), neuron.mean_backward(a, grad)]
    monkeypatch.setattr("gradest_neurons.k_subset.fused", lambda name, device: lambda *arguments: None)
    torch.testing.assert_close([neuron.mean(a), neuron.score(h, a), neuron.mean_backward(a, grad)], wanted)
