"""The elementary functions: accuracy in the tails, finite derivatives, and bits that depend on neither position nor kernel."""

import math
import multiprocessing
import os
import pkgutil
import shutil
import subprocess
import sys
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from pathlib import Path

import numba
import numpy as np
import pytest
import torch
from filelock import FileLock
from scipy import special, stats

import gradest
import gradest.nn
from gradest.contract.numerics import gauss_legendre
from gradest.errors import InvalidInput
from gradest.kernels import cpu, fused, portable, reference, select
from gradest.kernels.stable import (
    SEQUENTIAL_TERMS,
    leading_mean,
    leading_sum,
    logit,
    normal_cdf,
    sigmoid,
    sinh_cosh,
    softplus,
)
from tests.selection import deep


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


def test_a_kernel_is_compiled_once_for_words_of_each_row_and_for_words_of_all():
    rows = torch.arange(2, dtype=torch.int32)
    for dtype in (torch.float32, torch.float64):
        for words in (((3, 5), 2), ((rows, 5), 2), ((rows, rows), rows)):
            cpu.uniform(*words, 0, 1, 5, dtype)
    assert len(cpu.noise._uniform.signatures) == 2


def test_several_threads_at_once():
    keys = [gradest.Key(seed) for seed in range(8)]
    wanted = [key.uniform((500,), (1200,)) for key in keys]
    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(lambda key: key.uniform((500,), (1200,)), keys))
    assert all(torch.equal(one, two) for one, two in zip(found, wanted, strict=True))


@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
def test_after_a_fork():
    wanted = gradest.Key(3).uniform((500,), (1200,))
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("fork")) as pool:
        assert pool.submit(_total).result(60) == float(wanted.numpy().sum(dtype=np.float64))


def _total():
    # by numpy, because torch's own threads do not survive a fork
    return float(gradest.Key(3).uniform((500,), (1200,)).numpy().sum(dtype=np.float64))


def test_the_environment_forces_a_kernel(monkeypatch):
    device = torch.device("cpu")
    assert select("uniform", device).__wrapped__ is cpu.uniform
    assert select("uniform", torch.device("meta")) is reference.uniform
    monkeypatch.setenv("GRADEST_KERNELS", "reference")
    assert select("uniform", device) is reference.uniform
    monkeypatch.setenv("GRADEST_KERNELS", "gpu")
    with pytest.raises(InvalidInput, match="GRADEST_KERNELS must be reference, cpu, cuda or unset; it is 'gpu'"):
        select("uniform", device)


def test_no_module_has_the_name_of_a_kernel():
    """For else `fused` would return the module for the kernel."""
    for backend in (reference, cpu):
        modules = {module.name for module in pkgutil.iter_modules(backend.__path__)}
        assert "conditional" in modules
        assert not modules & {*reference.__all__, *cpu.__all__}
        assert all(callable(getattr(backend, name)) for name in backend.__all__)
    for name in ("noise", "conditional", "sigmoid"):
        assert fused(name, torch.device("cpu")) is None


def test_the_digest_of_all_sources_is_part_of_the_name_that_a_kernel_is_kept_by():
    from gradest.kernels.cpu.conditional import kernels

    for kernel in (cpu.noise._uniform, cpu.binaries._draw_binary, kernels.forward):
        assert kernel.py_func.__qualname__.endswith(f"-{cpu.compilation.compiler._DIGEST}")


@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
def test_of_processes_that_start_together_one_compiles_and_the_others_load(tmp_path, monkeypatch):
    monkeypatch.setattr(numba.config, "CACHE_DIR", str(tmp_path))

    @cpu.compilation.compiler.compiled
    def double(x):
        return 2 * x

    fork = multiprocessing.get_context("fork")
    together, compilations = fork.Barrier(2), fork.Queue()

    def call():
        together.wait(60)
        assert double(21) == 42
        compilations.put(sum(double.stats.cache_misses.values()))

    processes = [fork.Process(target=call) for _ in range(2)]
    for process in processes:
        process.start()
    assert sorted(compilations.get(timeout=60) for _ in processes) == [0, 1]
    for process in processes:
        process.join(60)


def test_a_kernel_is_compiled_though_its_lock_is_not_to_be_had(tmp_path, monkeypatch):
    monkeypatch.setattr(numba.config, "CACHE_DIR", str(tmp_path))
    monkeypatch.setattr(cpu.compilation.compiler, "_PATIENCE", 0.0)

    @cpu.compilation.compiler.compiled
    def double(x):
        return 2 * x

    with FileLock(Path(double.stats.cache_path) / f"{__name__}.{double.py_func.__qualname__}.lock"):
        assert double(21) == 42


@pytest.mark.deep
@pytest.mark.timeout(900)
def test_kernels_kept_on_disk_are_stale_once_a_file_that_is_compiled_into_them_changes(tmp_path):
    """σ(1) by `repeated`, whose own file stays: it takes a function of one other file, and constants of another."""
    shutil.copytree(Path(gradest.__file__).parent, tmp_path / "gradest", ignore=shutil.ignore_patterns("__pycache__"))
    script = (
        "import torch; from gradest.kernels import cpu; print(cpu.__file__, float(cpu.repeated(1, torch.ones(1), 2)))"
    )

    def run():
        environment = {**os.environ, "PYTHONPATH": str(tmp_path)}
        done = subprocess.run(
            [sys.executable, "-c", script], cwd=tmp_path, env=environment, capture_output=True, text=True
        )
        assert done.stdout.startswith(str(tmp_path)), done.stderr
        return float(done.stdout.split()[-1])

    found = [run()]
    assert found[0] == pytest.approx(special.expit(1), rel=1e-6)
    for file, line, edited in (
        ("portable.py", "exp=_taylor(7)", "exp=_taylor(2)"),
        ("cpu/functions.py", "r + np.float32(1)", "r + np.float32(2)"),
    ):
        path = tmp_path / "gradest/kernels" / file
        assert path.read_text().count(line) == 1
        path.write_text(path.read_text().replace(line, edited))
        found.append(run())
    assert len(set(found)) == 3


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
    function = getattr(cpu.functions, name)

    @numba.njit(error_model="numpy")
    def each(x, out):
        for i in range(x.size):
            out[i] = function(x[i])

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
    "subset": "k_subset",
}
MORE = [
    *(("concrete", "binary_concrete"), ("normal", "gaussian"), ("normal", {"name": "noisy_sigmoid", "std": 1.5})),
    *(("binomial", {"name": "binomial", "trials": trials}) for trials in (1, 30)),
    ("subset", {"name": "k_subset", "k": 1}),
    *(("repeated", name) for name in ("heaviside", "rectifier")),
]
PULLED = [
    *("noisy_rectifier", "stochastic_times_smooth", "gaussian", "binary_concrete", "hard_concrete", "noisy_sigmoid"),
    *("gumbel_softmax", "rectifier", "sigmoid"),
]
SHAPES = [
    ((5,), (3,), 2),
    ((), (1,), 1),
    ((1,), (4099,), 2),
    ((700, 2), (1,), 3),
    ((300,), (7,), 2),
    ((130,), (1030,), 1),
]


CASES = [*FUSED.items(), *MORE]
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
        classes = () if neuron.event_ndim == 1 else (1 + event[0] % 6,)
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


@pytest.mark.parametrize("name", PULLED)
def test_backward_is_the_derivative_of_forward(name):
    """At fixed noise, by autograd through forward; also where the outputs are saturated."""
    neuron = gradest.neuron(name)
    a = 5 * torch.randn(30, 4, 5, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    moving, noise = a.clone().requires_grad_(), neuron.noise(gradest.Key(1), a, 1)
    grad = torch.randn(1, *a.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    (wanted,) = torch.autograd.grad(neuron.forward(moving, noise), moving, grad)
    torch.testing.assert_close(neuron.backward(a, noise, grad)[0], wanted, rtol=1e-8, atol=1e-13)


@pytest.mark.parametrize("kernel", FUSED)
def test_what_is_not_a_number_stays_with_its_unit(kernel, monkeypatch):
    neuron, key = gradest.neuron(FUSED[kernel]), gradest.Key(1)
    a = torch.randn(600, 3, *(4,) * (neuron.event_ndim - 1), generator=torch.Generator().manual_seed(0))
    a[7, 1] = torch.nan
    found = neuron.sample(key, a, 2)
    monkeypatch.setenv("GRADEST_KERNELS", "reference")
    assert torch.equal(found.nan_to_num(-1), neuron.sample(key, a, 2).nan_to_num(-1))
    assert not bool(found[:, 8:].isnan().any())


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


@pytest.mark.parametrize("size", [10, 200_000])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_one_entry_that_is_not_finite_is_seen(size, dtype):
    a = torch.randn(size, generator=torch.Generator().manual_seed(0)).to(dtype)
    assert cpu.all_finite(a)
    for place in (0, size // 2 + 1, size - 1):
        for bad in (torch.inf, -torch.inf, torch.nan):
            spoilt = a.clone()
            spoilt[place] = bad
            assert not cpu.all_finite(spoilt)
    if size > 1000 and dtype != torch.bfloat16:
        assert cpu.all_finite(torch.full((size,), torch.finfo(dtype).max, dtype=dtype))


def test_many_classes():
    neuron, a = gradest.neuron("categorical"), torch.randn(3, 2, 3000, generator=torch.Generator().manual_seed(0))
    assert torch.equal(neuron.sample(gradest.Key(1), a, 2), neuron.forward(a, neuron.noise(gradest.Key(1), a, 2)))


@pytest.mark.parametrize("kernel", FUSED)
@pytest.mark.parametrize("shape", [(0, 3), (3, 0), (0,)])
def test_nothing_to_draw(kernel, shape):
    neuron = gradest.neuron(FUSED[kernel])
    a = torch.zeros(*shape, *(4,) * (neuron.event_ndim - 1))
    assert neuron.sample(gradest.Key(1), a, 2).shape == (2, *a.shape)
    assert neuron.sample(gradest.Key(1), torch.zeros(2, *a.shape[1:]), 0).shape == (0, 2, *a.shape[1:])


@pytest.mark.parametrize("kernel", FUSED)
def test_samples_do_not_depend_on_threads_or_strides(kernel, monkeypatch):
    monkeypatch.setattr(cpu.tensors, "_NUMBERS_PER_THREAD", 1 << 12)
    neuron = gradest.neuron(FUSED[kernel])
    a = torch.randn(500, 100, *(7,) * (neuron.event_ndim - 1), generator=torch.Generator().manual_seed(0))
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


def test_samples_can_be_differentiated():
    neuron, a = gradest.neuron("noisy_rectifier"), torch.zeros(50, requires_grad=True)
    h = neuron.sample(gradest.Key(1), a, 1)
    assert torch.equal(h, neuron.sample(gradest.Key(1), a.detach(), 1))
    (slope,) = torch.autograd.grad(h.sum(), a)
    assert torch.equal(slope, (h[0] > 0).float())


def test_memory_is_used_again_only_once_its_tensor_is_gone():
    key, shape = gradest.Key(1), (1 << 19,)
    first, second = key.uniform((1,), shape), gradest.Key(2).uniform((1,), shape)
    kept, addresses = first.clone(), {first.data_ptr(), second.data_ptr()}
    part = second[0, 0, 5:9]
    wanted = part.clone()
    del second
    third = gradest.Key(3).uniform((1,), shape)
    assert third.data_ptr() not in addresses
    assert torch.equal(first, kept)
    assert torch.equal(part, wanted)
    del part
    fourth, fifth = (gradest.Key(2).uniform((1,), shape) for _ in range(2))
    assert fourth.data_ptr() in addresses - {first.data_ptr()}
    assert fourth.data_ptr() != fifth.data_ptr()


def test_a_layer_may_be_changed_in_place():
    for neuron, estimator in (("noisy_rectifier", "pathwise"), ("bernoulli", "straight_through")):
        layer = gradest.nn.Stochastic(neuron, estimator)
        a = torch.randn(50, 4, generator=torch.Generator().manual_seed(0), requires_grad=True)
        gradients = []
        for change in (lambda h: h + 3, lambda h: h.add_(3)):
            torch.manual_seed(1)
            (gradient,) = torch.autograd.grad(change(layer(a)).square().sum(), a)
            gradients.append(gradient)
        assert torch.equal(*gradients)
        assert bool(gradients[0].any())


def test_what_emits_its_argument_does_not_lend_it():
    class Identity(type(gradest.neuron("sigmoid"))):
        def forward(self, a, noise):
            return a.expand(len(noise), *a.shape)

    a = torch.ones(3, 2, requires_grad=True)
    gradest.nn.Stochastic(Identity(), "pathwise")(a).mul_(2)
    assert torch.equal(a, torch.ones(3, 2))


def test_a_draw_holds_no_noise_and_gives_it_again():
    neuron, estimator = gradest.neuron("noisy_rectifier"), gradest.estimator("held_noise", samples=3)
    a = torch.randn(4, 5, generator=torch.Generator().manual_seed(0))
    draw = estimator.forward(neuron, a, gradest.Key(1), {})
    assert not draw.saved
    assert torch.equal(neuron.forward(a, draw.noise()), draw.points)


def test_memory_is_aligned_as_torch_aligns():
    for units in (1, 3, 1000, 1 << 20):
        assert gradest.Key(1).uniform((1,), (units,)).data_ptr() % 64 == 0


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
