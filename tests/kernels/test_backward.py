"""The kernels that estimators use: the bits of the reference, mirrored outputs, and derivatives of forward."""

import numpy as np
import pytest
import torch
from scipy import special

import gradest
import gradest.nn
from gradest.errors import InvalidInput
from gradest.kernels import cpu, portable, reference
from gradest.kernels.stable import (
    SEQUENTIAL_TERMS,
)

PULLED = [
    *("noisy_rectifier", "stochastic_times_smooth", "gaussian", "binary_concrete", "hard_concrete", "noisy_sigmoid"),
    *("gumbel_softmax", "rectifier", "sigmoid", "correlated_binary_concrete"),
]


def of_backward(dtype, scale=1.0):
    """Pre-activations, outputs, gradients and weights of 1 to 9 draws, in shapes that blocks do not divide evenly."""
    generator = torch.Generator().manual_seed(0)
    for shape in ((5, 3), (3, 2, 1100), (700, 2), (1, 1), (0, 3), (2, 0)):
        for draws in (1, 2, 3, SEQUENTIAL_TERMS, SEQUENTIAL_TERMS + 1):
            a = (scale * torch.randn(*shape, generator=generator, dtype=torch.float64)).to(dtype)
            h = torch.rand(draws, *shape, generator=generator, dtype=dtype).round()
            grad = torch.randn(draws, *shape, generator=generator, dtype=dtype)
            yield a, h, grad, torch.randn(draws, *shape[:-1], generator=generator, dtype=dtype)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("scale", [1, 6, 1e4])
def test_backward_kernels_have_the_references_bits(dtype, scale):
    for a, h, grad, weights in of_backward(dtype, scale):
        positive = h * grad.abs()
        pairs = torch.cat([h, h.flip(-1)])
        for name, arguments in (
            ("logistic_score", (a, h, weights, 1.0)),
            ("antithetic_score", (a, pairs, torch.cat([weights, -weights.flip(-1)]), 1.0)),
            *([("leave_one_out_score", (a, h, weights, 1.0))] if len(h) > 1 else []),
            ("logistic_backward", (a, grad[0], 1.3, 2.6)),
            *(("surrogate_backward", (a, grad[0], shape, 1.3, 2.6)) for shape in range(4)),
            ("times_smooth_backward", (a, positive, grad)),
            ("rectified_backward", (positive, grad)),
        ):
            copies = [x.clone() if isinstance(x, torch.Tensor) else x for x in arguments]
            found, wanted = getattr(cpu, name)(*arguments), getattr(reference, name)(*arguments)
            assert found.dtype == wanted.dtype == dtype
            assert torch.equal(found, wanted), name
            strided = [x.mT.contiguous().mT if isinstance(x, torch.Tensor) and x.ndim > 1 else x for x in arguments]
            assert torch.equal(getattr(cpu, name)(*strided), wanted), name
            assert all(map(same, copies, arguments))


def same(one, two):
    return torch.equal(one, two) if isinstance(one, torch.Tensor) else one == two


def test_backward_kernels_are_the_derivatives():
    """Against the definitions, in float64."""
    for a, h, grad, weights in of_backward(torch.float64):
        p = special.expit(a.numpy())
        b, g, w = h.numpy(), grad.numpy(), weights.numpy()[..., None]
        pairs = np.concatenate([b, b[..., ::-1]])
        for found, wanted in (
            (cpu.logistic_score(a, h, weights, 1.0), (w * (b - p)).sum(0)),
            (
                cpu.leave_one_out_score(a, torch.cat([h, 1 - h]), torch.cat([weights, -weights]), 1.0),
                (w * (2 * b - 1)).sum(0) / (2 * len(b) - 1),
            ),
            (
                cpu.antithetic_score(a, torch.from_numpy(pairs), torch.cat([weights, -weights]), 1.0),
                (w * (b - b[..., ::-1])).sum(0) / len(b) * special.expit(np.abs(a.numpy())),
            ),
            (cpu.logistic_backward(a, grad[0], 1.0, 2.0), 2 * p * (1 - p) * g[0]),
            (cpu.times_smooth_backward(a, h * torch.from_numpy(p) ** 0.5, grad), b * g * p**0.5 * (1 - p) / 2),
            (cpu.rectified_backward(h, grad), b * g),
        ):
            np.testing.assert_allclose(found.numpy(), wanted, rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("name", PULLED)
def test_pullback_is_backward_at_the_noise_drawn_again(name, dtype, monkeypatch):
    neuron, key = gradest.neuron(name), gradest.Key(1)
    for given in of_backward(torch.float32, scale=3):
        a, _, grad, _ = (x.to(dtype) for x in given)
        if neuron.event_ndim == 2 and not a.shape[-1]:
            continue  # no classes
        h = neuron.sample(key, a, len(grad))
        with monkeypatch.context() as patch:
            patch.setenv("GRADEST_KERNELS", "reference")
            wanted = neuron.backward(a, neuron.noise(key, a, len(grad)), grad)
        for strided in (grad, grad.mT.contiguous().mT):
            found = neuron.pullback(key, a, h, strided)
            assert found.dtype == dtype
            assert torch.equal(found, wanted)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("name", ["logistic_normal", "invertible_gaussian", "noisy_top_k"])
def test_pullback_of_a_softmax_of_normal_noise(name, dtype, monkeypatch):
    neuron, key, generator = gradest.neuron(name), gradest.Key(1), torch.Generator().manual_seed(0)
    for shape, draws in (((5, 3, 3), 2), ((130, 2, 17), 1)):
        a = (3 * torch.randn(*shape, generator=generator)).to(dtype)
        h = neuron.sample(key, a, draws)
        grad = torch.randn(h.shape, generator=generator).to(dtype)
        with monkeypatch.context() as patch:
            patch.setenv("GRADEST_KERNELS", "reference")
            wanted = neuron.backward(a, neuron.noise(key, a, draws), grad)
        found = neuron.pullback(key, a, h, grad)
        assert found.dtype == dtype
        assert torch.equal(found, wanted)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_slope_of_a_saturated_sigmoid_has_its_digits(dtype):
    x = torch.linspace(-40, 40, 4001, dtype=dtype)
    p = special.expit(x.double().numpy())
    wanted = p * special.expit(-x.double().numpy())
    np.testing.assert_allclose(
        portable.sigmoid_slope(x).double(), wanted, rtol=2e-4 if dtype == torch.float32 else 4e-13
    )


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("name", ["diagonal_gaussian", "tempered_binary_concrete"])
def test_pullback_of_two_pre_activations_a_unit(name, dtype, monkeypatch):
    neuron, key, generator = gradest.neuron(name), gradest.Key(1), torch.Generator().manual_seed(0)
    for shape, draws in (((5, 3), 2), ((3, 2, 1100), 1), ((700, 2), 3), ((0, 3), 2), ((2, 0), 2)):
        a = (torch.tensor([30.0, 60]) * torch.randn(*shape, 2, generator=generator)).to(dtype)
        grad = torch.randn(draws, *shape, generator=generator).to(dtype)
        h = neuron.sample(key, a, draws)
        with monkeypatch.context() as patch:
            patch.setenv("GRADEST_KERNELS", "reference")
            wanted = neuron.backward(a, neuron.noise(key, a, draws), grad)
        for strided in (grad, grad.mT.contiguous().mT):
            found = neuron.pullback(key, a, h, strided)
            assert found.dtype == dtype
            assert found.shape == (draws, *a.shape)
            assert torch.equal(found, wanted)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_pullback_of_a_learned_temperature(dtype, monkeypatch):
    """At few classes and at more than there are lanes, and where log τ is so low that all classes but one underflow."""
    neuron, key = gradest.neuron("tempered_gumbel_softmax"), gradest.Key(1)
    generator = torch.Generator().manual_seed(0)
    for batch, units, classes, draws in (((5,), 130, 1, 2), ((3, 2), 70, 8, 3), ((), 1, 2500, 1), ((0,), 3, 4, 2)):
        a = 30 * torch.randn(*batch, units, classes + 1, generator=generator)
        a, grad = a.clamp(-60, 60).to(dtype), torch.randn(draws, *batch, units, classes, generator=generator).to(dtype)
        found = neuron.pullback(key, a, neuron.sample(key, a, draws), grad)
        with monkeypatch.context() as patch:
            patch.setenv("GRADEST_KERNELS", "reference")
            wanted = neuron.backward(a, neuron.noise(key, a, draws), grad)
        assert found.dtype == dtype
        assert torch.equal(found, wanted)


@pytest.mark.parametrize("name", PULLED)
def test_backward_is_the_derivative_of_forward(name):
    """At fixed noise, by autograd through forward; also where the outputs are saturated."""
    neuron = gradest.neuron(name)
    a = 5 * torch.randn(30, 4, 5, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    moving, noise = a.clone().requires_grad_(), neuron.noise(gradest.Key(1), a, 1)
    grad = torch.randn(1, *a.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    (wanted,) = torch.autograd.grad(neuron.forward(moving, noise), moving, grad)
    torch.testing.assert_close(neuron.backward(a, noise, grad)[0], wanted, rtol=1e-8, atol=1e-13)


@pytest.mark.parametrize("name", ["bernoulli", "bipolar"])
def test_antithetic_outputs_are_those_of_mirrored_noise(name, monkeypatch):
    neuron, key = gradest.neuron(name), gradest.Key(1)
    for a, *_ in of_backward(torch.float32, scale=3):
        noise = neuron.noise(key, a, 3)
        wanted = torch.cat([neuron.forward(a, noise), neuron.forward(a, 1 - noise)])
        assert torch.equal(neuron.antithetic(key, a, 3), wanted)
        with monkeypatch.context() as patch:
            patch.setenv("GRADEST_KERNELS", "reference")
            assert torch.equal(neuron.antithetic(key, a, 3), wanted)


@pytest.mark.parametrize("name", ["bernoulli", "bipolar", "categorical"])
def test_weighted_score_is_the_sum_of_scores(name):
    neuron = gradest.neuron(name)
    a = torch.randn(4, 3, 5, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    h = neuron.sample(gradest.Key(1), a, 3)
    weights = torch.randn(3, *a.shape[: 3 - neuron.event_ndim], dtype=torch.float64)
    wanted = sum(w[(..., *[None] * neuron.event_ndim)] * neuron.score(x, a) for w, x in zip(weights, h, strict=True))
    assert torch.allclose(neuron.weighted_score(h, a, weights), wanted, rtol=1e-12, atol=1e-14)
    moving = a.clone().requires_grad_()
    assert neuron.weighted_score(h, moving, weights).requires_grad
    apart = (weights - weights.mean(0)) / 2
    wanted = neuron.weighted_score(h, a, apart)
    assert torch.allclose(neuron.leave_one_out_score(h, a, weights), wanted, rtol=1e-12, atol=1e-14)
    assert neuron.leave_one_out_score(h, moving, weights).requires_grad


@pytest.mark.parametrize("a", [(8e37, -8e37, 0, 0), (0, -1e9, 1, -60), (0, -1e9, 1, -69), (1e30, 0, 1, -69)])
@pytest.mark.parametrize("kernels", ["cpu", "reference"])
def test_a_class_that_is_never_drawn_has_no_part_in_the_gradient_of_a_temperature(a, kernels, monkeypatch):
    """Its output is not 0, but the least that the softmax gives; times x, which is huge, it would count."""
    monkeypatch.setenv("GRADEST_KERNELS", kernels)
    neuron, key = gradest.neuron("tempered_gumbel_softmax"), gradest.Key(3)
    given, grad = torch.tensor([[a]]), torch.tensor([[[[1.0, -2.0, 3.0]]]])
    found = neuron.pullback(key, given, neuron.sample(key, given, 1), grad)[0, 0, 0]
    left = torch.tensor([one for one in range(3) if a[one] > -1e8 and (a[0] < 2 or one == 0)])
    fewer = torch.cat([given[0, 0, left], given[0, 0, 3:]]).double()
    noise = neuron.noise(key, given, 1)[0, 0, 0, left].double()
    wanted = neuron.backward(fewer, noise, grad[0, 0, 0, left].double())
    assert torch.equal(found[[one for one in range(3) if one not in left]], torch.zeros(3 - len(left)))
    torch.testing.assert_close(found[[*left.tolist(), 3]].double(), wanted, rtol=1e-4, atol=0.0)


@pytest.mark.parametrize(
    "name",
    [
        *("binary_concrete", "diagonal_gaussian", "gumbel_softmax", "tempered_gumbel_softmax"),
        *("noisy_rectifier", "noisy_sigmoid", "rectifier", "stochastic_times_smooth"),
    ],
)
def test_a_gradient_of_fewer_draws_is_refused_and_not_read_beyond_its_end(name, monkeypatch):
    monkeypatch.setenv("GRADEST_KERNELS", "cpu")
    neuron, key = gradest.neuron(name), gradest.Key(3)
    a = torch.zeros(2, *neuron.example_events[0])
    h = neuron.sample(key, a, 2)
    with pytest.raises(
        InvalidInput, match=rf"has {h[0].numel()} numbers, and there are {h.numel()} outputs; expand it"
    ):
        neuron.pullback(key, a, h, h[:1])
