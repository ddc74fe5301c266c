"""The noisy top-k gate: its law against sums over grids of the noise, its openings against scipy, and what it refuses."""

import itertools

import numpy as np
import pytest
import torch
from scipy import stats

import gradest
from gradest.errors import InvalidInput, TooManyPoints

A = torch.tensor([[[0.6, -0.4, 0.1]]], dtype=torch.float64)


def router(**options):
    return gradest.neuron("noisy_top_k", **options)


def loss(h):
    """Of a group of three; it jumps where the second gate opens."""
    return torch.exp(1.3 * h[..., 0, 0]) + torch.sin(3 * h[..., 0, 1]) + 0.7 * (h[..., 0, 1] > 0)


def on_a_grid(a, std):
    """E[loss] for two of three, by sums over a grid of two of the H, for each pair that may be open."""
    step = 0.03
    x = np.arange(-7, 7, step)
    total = 0.0
    for i, j in itertools.combinations(range(3), 2):
        (rest,) = {0, 1, 2} - {i, j}
        one, two = (np.exp(-0.5 * (x - y) ** 2) / np.sqrt(2 * np.pi) for y in (a[i] / std, a[j] / std))
        below = stats.norm.cdf(np.minimum(x[:, None], x) - a[rest] / std)
        h = np.zeros((len(x), len(x), 1, 3))
        h[..., 0, i] = 1 / (1 + np.exp(-std * (x[:, None] - x)))
        h[..., 0, j] = 1 - h[..., 0, i]
        total += step**2 * float((one[:, None] * two * below * loss(torch.from_numpy(h)).numpy()).sum())
    return total


@pytest.mark.parametrize("std", [1.0, 0.4])
def test_the_law_and_its_derivative(std):
    """The value of a loss that jumps, and its gradient by differences, by sums on a grid whose own error is 5e-5."""
    value, gradient = gradest.exact(loss, A, router(std=std))
    a = A[0, 0].numpy()
    assert value.item() == pytest.approx(on_a_grid(a, std), abs=1e-4)
    step = 0.01
    for i, shift in enumerate(step * np.eye(3)):
        slope = (on_a_grid(a + shift, std) - on_a_grid(a - shift, std)) / (2 * step)
        assert gradient[0, 0, i].item() == pytest.approx(slope, abs=3e-4)
    assert gradient.sum().item() == pytest.approx(0, abs=1e-9)  # a constant changes nothing


@pytest.mark.parametrize(("n", "k"), [(4, 3), (3, 3), (5, 2), (4, 1)])
def test_draws_have_the_law(n, k):
    """40,000 draws: E[h], E[h²] and P(h > 0) within 5 standard errors, a false alarm of 3e-5 in all."""
    neuron, a = router(k=k), torch.linspace(-1, 1.4, n, dtype=torch.float64).cos()[None] * 2
    h = gradest.sample(neuron, a, samples=40_000, seed=3)
    values, weights = neuron.law(a)
    torch.testing.assert_close(weights.sum(0), torch.ones(1, dtype=torch.float64))
    for of in (lambda x: x, torch.square, lambda x: (x > 0).double()):
        wanted = (weights[..., None] * of(values)).sum(0)
        error = of(h).std(0) / 200 + 1e-9
        assert ((of(h).mean(0) - wanted).abs() < 5 * error).all()
        assert k == n or (wanted.max() / 2 / error.min()) > 20
    assert ((h > 0).sum(-1) == k).all()
    torch.testing.assert_close(h.sum(-1), torch.ones_like(h[..., 0]))


def test_the_probability_to_open():
    """For one of three it is a bivariate normal probability; for k of n the sum is k, and draws agree to 5 standard errors."""
    a = torch.tensor([0.3, -0.7, 1.1], dtype=torch.float64)
    for i in range(3):
        others = [j for j in range(3) if j != i]
        gap = stats.multivariate_normal([float(a[j] - a[i]) for j in others], 0.25 * np.array([[2, 1], [1, 2]]))
        found = router(k=1, std=0.5).active_probability(a[None])[0, i].item()
        assert found == pytest.approx(gap.cdf([0, 0]), abs=1e-6)
    wide, neuron = torch.linspace(-2, 2, 9, dtype=torch.float64)[None], router(k=4, std=1.5)
    p = neuron.active_probability(wide)
    assert p.sum().item() == pytest.approx(4, abs=1e-7)
    share = (gradest.sample(neuron, wide, samples=40_000, seed=5) > 0).double().mean(0)
    assert ((share - p).abs() < 5 * (p * (1 - p)).sqrt() / 200).all()
    assert torch.autograd.gradcheck(neuron.active_probability, wide.clone().requires_grad_())
    tokens = torch.stack([wide, wide.flip(-1), 2 * wide])
    torch.testing.assert_close(neuron.expected_load(tokens[:, 0]), neuron.active_probability(tokens).sum((0, 1)))


def test_gates_are_the_softmax_of_the_largest():
    neuron, a = router(), torch.tensor([[0.3, 2.0, -1.0, 1.0]])
    gates = neuron.threshold(a, 0.5)
    torch.testing.assert_close(gates, torch.tensor([[0, 0.7310586, 0, 0.2689414]]))
    assert torch.equal(neuron.forward(a, torch.zeros(1, 1, 4))[0], gates)
    assert neuron.threshold(torch.zeros(1, 4), 0.5).tolist() == [[0.5, 0.5, 0, 0]]  # the first of equals
    noise = torch.tensor([[[0.0, -3.0, 0.0, 0.0]]])
    assert (neuron.forward(a, noise) > 0).tolist() == [[[True, False, False, True]]]
    kept = torch.softmax(torch.tensor([2.0, 1.0]), -1)
    slope = neuron.backward(a, torch.zeros(1, 1, 4), torch.tensor([[[5.0, 1.0, 7.0, 0.0]]]))
    wanted = torch.tensor([0, kept[0] * kept[1], 0, -kept[0] * kept[1]])
    torch.testing.assert_close(slope, wanted[None, None])


def test_held_noise_misses_what_opens_and_closes():
    """Its mean over 20,000 draws is beyond 20 standard errors off, as the docstring says; score of the noise is not."""
    _, gradient = gradest.exact(loss, A, router())
    found = gradest.estimate(loss, A, router(), "held_noise", draws=20_000, seed=5)
    assert ((found.gradient - gradient).abs() / found.standard_error).max() > 20
    key, a = gradest.Key(7), A.expand(200_000, 1, 1, 3).reshape(200_000, 1, 3)
    noise = router().noise(key, a, 1)[0]
    scored = (loss(router().forward(a, noise)) - 1.5)[:, None, None] * noise
    assert ((scored.mean(0) - gradient[0]).abs() < 5 * scored.std(0) / 200_000**0.5).all()


def test_what_is_refused():
    with pytest.raises(InvalidInput, match="opens 4 experts"):
        gradest.sample(router(k=4), A)
    with pytest.raises(TooManyPoints, match="Use fewer experts, a smaller k, threshold"):
        router(k=6).mean(torch.zeros(1, 1, 16))
    with pytest.raises(TooManyPoints):
        gradest.exact(loss, torch.zeros(1, 4, 16), router(k=3))
