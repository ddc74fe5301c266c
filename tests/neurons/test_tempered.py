"""Relaxed units whose temperature is a pre-activation: laws and slopes by sums on a grid, the units with a fixed temperature, and
pathwise derivatives."""

import numpy as np
import pytest
import torch
from scipy import special

import gradest
from gradest.errors import InvalidInput

BINARY = torch.tensor([[[0.6, -0.4], [-1.1, 0.7]]], dtype=torch.float64)  # logit and log temperature of two units
ONE_HOT = torch.tensor([[[0.6, -0.4, 1.1, -0.3]]], dtype=torch.float64)  # logits of three classes, and log temperature
NAMES = ("tempered_binary_concrete", "tempered_gumbel_softmax")
FIXED = {"tempered_binary_concrete": "binary_concrete", "tempered_gumbel_softmax": "gumbel_softmax"}


def loss_of_two(h):
    """Of two units, which meet."""
    return torch.exp(1.3 * h[..., 0]) * torch.sin(3 * h[..., 1] + 0.4)


def loss_of_classes(h):
    """Of one unit of three classes."""
    return torch.exp(1.3 * h[..., 0, 0]) + torch.sin(3 * h[..., 0, 1])


def of_two_on_a_grid(a):
    """E[loss_of_two]: the units are independent, and the loss is a product, so it takes two sums over logistic noise."""
    z = np.arange(-40, 40, 0.002)
    density = special.expit(z) * special.expit(-z) * 0.002
    first, second = (special.expit((m + z) / np.exp(log_t)) for m, log_t in a)
    return (density * np.exp(1.3 * first)).sum() * (density * np.sin(3 * second + 0.4)).sum()


def of_classes_on_a_grid(a):
    """E[loss_of_classes], summed over differences of Gumbel noise to the last class, whose density is 2 u v/(1 + u + v)³."""
    x = np.arange(-25, 25, 0.1)
    u, v = np.exp(-x)[:, None], np.exp(-x)[None]
    y = np.stack(np.broadcast_arrays(x[:, None] + a[0] - a[2], x[None] + a[1] - a[2], 0.0), -1)
    h = special.softmax(y / np.exp(a[3]), -1)
    values = loss_of_classes(torch.from_numpy(h)[:, :, None]).numpy()
    return (values * 2 * u * v / (1 + u + v) ** 3).sum() * 0.1**2


@pytest.mark.parametrize(
    ("name", "a", "f", "on_a_grid"),
    [(NAMES[0], BINARY, loss_of_two, of_two_on_a_grid), (NAMES[1], ONE_HOT, loss_of_classes, of_classes_on_a_grid)],
)
def test_the_law_and_its_derivative(name, a, f, on_a_grid):
    """Slopes in all pre-activations, by differences of sums on a grid."""
    value, gradient = gradest.exact(f, a, name)
    at = a[0].numpy() if name == NAMES[0] else a[0, 0].numpy()
    assert value.item() == pytest.approx(on_a_grid(at), abs=1e-6)
    for place in np.ndindex(at.shape):
        step = np.zeros(at.shape)
        step[place] = 1e-3
        slope = (on_a_grid(at + step) - on_a_grid(at - step)) / 2e-3
        assert gradient.reshape(at.shape)[place].item() == pytest.approx(slope, abs=2e-5)


@pytest.mark.parametrize("log_temperature", [-3.0, 0.0, 2.0])
@pytest.mark.parametrize("name", NAMES)
def test_at_one_temperature_it_is_the_unit_with_a_fixed_one(name, log_temperature):
    """The same noise gives the same output and the same derivative in the logits."""
    fixed, unit = gradest.neuron(FIXED[name], temperature=np.exp(log_temperature)), gradest.neuron(name)
    logits = torch.linspace(-3, 2, 12, dtype=torch.float64).reshape((2, 6) if name == NAMES[0] else (2, 2, 3))
    hot = torch.full_like(logits if name == NAMES[0] else logits[..., 0], log_temperature)[..., None]
    a = torch.cat([logits[..., None] if name == NAMES[0] else logits, hot], -1)
    key = gradest.Key(3)
    h = fixed.sample(key, logits, 5)
    torch.testing.assert_close(unit.sample(key, a, 5), h)
    torch.testing.assert_close(unit.mean(a), fixed.mean(logits))
    assert torch.equal(unit.threshold(a, 0.3), fixed.threshold(logits, 0.3))
    grad = torch.cos(7 * h)
    given = unit.backward(a, unit.noise(key, a, 5), grad)[..., :-1].reshape(h.shape)
    torch.testing.assert_close(given, fixed.backward(logits, fixed.noise(key, logits, 5), grad))


@pytest.mark.parametrize(
    ("name", "a", "f"), [(NAMES[0], BINARY, loss_of_two), (NAMES[1], ONE_HOT, loss_of_classes)], ids=NAMES
)
def test_pathwise_is_unbiased_in_logits_and_temperature(name, a, f):
    """40,000 draws within 5 standard errors, a false alarm of 3e-6; half of each component is beyond ten."""
    _, gradient = gradest.exact(f, a, name)
    found = gradest.estimate(f, a, name, "pathwise", draws=40_000, seed=5)
    assert ((found.gradient - gradient).abs() < 5 * found.standard_error).all()
    in_temperature = (gradient.abs() / 2 / found.standard_error)[..., -1]
    assert in_temperature.max() > 10
    assert (gradient.abs() / 2 / found.standard_error)[..., :-1].max() > 10


@pytest.mark.parametrize("temperature", [1e-6, 0.3, 40.0])
def test_two_classes_are_the_binary_unit(temperature):
    logits = torch.tensor([[0.4, -2.0], [3.0, 3.5], [-9.0, 4.0]], dtype=torch.float64)
    hot = torch.full((3, 1), np.log(temperature), dtype=torch.float64)
    wanted = gradest.neuron(NAMES[0]).mean(torch.cat([logits[:, :1] - logits[:, 1:], hot], -1))
    found = gradest.neuron(NAMES[1]).mean(torch.cat([logits, hot], -1))[:, 0]
    torch.testing.assert_close(found, wanted, rtol=0, atol=1e-5)


def test_a_masked_class_leaves_the_law_of_the_others():
    masked = torch.cat([ONE_HOT[..., :2], torch.full((1, 1, 1), -1e9, dtype=torch.float64), ONE_HOT[..., 3:]], -1)
    two = torch.cat([ONE_HOT[..., :2], ONE_HOT[..., 3:]], -1)

    def f(h):
        return torch.exp(1.3 * h[..., 0, 0]) + torch.sin(3 * h[..., 0, 1])

    value, gradient = gradest.exact(f, masked, NAMES[1])
    wanted, slope = gradest.exact(f, two, NAMES[1])
    torch.testing.assert_close(value, wanted, rtol=0, atol=1e-5)
    torch.testing.assert_close(gradient[..., [0, 1, 3]], slope, rtol=0, atol=1e-4)
    h = gradest.sample(NAMES[1], masked, samples=100, seed=1)
    assert bool((h[..., 2] < 1e-300).all())


@pytest.mark.parametrize("name", NAMES)
def test_extreme_temperatures_are_finite(name):
    """Derivatives too, in both precisions, and the largest temperatures make an even output."""
    unit, classes = gradest.neuron(name), 1 if name == NAMES[0] else 3
    for dtype in (torch.float32, torch.float64):
        for log_temperature in (-69.0, 69.0):
            a = torch.tensor([[*[0.5, 1e4, -1e4][:classes], log_temperature]], dtype=dtype)
            h, noise = unit.sample(gradest.Key(1), a, 50), unit.noise(gradest.Key(1), a, 50)
            assert bool(torch.isfinite(unit.backward(a, noise, torch.ones_like(h).cumsum(-1))).all())
            assert bool(torch.isfinite(h).all())
            if log_temperature > 0:
                torch.testing.assert_close(h, torch.full_like(h, 1 / max(2, classes)))


def test_what_is_refused():
    with pytest.raises(
        InvalidInput, match=r"the logit and the log temperature of each unit, but here an event is \[3, 4\]"
    ):
        gradest.sample(NAMES[0], torch.zeros(3, 4))
    with pytest.raises(InvalidInput, match=r"the logits of C classes and the log temperature"):
        gradest.sample(NAMES[1], torch.zeros(3, 1))
    for name in NAMES:
        with pytest.raises(InvalidInput, match=r"log temperature between -69 and 69"):
            gradest.sample(name, torch.full((1, 2), 70.0))
