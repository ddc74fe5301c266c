"""The Gumbel-softmax unit against the binary concrete one, against integrals on a fine grid, and against its own samples."""

import numpy as np
import pytest
import torch
from scipy import special, stats

import gradest
from gradest.errors import InvalidInput


def unit(temperature=0.5):
    return gradest.neuron("gumbel_softmax", temperature=temperature)


@pytest.mark.parametrize("temperature", [0.5, 1.0])
def test_with_two_classes_it_is_the_binary_concrete_unit(temperature):
    binary = gradest.neuron("binary_concrete", temperature=temperature)
    a = torch.linspace(-12, 12, 13, dtype=torch.float64)
    pair = torch.stack([a + 1, torch.ones_like(a)], -1)
    np.testing.assert_allclose(unit(temperature).mean(pair)[..., 0], binary.mean(a), atol=1e-10)
    # the same noise, the same output and the same slope
    g = unit().noise(gradest.Key(1), pair, 5)
    z = g[..., 0] - g[..., 1]
    np.testing.assert_allclose(unit(temperature).forward(pair, g)[..., 0], binary.forward(a, z), atol=1e-12)
    grad = torch.stack([torch.full_like(z, 3.0), torch.zeros_like(z)], -1)
    slope = binary.backward(a, z, torch.full_like(z, 3.0))
    np.testing.assert_allclose(unit(temperature).backward(pair, g, grad)[..., 0], slope, rtol=1e-9)
    h = gradest.sample(unit(temperature), torch.tensor([[0.7, 0.0]]).expand(20_000, 1, 2), seed=1)[..., 0].flatten()
    other = gradest.sample(binary, torch.full((20_000, 1), 0.7), seed=2).flatten()
    assert stats.ks_2samp(h.numpy(), other.numpy()).pvalue > 1e-6


@pytest.mark.parametrize(("temperature", "atol"), [(0.5, 7e-6), (0.2, 4e-5), (0.1, 1e-4)])
@pytest.mark.parametrize("a", [[0.4, -0.9, 0.1], [4.0, -5.0, 1.0]])
def test_three_classes(a, temperature, atol):
    """(G_1 - G_3, G_2 - G_3) has the density 2 e^(-x-y) / (1 + e^(-x) + e^(-y))³; the trapezoid rule is exact to rounding."""
    x = np.linspace(-45, 45, 1201)
    s, t = np.exp(-x)[:, None], np.exp(-x)[None, :]
    density = 2 * s * t / (1 + s + t) ** 3 * (x[1] - x[0]) ** 2
    logits = np.stack(np.broadcast_arrays(a[0] + x[:, None], a[1] + x[None, :], a[2]), -1)
    h = special.softmax(logits / temperature, -1)
    np.testing.assert_allclose(density.sum(), 1, rtol=1e-12)
    wanted = (density[..., None] * h).sum((0, 1))
    logits = torch.tensor([a], dtype=torch.float64)
    np.testing.assert_allclose(unit(temperature).mean(logits)[0], wanted, atol=atol)
    squares = (density[..., None] * h**2).sum((0, 1)).sum()
    loss, _ = gradest.exact(lambda h: h.square().sum((-1, -2)), logits, neuron=unit(temperature))
    np.testing.assert_allclose(loss, squares, atol=7e-6)  # refined further than the mean


@pytest.mark.parametrize("classes", [1, 4, 10, 100])
def test_the_mean_of_many_classes_is_that_of_samples(classes):
    a = torch.linspace(-2, 2, classes, dtype=torch.float64)[None].sin() * 2
    h = gradest.sample(unit(), a, samples=20_000, seed=3)
    mean = unit().mean(a)
    assert mean.sum().item() == pytest.approx(1, abs=1e-12)
    assert ((h.mean(0) - mean).abs() < 5 * h.std(0) / 20_000**0.5 + 6e-3).all()
    values, weights = unit().law(a)
    assert torch.allclose((values * weights[..., None]).sum(0), mean, rtol=1e-12, atol=0)


def test_the_largest_entry_has_the_law_of_the_categorical_unit():
    a = torch.tensor([[0.5, -1.0, 1.5, 0.0]])
    h = gradest.sample(unit(), a, samples=20_000, seed=4)[:, 0]
    counts = np.bincount(h.argmax(-1).numpy(), minlength=4)
    assert stats.chisquare(counts, 20_000 * special.softmax(a[0].double().numpy())).pvalue > 1e-6


def test_threshold_is_one_hot():
    a = torch.tensor([[0.5, 3.0, 3.0], [-1.0, -2.0, -3.0]])
    for level in (0.1, 0.9):
        assert unit().threshold(a, level).tolist() == [[0, 1, 0], [1, 0, 0]]


@pytest.mark.parametrize("classes", [3, 5])
def test_the_mean_is_differentiable_and_right_in_float32(classes):
    a = torch.linspace(-1, 1, classes, dtype=torch.float64)[None, None].requires_grad_()
    assert torch.autograd.gradcheck(unit().mean, (a,))
    assert torch.allclose(unit().mean(a.float()).double(), unit().mean(a), atol=1e-6)


def test_a_saturated_slope_does_not_cancel():
    a, z = torch.tensor([[0.0, 12.0]]), torch.zeros(1, 2)  # 1 - h = e^-24 is below the rounding error of float32
    slope = unit().backward(a, z, torch.tensor([[1.0, 0.0]]))
    assert slope[0].tolist() == pytest.approx([2 * np.exp(-24.0), -2 * np.exp(-24.0)], rel=1e-4)


def test_too_many_classes():
    with pytest.raises(InvalidInput, match="classes"):
        unit().mean(torch.zeros(1, 30_000))


def test_nodes_first_asked_for_in_inference_mode_serve_autograd_later():
    """They are kept: as tensors of inference mode they could not be saved for a backward pass."""
    a = torch.zeros(1, 7, dtype=torch.float64)
    with torch.inference_mode():
        unit().mean(a)
    a.requires_grad_()
    unit().mean(a)[0, 0].backward()
    assert a.grad.abs().max() > 0.1
