"""The elementary functions: accuracy in the tails, finite derivatives, and bits that depend on neither position nor kernel."""

import math

import numba
import numpy as np
import pytest
import torch
from scipy import special

from gradest.contract.numerics import gauss_legendre
from gradest.kernels import cpu, portable
from gradest.kernels.stable import (
    leading_mean,
    leading_sum,
    logit,
    normal_cdf,
    sigmoid,
    sinh_cosh,
    softplus,
)
from tests.selection import deep


def test_the_logistic_of_a_normal_number():
    z = torch.cat([torch.linspace(-9, 9, 4001), torch.logspace(-30, 0, 31)])
    wide = z.double().numpy()
    tails, near = special.log_ndtr(wide) - special.log_ndtr(-wide), np.clip(wide, -1, 1)
    wanted = np.where(abs(wide) < 1, 2 * np.arctanh(special.erf(near / math.sqrt(2))), tails)
    assert_relative(portable.logit_of_normal(z), wanted, 6e-7)


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 5e-7), (torch.float64, 1e-15)])
def test_accuracy(dtype, tolerance):
    x = torch.linspace(-79, 79, 4001, dtype=dtype)
    reference = x.double().numpy()
    assert_relative(sigmoid(x), special.expit(reference), tolerance)
    assert_relative(softplus(x), np.logaddexp(0, reference), tolerance)
    for found, wanted in zip(sinh_cosh(x), (np.sinh(reference), np.cosh(reference)), strict=True):
        np.testing.assert_allclose(found.double(), wanted, rtol=tolerance, atol=tolerance)
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


EVERYWHERE_ALIKE = [
    *(sigmoid, softplus, logit, torch.exp, torch.log1p, torch.asinh, torch.special.ndtri, normal_cdf),
    *(lambda x: sinh_cosh(x)[0], lambda x: sinh_cosh(x)[1]),
    *(portable.exp, portable.log, portable.logit, portable.ndtri, portable.sigmoid, portable.sqrt),
]


@pytest.mark.parametrize("function", EVERYWHERE_ALIKE)
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


@pytest.mark.parametrize(("dtype", "bits", "tolerance"), [(torch.float32, 24, 1e-6), (torch.float64, 53, 2e-15)])
def test_the_normal_quantile_is_accurate(dtype, bits, tolerance):
    spread = torch.rand(100_000, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    u = torch.cat([spread, 2 ** (-bits * spread), 1 - 2 ** (-bits * spread)])
    step = 2.0**-bits
    u = (step * (2 * torch.floor(u / (2 * step)) + 1)).clamp(max=1 - step)  # as noise is
    wanted = special.ndtri(u.numpy())
    np.testing.assert_allclose(portable.ndtri(u.to(dtype)).double(), wanted, rtol=tolerance, atol=tolerance * 1e-3)


ULPS = {"exp": 1, "log": 1, "sqrt": 1, "sigmoid": 3}


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("name", ULPS)
def test_portable_functions_are_accurate(name, dtype):
    """Against a wider format, in units in the last place."""
    if np.finfo(np.longdouble).nmant <= np.finfo(np.float64).nmant and dtype == torch.float64:
        pytest.skip("long double is no wider than float64 here")
    generator = torch.Generator().manual_seed(0)
    spread = torch.rand(200_000, generator=generator, dtype=torch.float64)
    if name in ("exp", "sigmoid"):
        x = torch.cat([158 * spread - 79, 2 * spread - 1]).to(dtype)
    else:
        fine = 24 if dtype == torch.float32 else 53
        x = torch.cat([spread, 2 ** (-fine * spread), 1 - 2 ** (-fine * spread), 1e6 * spread]).to(dtype)
        x = x[(x > 0) & (x != 1)]
    exact = x.numpy().astype(np.longdouble)
    wanted = 1 / (1 + np.exp(-exact)) if name == "sigmoid" else getattr(np, name)(exact)
    unit = np.spacing(np.abs(wanted).astype(x.numpy().dtype)).astype(np.longdouble)
    found = getattr(portable, name)(x).numpy().astype(np.longdouble)
    assert np.abs((found - wanted) / unit).max() < ULPS[name]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_portable_functions_in_the_tails(dtype):
    x = torch.tensor([-1e4, -40.0, 0.0, 40.0, 1e4], dtype=dtype)
    p = portable.sigmoid(x)
    assert bool(torch.isfinite(portable.exp(x)).all())
    assert 0 < float(p[0]) < 1e-34
    assert float(p[1]) == pytest.approx(math.exp(-40), rel=1e-6)
    assert p[2:].tolist() == [0.5, 1, 1]
    assert portable.log(torch.ones(1, dtype=dtype)) == 0
    assert bool(torch.isnan(portable.sigmoid(torch.tensor(torch.nan, dtype=dtype))))


def for_each(function):
    @numba.njit(error_model="numpy")
    def each(x, out):
        for i in range(x.size):
            out[i] = function(x[i])

    return each


def quantiles(x, out):
    """Of blocks, with some numbers in the middle and some in the tails."""
    out[:] = np.random.default_rng(0).permutation(x)
    back = np.random.default_rng(0).permutation(x.size).argsort()
    cpu.functions.ndtris(out, np.empty_like(x), np.empty(x.size, np.int32))
    out[:] = out[back]


@pytest.mark.parametrize(
    ("name", "dtype"),
    [
        *(("ndtri", torch.float32), ("exp", torch.float64), ("log", torch.float64)),
        *deep(("ndtri", torch.float64), ("exp", torch.float32), ("log", torch.float32)),
        *deep(("sqrt", torch.float32), ("sqrt", torch.float64)),
    ],
)
def test_compiled_functions_have_the_bits_of_the_portable_ones(name, dtype):
    """Also where noise seldom is: in the tails, of which the normal quantile has two, and beyond the limits of exp."""
    each = quantiles if name == "ndtri" else for_each(getattr(cpu.functions, name))
    spread = torch.rand(10_000, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    if name == "exp":
        x = 1600 * spread - 800
    else:
        tail = 2 ** (-(23 if dtype == torch.float32 else 52) * spread)
        x = torch.cat([spread, tail, 1 - tail])
    x = x.to(dtype)
    x = x[(x != 0) & (x != 1)]
    out = torch.empty_like(x)
    each(x.numpy(), out.numpy())
    assert torch.equal(out, getattr(portable, name)(x))


@pytest.mark.parametrize("name", ["exp", "log", "logit", "sigmoid", "sqrt"])
def test_portable_functions_have_derivatives(name):
    x = torch.tensor([0.01, 0.3, 0.5, 0.8], dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(getattr(portable, name), x)
    assert torch.autograd.gradgradcheck(getattr(portable, name), x)
    assert torch.equal(getattr(portable, name)(x), getattr(portable, name)(x.detach()))


@pytest.mark.parametrize("size", [1, 2, 3, 10, 1000, 1024, 1025, 5000])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_sums_over_the_last_dim(size, dtype):
    x = torch.randn(3, size, generator=torch.Generator().manual_seed(0), dtype=dtype)
    found = portable.last_sum(x)
    error = (found.double() - x.double().sum(-1)).abs()
    assert (error <= torch.finfo(dtype).eps * x.double().abs().sum(-1)).all()
    assert torch.equal(portable.last_sum(x[1]), found[1])
    soft = portable.softmax(x)
    torch.testing.assert_close(soft, torch.softmax(x, -1), rtol=1e-5, atol=1e-9)


@pytest.mark.parametrize("n", [1, 2, 3, 7, 100, 1000])
def test_powers(n):
    x = 1 + torch.rand(50, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    np.testing.assert_allclose(portable.power(x, n).numpy(), x.numpy() ** n, rtol=4e-16 * n)
