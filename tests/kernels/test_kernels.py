"""Fused kernels draw the samples of the reference, bit for bit, and what is no number stays with its unit."""

import numpy as np
import pytest
import torch
from scipy import special, stats

import gradest
import gradest.nn
from gradest.errors import InvalidInput
from gradest.kernels import cpu, fused, reference


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(
    ("rows", "units", "draws"), [(5, 3, 2), (7, 40, 3), (1, 20, 1), (0, 3, 2), (4, 0, 1), (3, 2, 0), (900, 300, 1)]
)
def test_compiled_uniform_numbers_are_the_references_bits(rows, units, draws, dtype):
    generator = torch.Generator().manual_seed(0)
    seed0, seed1, row = torch.randint(-(1 << 31), 1 << 31, (3, rows), generator=generator).int()
    for stream in (0, 3, (1 << 32) - 1):
        arguments = (seed0, seed1), row, stream, draws, units, dtype
        found, wanted = cpu.uniform(*arguments), reference.uniform(*arguments)
        assert found.dtype == wanted.dtype == dtype
        assert torch.equal(found, wanted)


def test_words_of_any_stride():
    words = torch.arange(12, dtype=torch.int32).reshape(4, 3).T
    for seed in (words[:2], words[:2, :1].expand(2, 4)):
        arguments = (seed[0], seed[1]), words[2], 0, 2, 5, torch.float32
        assert torch.equal(cpu.uniform(*arguments), reference.uniform(*arguments))


FUSED = {
    "binary": "bernoulli",
    "times_smooth": "stochastic_times_smooth",
    "rectified": "noisy_rectifier",
    "one_hot": "categorical",
    "concrete": {"name": "hard_concrete", "temperature": 0.3},
    "normal": {"name": "noisy_rectifier", "distribution": "gaussian", "std": 0.7},
    "softmax": {"name": "gumbel_softmax", "temperature": 0.3},
    "binomial": "binomial",
    "poisson": "poisson",
    "repeated": "sigmoid",
    "scaled_normal": "diagonal_gaussian",
    "scaled_concrete": "tempered_binary_concrete",
    "scaled_softmax": "tempered_gumbel_softmax",
    "correlated": "correlated_bernoulli",
    "correlated_concrete": "correlated_binary_concrete",
    "ordered": "plackett_luce",
    "subset": "k_subset",
}
MORE = [
    *(("concrete", "binary_concrete"), ("normal", "gaussian"), ("normal", {"name": "noisy_sigmoid", "std": 1.5})),
    *(("binomial", {"name": "binomial", "trials": trials}) for trials in (1, 30)),
    ("subset", {"name": "k_subset", "k": 1}),
    ("correlated", {"name": "correlated_bernoulli", "correlation": 0.9}),
    *(("repeated", name) for name in ("heaviside", "rectifier")),
]
PAIRS = ("diagonal_gaussian", "tempered_binary_concrete")  # with two pre-activations a unit
SHAPES = [
    ((5,), (3,), 2),
    ((), (1,), 1),
    ((1,), (4099,), 2),
    ((700, 2), (1,), 3),
    ((300,), (7,), 2),
    ((130,), (1030,), 1),
]
CASES = [*FUSED.items(), *MORE]


def last_dims(neuron, classes):
    """The last dim of its events where they have two: so many classes, unless it takes two numbers."""
    return () if neuron.event_ndim == 1 else (2 if neuron.name in PAIRS else classes,)


FULL = (torch.float32, torch.float64)


def of_make_test(kernel, spec, dtype):
    """Each kernel in float32 and float64, other options of a kernel in float32, and a kernel in each of the narrow dtypes."""
    if FUSED.get(kernel) != spec:
        return dtype == torch.float32
    return dtype in FULL or (kernel, dtype) in (("binary", torch.bfloat16), ("normal", torch.float16))


@pytest.mark.parametrize(
    ("kernel", "spec", "dtype"),
    [
        pytest.param(*case, dtype, marks=() if of_make_test(*case, dtype) else pytest.mark.deep)
        for case in CASES
        for dtype in (*FULL, torch.bfloat16, torch.float16)
    ],
)
def test_fused_kernels_have_the_references_bits(kernel, spec, dtype, monkeypatch):
    """At any shape, number of draws and size of a, and not only the noise: the samples."""
    neuron, device = gradest.neuron(spec), torch.device("cpu")
    assert fused(kernel, device).__wrapped__ is getattr(cpu, kernel)
    for batch, event, draws in SHAPES:
        generator = torch.Generator().manual_seed(len(batch) + draws)
        classes = last_dims(neuron, 1 + event[0] % 6)
        for scale in (1, 6, 1e4):
            a = (scale * torch.randn(*batch, *event, *classes, generator=generator, dtype=torch.float64)).to(dtype)
            before, key = a.clone(), gradest.Key(5, stream=2)
            found = neuron.sample(key, a, draws)
            with monkeypatch.context() as patch:
                patch.setenv("GRADEST_KERNELS", "reference")
                assert fused(kernel, device) is None
                wanted = neuron.sample(key, a, draws)
            assert found.dtype == dtype
            assert torch.equal(found, wanted)
            assert torch.equal(a, before)


@pytest.mark.parametrize("dtype", FULL)
def test_noise_as_close_to_the_probability_as_can_be_decides_as_in_the_reference(dtype, monkeypatch):
    """Where a rough probability would not do: the kernel then looks at the exact one."""
    neuron, key = gradest.neuron("bernoulli"), gradest.Key(5)
    a = torch.logit(key.uniform_like(torch.zeros(3, 1500, dtype=dtype), 1)[0].double()).to(dtype)
    found = neuron.sample(key, a, 2)
    assert 0.05 < float(found[0].mean()) < 0.95
    monkeypatch.setenv("GRADEST_KERNELS", "reference")
    assert torch.equal(found, neuron.sample(key, a, 2))


@pytest.mark.parametrize("kernel", FUSED)
def test_what_is_not_a_number_stays_with_its_unit(kernel, monkeypatch):
    neuron, key = gradest.neuron(FUSED[kernel]), gradest.Key(1)
    a = torch.randn(600, 3, *last_dims(neuron, 4), generator=torch.Generator().manual_seed(0))
    a[7, 1] = torch.nan
    found = neuron.sample(key, a, 2)
    monkeypatch.setenv("GRADEST_KERNELS", "reference")
    assert torch.equal(found.nan_to_num(-1), neuron.sample(key, a, 2).nan_to_num(-1))
    assert not bool(found[:, 8:].isnan().any())


@pytest.mark.parametrize("trials", [1, 4, 30, 1000])
def test_the_binomial_count_inverts_the_distribution_function(trials):
    """In float64, where F(h - 1) <= z < F(h) to the accuracy that forward's recurrence has."""
    a = torch.tensor([-30.0, -6.0, -1.0, -1e-9, 0.0, 1e-9, 0.7, 6.0, 30.0], dtype=torch.float64)
    z = torch.linspace(2.0**-20, 1 - 2.0**-20, 301, dtype=torch.float64)[:, None]
    h = gradest.neuron("binomial", trials=trials).forward(a, z)
    p = special.expit(a.numpy())
    below, at = (stats.binom.cdf(h.numpy() - step, trials, p) for step in (1, 0))
    assert (below <= z.numpy() + 1e-11).all()
    assert (at > z.numpy() - 1e-11).all()
    assert bool((h.diff(dim=0) >= 0).all())


def test_poisson_counts_near_and_beyond_the_rates_that_are_added_up():
    """On both sides of the rate from which on counts are found by bisection, and in one tensor with the others."""
    neuron, key = gradest.neuron("poisson"), gradest.Key(3)
    a = torch.tensor([0.5, 63.9, 64.0, 64.1, 500.0], dtype=torch.float64).expand(400, 5)
    h, noise = neuron.sample(key, a, 1)[0], neuron.noise(key, a, 1)[0]
    wanted = stats.poisson.ppf(noise.numpy(), np.logaddexp(0, a.numpy()))
    np.testing.assert_array_equal(h.numpy(), wanted)
    assert torch.equal(neuron.sample(key, a[:, :3], 1)[0], h[:, :3])


@pytest.mark.parametrize("dtype", [torch.uint8, torch.bool])
@pytest.mark.parametrize("given", [torch.float32, torch.float64, torch.bfloat16])
def test_outputs_of_binary_units_as_bytes(dtype, given, monkeypatch):
    a = 3 * torch.randn(700, 9, generator=torch.Generator().manual_seed(0)).to(given)
    for kernels in ("", "reference"):
        monkeypatch.setenv("GRADEST_KERNELS", kernels)
        found = gradest.sample("bernoulli", a, 3, seed=1, dtype=dtype)
        assert found.dtype == dtype
        assert torch.equal(found, gradest.sample("bernoulli", a, 3, seed=1).to(dtype))

    class Never(type(gradest.neuron("bernoulli"))):
        def forward(self, a, noise):
            return torch.zeros_like(noise)

    class High(type(gradest.neuron("bernoulli"))):
        high = 3.0

    assert not bool(gradest.sample(Never(), a, 3, seed=1, dtype=dtype).any())
    if dtype == torch.uint8:
        assert torch.equal(gradest.sample(High(), a, 3, seed=1, dtype=dtype), 3 * found)
    for neuron in ("bipolar", "noisy_rectifier", High() if dtype == torch.bool else "categorical"):
        with pytest.raises(InvalidInput, match=f"cannot return {dtype}.*Omit `dtype`"):
            gradest.sample(neuron, a, seed=1, dtype=dtype)


@pytest.mark.parametrize("size", [10, 200_000])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16])
def test_one_entry_that_is_not_finite_is_seen(size, dtype):
    a = torch.randn(size, generator=torch.Generator().manual_seed(0)).to(dtype)
    assert cpu.all_finite(a)
    for place in (0, size // 2 + 1, size - 1):
        for bad in (torch.inf, -torch.inf, torch.nan):
            spoilt = a.clone()
            spoilt[place] = bad
            assert not cpu.all_finite(spoilt)
    if size > 1000:
        assert cpu.all_finite(torch.full((size,), torch.finfo(dtype).max, dtype=dtype))


def test_many_classes():
    neuron, a = gradest.neuron("categorical"), torch.randn(3, 2, 3000, generator=torch.Generator().manual_seed(0))
    assert torch.equal(neuron.sample(gradest.Key(1), a, 2), neuron.forward(a, neuron.noise(gradest.Key(1), a, 2)))


@pytest.mark.parametrize("kernel", FUSED)
@pytest.mark.parametrize("shape", [(0, 3), (3, 0), (0,)])
def test_nothing_to_draw(kernel, shape):
    neuron = gradest.neuron(FUSED[kernel])
    a = torch.zeros(*shape, *last_dims(neuron, 4))
    split = a.ndim - neuron.event_ndim
    batch, event = a.shape[:split], neuron.output_event(a.shape[split:])
    assert neuron.sample(gradest.Key(1), a, 2).shape == (2, *batch, *event)
    assert neuron.sample(gradest.Key(1), torch.zeros(2, *a.shape[split:]), 0).shape == (0, 2, *event)


@pytest.mark.parametrize("kernel", FUSED)
def test_samples_do_not_depend_on_threads_or_strides(kernel, monkeypatch):
    monkeypatch.setattr(cpu.tensors, "_NUMBERS_PER_THREAD", 1 << 12)
    neuron = gradest.neuron(FUSED[kernel])
    a = torch.randn(500, 100, *last_dims(neuron, 7), generator=torch.Generator().manual_seed(0))
    wanted, before = neuron.sample(gradest.Key(1), a, 3), torch.get_num_threads()
    try:
        for threads in (1, 2, 5):
            torch.set_num_threads(threads)
            assert torch.equal(neuron.sample(gradest.Key(1), a, 3), wanted)
    finally:
        torch.set_num_threads(before)
    assert torch.equal(neuron.sample(gradest.Key(1), a.transpose(0, 1).contiguous().transpose(0, 1), 3), wanted)


def test_what_changes_a_neuron_does_not_inherit_its_kernel():
    bernoulli, key, a = type(gradest.neuron("bernoulli")), gradest.Key(1), torch.zeros(200, 3)

    class Never(bernoulli):
        def forward(self, a, noise):
            return torch.zeros_like(noise)

    class Quiet:
        def noise(self, key, a, draws):
            return torch.full((draws, *a.shape), 0.75)

    class Mixed(Quiet, bernoulli):
        pass

    class Renamed(bernoulli):
        high = 3.0

    class Scoreless(bernoulli):
        def score(self, h, a):
            return torch.zeros_like(h)

    class Steep(type(gradest.neuron("noisy_rectifier"))):
        def backward(self, a, noise, grad_h):
            return 2 * super().backward(a, noise, grad_h)

    assert float(bernoulli().sample(key, a, 4).mean()) == pytest.approx(0.5, abs=0.1)
    assert not bool(Never().sample(key, a, 4).any())
    assert not bool(Mixed().sample(key, a, 4).any())
    assert torch.equal(Renamed().sample(key, a, 4), 3 * bernoulli().sample(key, a, 4))
    assert "sample" not in vars(Renamed)
    h = bernoulli().sample(key, a, 2)
    assert bool(bernoulli().weighted_score(h, a, torch.ones(2, 200)).any())
    assert not bool(Scoreless().weighted_score(h, a, torch.ones(2, 200)).any())
    assert not bool(Never().antithetic(key, a, 4).any())
    assert not bool(Mixed().antithetic(key, a, 4)[:4].any())
    assert torch.equal(Renamed().antithetic(key, a, 4), 3 * bernoulli().antithetic(key, a, 4))
    z, ones = Steep().sample(key, a, 2), torch.ones(2, 200, 3)
    assert torch.equal(Steep().pullback(key, a, z, ones), 2 * (z > 0))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("shape", [(1, 3), (7, 1), (300, 5, 7), (40, 2000), (3, 0)])
def test_moments_do_not_depend_on_how_rows_are_cut_nor_on_the_kernel(dtype, shape):
    values = torch.randn(shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64).to(dtype) + 100
    mean, squares = reference.moments([values])
    for parts in ([values], list(values.split(3)), [values[:1], values[1:]]):
        for kernel in (reference.moments, cpu.moments):
            assert all(torch.equal(*pair) for pair in zip(kernel(parts), (mean, squares), strict=True))
    torch.testing.assert_close(mean, values.double().mean(0))
    torch.testing.assert_close(squares, (values.double() - values.double().mean(0)).square().sum(0))
    assert cpu.moments([values.expand(2, *shape).transpose(0, 1)])[0].shape == (2, *shape[1:])
