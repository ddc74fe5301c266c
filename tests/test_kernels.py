"""The elementary functions: accuracy in the tails, finite derivatives, and bits that depend on neither position nor kernel."""

import multiprocessing
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor

import numpy as np
import pytest
import torch
from scipy import special

import gradest
from gradest.errors import InvalidInput
from gradest.kernels import cpu, reference, select
from gradest.kernels.quadrature import gauss_legendre
from gradest.kernels.reference import leading_mean, leading_sum, logit, normal_cdf, sigmoid, softplus


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 5e-7), (torch.float64, 1e-15)])
def test_accuracy(dtype, tolerance):
    x = torch.linspace(-79, 79, 4001, dtype=dtype)
    reference = x.double().numpy()
    assert_relative(sigmoid(x), special.expit(reference), tolerance)
    assert_relative(softplus(x), np.logaddexp(0, reference), tolerance)
    below = x[(x > -13 if dtype == torch.float32 else x > -37)]
    assert_relative(normal_cdf(below), special.ndtr(below.double().numpy()), 200 * tolerance)
    u = torch.tensor([2.0**-24, 1e-3, 0.3, 0.5 + 1e-6, 0.9, 1 - 2.0**-24], dtype=dtype)
    np.testing.assert_allclose(
        logit(u).double(), special.logit(u.double().numpy()), atol=2 * tolerance, rtol=4 * tolerance
    )


def assert_relative(given, wanted, tolerance):
    np.testing.assert_allclose(given.double().numpy(), wanted, rtol=tolerance, atol=1e-300)


@pytest.mark.parametrize("function", [sigmoid, softplus])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_derivatives(function, dtype):
    x = torch.tensor([-1e4, -90, -2, 0.0, 2, 90, 1e4], dtype=dtype, requires_grad=True)
    (slope,) = torch.autograd.grad(function(x).sum(), x)
    p = special.expit(x.detach().double().numpy())
    wanted = p * (1 - p) if function is sigmoid else p
    np.testing.assert_allclose(slope.double(), wanted, atol=1e-7)


@pytest.mark.parametrize("function", [sigmoid, softplus, logit, torch.exp, torch.special.ndtri, normal_cdf])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_bits_do_not_depend_on_position(function, dtype):
    x = torch.rand(100_003, generator=torch.Generator().manual_seed(0), dtype=dtype) * 0.98 + 0.01
    whole = function(x)
    for start in (0, 1, 17, 49_990, 50_001, 99_970):
        for size in (1, 3, 8, 15, 33):
            part = slice(start, start + size)
            assert torch.equal(function(x[part].clone()), whole[part])
    strided = torch.stack([x, x], 1)[:, 0]
    assert torch.equal(function(strided), whole)


def test_sums_do_not_depend_on_position():
    x = torch.rand(13, 1001, generator=torch.Generator().manual_seed(0))
    for reduce in (leading_sum, leading_mean):
        whole = reduce(x)
        for start in (0, 500, 997):
            assert torch.equal(reduce(x[:, start : start + 4].clone()), whole[start : start + 4])
            assert torch.equal(reduce(x[:, start].clone()), whole[start])
    assert torch.allclose(leading_sum(x), x.sum(0))
    assert torch.equal(leading_sum(torch.zeros(0, 3)), torch.zeros(3))


def test_quadrature():
    x, w = gauss_legendre(8)
    for degree in range(16):
        assert float((w * x**degree).sum()) == pytest.approx(1 / (degree + 1), rel=1e-13)


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


def test_several_threads_at_once():
    keys = [gradest.Key(seed) for seed in range(8)]
    wanted = [key.uniform((500,), (300,)) for key in keys]
    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(lambda key: key.uniform((500,), (300,)), keys))
    assert all(torch.equal(one, two) for one, two in zip(found, wanted, strict=True))


@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
def test_after_a_fork():
    wanted = gradest.Key(3).uniform((500,), (300,))
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("fork")) as pool:
        assert pool.submit(_total).result(60) == float(wanted.double().sum())


def _total():
    return float(gradest.Key(3).uniform((500,), (300,)).double().sum())


def test_the_environment_forces_a_kernel(monkeypatch):
    device = torch.device("cpu")
    assert select("uniform", device) is cpu.uniform
    assert select("uniform", torch.device("meta")) is reference.uniform
    monkeypatch.setenv("GRADEST_KERNELS", "reference")
    assert select("uniform", device) is reference.uniform
    monkeypatch.setenv("GRADEST_KERNELS", "gpu")
    with pytest.raises(InvalidInput, match="GRADEST_KERNELS is reference or cpu, or not set; it is 'gpu'"):
        select("uniform", device)


@pytest.mark.parametrize("terms", [(1 << 14) + 1, 1 << 15, 100_000])
def test_sums_do_not_depend_on_threads(terms):
    x = torch.rand(terms, 2, generator=torch.Generator().manual_seed(0))
    before = torch.get_num_threads()
    try:
        found = []
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            found += [leading_sum(x)[0], leading_sum(x[:, 0]), leading_sum(x[:, :1])[0]]
    finally:
        torch.set_num_threads(before)
    assert len(set(map(float, found))) == 1
    assert float(found[0]) == pytest.approx(float(x[:, 0].double().sum()), rel=1e-6)
