"""The kernels for CUDA devices: on such a device (marker gpu), or else in Triton's interpreter, in a process of its own.

The tests of bits are the same for both; the interpreter takes a sixth of a second for a tile, so it gets few of them. What it
cannot show is what the compiler does: the code that it makes is looked at for instructions that are not IEEE's.
"""

import inspect
import os
import re
import subprocess
import sys

import pytest
import torch
from torch.nn.functional import linear

import gradest
from gradest import kernels
from gradest.errors import InvalidInput
from gradest.kernels import conditional, fused, reference, select
from gradest.kernels.stable import SEQUENTIAL_TERMS
from gradest.nn import ConditionalLinear
from tests.selection import deep

pytest.importorskip("triton")
INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
DEVICE = torch.device("cpu" if INTERPRETED else "cuda")

NEURONS = {
    "binary": "bernoulli",
    "times_smooth": "stochastic_times_smooth",
    "rectified": "noisy_rectifier",
    "one_hot": "categorical",
    "concrete": "hard_concrete",
    "normal": {"name": "noisy_sigmoid", "std": 1.5},
    "binomial": {"name": "binomial", "trials": 5},
    "poisson": "poisson",
    "softmax": {"name": "gumbel_softmax", "temperature": 0.3},
    "repeated": "sigmoid",
    "scaled_normal": "diagonal_gaussian",
    "scaled_concrete": "tempered_binary_concrete",
    "correlated": "correlated_bernoulli",
}
PAIRS = ("diagonal_gaussian", "tempered_binary_concrete")  # with two pre-activations a unit
MORE = [
    *(("concrete", "binary_concrete"), ("normal", {"name": "noisy_rectifier", "distribution": "gaussian", "std": 0.7})),
    *(("normal", "gaussian"), ("binomial", {"name": "binomial", "trials": 1}), ("repeated", "heaviside")),
    ("repeated", "rectifier"),
]
PULLED = ["binary_concrete", "hard_concrete", "noisy_sigmoid", "sigmoid", *PAIRS]
DTYPES = [torch.float32, torch.float64]
WIDE_DEEP = [torch.float32, *deep(torch.float64)]
SHAPES = [(5, 3, 2), (1, 1030, 1), (1030, 1, 1), (40, 33, 2)]  # rows, units, draws
if not INTERPRETED:
    SHAPES += [(70_000, 7, 2), (7, 70_001, 3), (3000, 1024, 2), (1, 1, 300)]


def on_a_device(test):
    return test if INTERPRETED else pytest.mark.gpu(test)


@pytest.fixture(autouse=True)
def _forced(monkeypatch):
    monkeypatch.setenv("GRADEST_KERNELS", "cuda")


@pytest.mark.skipif(INTERPRETED, reason="this is the interpreter")
@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("chosen", ["not deep", pytest.param("deep", marks=pytest.mark.deep)])
def test_in_the_interpreter(chosen):
    environment = {**os.environ, "TRITON_INTERPRET": "1"}
    command = [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", "-m", chosen, __file__]
    run = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert run.returncode == 0, run.stdout + run.stderr
    assert int(re.search(r"(\d+) passed", run.stdout)[1]) > 20


@on_a_device
@pytest.mark.parametrize("dtype", WIDE_DEEP)
@pytest.mark.parametrize(("rows", "units", "draws"), SHAPES)
def test_uniform_numbers_are_the_references_bits(rows, units, draws, dtype):
    generator = torch.Generator().manual_seed(rows)
    *seed, row = torch.randint(-(1 << 31), 1 << 31, (3, rows), generator=generator).int()
    stream = (1 << 32) - rows
    words = (seed[0].to(DEVICE), seed[1].to(DEVICE)), row.to(DEVICE)
    found = select("uniform", DEVICE)(*words, stream, draws, units, dtype)
    assert found.dtype == dtype
    assert torch.equal(found.cpu(), reference.uniform(seed, row, stream, draws, units, dtype))


def both(neuron, key, a, draws, monkeypatch):
    """What the kernel draws, and what the reference does on the CPU."""
    before = a.clone()
    found = neuron.sample(key, a, draws)
    assert torch.equal(a, before)
    assert found.device.type == DEVICE.type
    with monkeypatch.context() as patch:
        patch.setenv("GRADEST_KERNELS", "reference")
        return found.cpu(), neuron.sample(key, a.cpu(), draws)


def last_dim(neuron, classes):
    """The last dim of its events, so many classes unless it takes two numbers, or 0 if there is none."""
    if neuron.name in PAIRS:
        return 2
    return classes if neuron.event_ndim > 1 else 0


def pre_activations(rows, units, *, classes=0, dtype=torch.float32):
    """Of all sizes: of a few units, of hundreds, and saturated."""
    generator = torch.Generator().manual_seed(rows)
    shape = (rows, units, classes) if classes else (rows, units)
    a = torch.randn(shape, generator=generator, dtype=torch.float64)
    return (a * torch.tensor([1.0, 6, 300, 1e4])[torch.randint(4, shape, generator=generator)]).to(dtype).to(DEVICE)


@on_a_device
@pytest.mark.parametrize("dtype", [torch.float32, *deep(torch.float64, torch.bfloat16)])
@pytest.mark.parametrize(("kernel", "spec"), [*NEURONS.items(), *deep(*MORE)])
def test_fused_kernels_have_the_references_bits(kernel, spec, dtype, monkeypatch):
    neuron = gradest.neuron(spec)
    assert fused(kernel, DEVICE).__module__.startswith("gradest.kernels.cuda.")
    for rows, units, draws in SHAPES[:1] + SHAPES[3:]:
        a = pre_activations(rows, units, classes=last_dim(neuron, 5), dtype=dtype)
        found, wanted = both(neuron, gradest.Key(5, stream=2), a, draws, monkeypatch)
        assert found.dtype == dtype
        assert torch.equal(found, wanted)


@on_a_device
@pytest.mark.parametrize("dtype", DTYPES)
def test_the_two_values_of_a_binary_unit(dtype, monkeypatch):
    class Odd(type(gradest.neuron("bernoulli"))):  # low + (high - low) is not high, in either format
        low = -0.3
        high = 0.1

    found, wanted = both(Odd(), gradest.Key(5), pre_activations(9, 9, dtype=dtype), 2, monkeypatch)
    assert len(wanted.unique()) == 2
    assert torch.equal(found, wanted)


@on_a_device
@pytest.mark.parametrize("dtype", WIDE_DEEP)
def test_mirrored_noise(dtype, monkeypatch):
    neuron, a = gradest.neuron("bipolar"), pre_activations(9, 9, dtype=dtype)
    found = neuron.antithetic(gradest.Key(5), a, 3)
    monkeypatch.setenv("GRADEST_KERNELS", "reference")
    assert torch.equal(found.cpu(), neuron.antithetic(gradest.Key(5), a.cpu(), 3))


@on_a_device
@pytest.mark.parametrize("dtype", [torch.uint8, torch.bool])
def test_outputs_as_bytes(dtype, monkeypatch):
    neuron, a, key = gradest.neuron("bernoulli"), pre_activations(9, 40), gradest.Key(5)
    found = neuron.sample_as(key, a, 2, dtype)
    assert found.dtype == dtype
    monkeypatch.setenv("GRADEST_KERNELS", "reference")
    assert torch.equal(found.cpu(), neuron.sample(key, a.cpu(), 2).to(dtype))


@on_a_device
@pytest.mark.parametrize("dtype", [torch.float32, *deep(torch.float64, torch.bfloat16)])
@pytest.mark.parametrize("name", PULLED)
def test_pullbacks_have_the_references_bits(name, dtype, monkeypatch):
    neuron, key = gradest.neuron(name), gradest.Key(5, stream=2)
    a = pre_activations(40, 33, classes=last_dim(neuron, 0), dtype=dtype)
    grad = torch.randn(2, 40, 33, generator=torch.Generator().manual_seed(0)).to(dtype)
    found = neuron.pullback(key, a, grad.to(DEVICE), grad.to(DEVICE)).cpu()
    monkeypatch.setenv("GRADEST_KERNELS", "reference")
    assert found.dtype == dtype
    assert torch.equal(found, neuron.backward(a.cpu(), neuron.noise(key, a.cpu(), 2), grad))


BACKWARD = [
    "logistic_score",
    "leave_one_out_score",
    "antithetic_score",
    "times_smooth_backward",
    "rectified_backward",
    "logistic_backward",
    *(f"surrogate_backward {i}" for i in range(4)),
]


@on_a_device
@pytest.mark.parametrize("dtype", [torch.float32, *deep(torch.float64)])
@pytest.mark.parametrize("kernel", BACKWARD)
def test_backward_kernels_have_the_references_bits(kernel, dtype):
    for shape, draws in (((3, 2, 40), 2), ((1100, 1), 1), ((0, 3), 2), ((2, 0), 2), ((3, 2), SEQUENTIAL_TERMS + 1)):
        generator = torch.Generator().manual_seed(draws)
        a = pre_activations(*shape, dtype=dtype) if len(shape) == 2 else pre_activations(*shape[:2], classes=shape[2])
        a = a.to(dtype).mT.contiguous().mT
        h = torch.rand(2 * draws, *shape, generator=generator, dtype=dtype).round() * 0.7
        grad = torch.randn(2 * draws, *shape, generator=generator, dtype=dtype)
        weights = torch.randn(2 * draws, *shape[:-1], generator=generator, dtype=dtype)
        arguments = {
            "logistic_score": (a, h[:draws], weights[:draws], 0.7),
            "leave_one_out_score": (a, h, weights, 0.7),
            "antithetic_score": (a, h, weights, 0.7),
            "times_smooth_backward": (a, h, grad),
            "rectified_backward": (h, grad),
            "logistic_backward": (a, grad[0], 1.3, 2.6),
            **{f"surrogate_backward {i}": (a, grad[0], i, 1.3, 2.6) for i in range(4)},
        }[kernel]
        name, _, _ = kernel.partition(" ")
        found = select(name, DEVICE)(*(x.to(DEVICE) if isinstance(x, torch.Tensor) else x for x in arguments))
        wanted = getattr(reference, name)(*(x.cpu() if isinstance(x, torch.Tensor) else x for x in arguments))
        assert found.dtype == wanted.dtype
        assert torch.equal(found.cpu(), wanted)


@on_a_device
@pytest.mark.parametrize("classes", [*deep(1), 1025, *deep(2500)])
@pytest.mark.parametrize("name", ["categorical", "gumbel_softmax"])
def test_many_classes(name, classes, monkeypatch):
    a = pre_activations(1, 2, classes=classes) / 300
    found, wanted = both(gradest.neuron(name), gradest.Key(1), a, 2, monkeypatch)
    assert torch.equal(found, wanted)


@on_a_device
@pytest.mark.parametrize(
    "kernel", ["binary", "one_hot", *deep(*(kernel for kernel in NEURONS if kernel not in ("binary", "one_hot")))]
)
def test_strides_and_rows(kernel, monkeypatch):
    """Of a, of seeds and of row numbers: a row has the same bits alone."""
    neuron = gradest.neuron(NEURONS[kernel])
    a = pre_activations(3, 4, classes=last_dim(neuron, 3)).transpose(0, 1)
    numbers = torch.tensor([[7, 1], [1 << 40, 2], [3, 3], [(1 << 53) - 1, 1 << 31]], device=DEVICE)
    found, wanted = both(neuron, gradest.Key(*numbers.T), a, 2, monkeypatch)
    assert torch.equal(found, wanted)
    alone, _ = both(neuron, gradest.Key(*numbers[3:].T), a[3:], 2, monkeypatch)
    assert torch.equal(alone, found[:, 3:])


@on_a_device
@pytest.mark.parametrize("kernel", ["binary", *deep(*(kernel for kernel in NEURONS if kernel != "binary"))])
@pytest.mark.parametrize("shape", [(0, 3), (3, 0)])
def test_nothing_to_draw(kernel, shape):
    neuron = gradest.neuron(NEURONS[kernel])
    a = torch.zeros(*shape, *(last_dim(neuron, 4),) * (neuron.event_ndim - 1), device=DEVICE)
    wanted = neuron.output_event(a.shape[1:])
    assert neuron.sample(gradest.Key(1), a, 2).shape == (2, shape[0], *wanted)
    assert neuron.sample(gradest.Key(1), torch.zeros(2, *a.shape[1:], device=DEVICE), 0).shape == (0, 2, *wanted)


@on_a_device
@pytest.mark.parametrize("dtype", WIDE_DEEP)
@pytest.mark.parametrize("shape", [(2, 40, 3), (1, 1), (3, 33), (1, 2500), (0, 3), (3, 0, 4)])
def test_the_backward_of_a_softmax_has_the_references_bits(shape, dtype):
    """For saturated outputs, and for several that are the largest; strides too."""
    generator = torch.Generator().manual_seed(0)
    logits, grad = torch.randn(2, *shape, generator=generator, dtype=dtype)
    for h in (torch.softmax(logits, -1), torch.softmax(100 * logits, -1), torch.full_like(logits, 1 / shape[-1])):
        wanted = reference.softmax_backward(h, grad, 1.7)
        for given in (grad, grad.mT.contiguous().mT):
            found = select("softmax_backward", DEVICE)(h.to(DEVICE), given.to(DEVICE), 1.7)
            assert found.dtype == dtype
            assert torch.equal(found.cpu(), wanted)


def test_kernels_are_called_as_those_for_the_cpu_are():
    from gradest.kernels import cpu, cuda

    of_groups = {
        "correlated_concrete",
        "correlated_concrete_pullback",
        "entmax",
        "ordered",
        "scaled_softmax",
        "scaled_softmax_pullback",
        "subset",
        "subset_marginals",
        "subset_mean_backward",
        "top_softmax",
    }
    assert set(cpu.__all__) - set(cuda.__all__) == {"all_finite", "moments", *of_groups}
    for name in cuda.__all__:
        assert inspect.signature(getattr(cuda, name)) == inspect.signature(getattr(cpu, name)), name


FUSED_BACKWARD = [
    "concrete_pullback",
    "normal_pullback",
    "scaled_concrete_pullback",
    "scaled_normal_pullback",
    "softmax_backward",
]
POINTERS = {
    **dict.fromkeys(("seed0", "seed1", "rows"), "*i32"),
    **dict.fromkeys(("out", "a", "h", "grad", "weights"), "*{}"),
}
OPTIONS = dict.fromkeys(("per_temperature", "height", "std", "slope", "shared", "own"), "i64")  # the bits of a float64
BORROWED = {"leave_one_out_score"}  # logistic_score is launched for it
CONSTANTS = {
    "ROWS": 2,
    "UNITS": 64,
    "GROUPS": 2,
    "CLASSES": 64,
    "FOLDS": 6,
    "ACTIVATION": 2,
    "DERIVATIVE": 2,
    "LOW": -0.1,
    "HIGH": 0.7,
    "LOWER": -0.1,
    "WIDTH": 1.2,
    "LEAST": -80.0,
    "MOST": 69.0,
    "HALF_PI": 1.5708,
}


@pytest.mark.slow
@pytest.mark.skipif(INTERPRETED, reason="needs the compiler")
@pytest.mark.parametrize("dtype", ["fp32", *deep("fp64")])
@pytest.mark.parametrize(
    "kernel", ["uniform", "antithetic", *NEURONS, *sorted({*BACKWARD, *FUSED_BACKWARD} - BORROWED)]
)
def test_compiled_arithmetic_is_as_ieee_defines_it(kernel, dtype):
    """No fused multiplication and addition, no approximate division, no flush to 0; needs no device."""
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    from gradest.kernels import cuda
    from gradest.kernels.cuda.compiler import IEEE

    name, _, derivative = kernel.partition(" ")
    function = getattr(sys.modules[getattr(cuda, name).__module__], f"_{name}")
    of_derivative = {"DERIVATIVE": int(derivative)} if derivative else {}
    for units in (None, 1):  # Triton compiles another kernel where an integer is 1
        constants = {
            name: value for name, value in {**CONSTANTS, **of_derivative, "units": units}.items() if value is not None
        }
        constants = {name: constants[name] for name in function.arg_names if name in constants}
        types = {name: {**POINTERS, **OPTIONS}.get(name, "i32").format(dtype) for name in function.arg_names}
        source = ASTSource(function, {**types, **dict.fromkeys(constants, "constexpr")}, constants)
        made = triton.compile(source, GPUTarget("cuda", 90, 32), IEEE).asm["ptx"]
        # floor is rounding to an integer, and a subnormal number is not what it is given
        found = {i for i in re.findall(r"\S+\.f(?:32|64)\S*", made) if i != "cvt.rmi.ftz.f32.f32"}
        exact = r"(add|sub|mul|div)\.rn|cvt(\.r[a-z]+)?|(abs|neg|copysign|mov|setp\.[a-z]+|selp|min|max|ld|st)"
        assert found
        assert not {i for i in found if not re.fullmatch(rf"({exact})(\.[a-z][0-9]+)+", i)}


# examples, inputs, units, units a block; blocks of 16 and more are multiplied by `tl.dot`
GATED = [(1, 37, 6, 1), (5, 64, 12, 3), (35, 33, 70, 70), (33, 65, 40, 20), (33, 5, 20, 1), (0, 5, 6, 2)]


def gated_layer(examples, inputs, units, block, dtype=torch.float32, share=0.4, **options):
    """A layer, and inputs and gates of other strides than theirs."""
    generator = torch.Generator().manual_seed(examples)
    layer = ConditionalLinear(inputs, units, block_size=block, method="sparse", device=DEVICE, dtype=dtype, **options)
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator))
    x, gates = (torch.randn(size, examples, generator=generator).to(dtype) for size in (inputs, units // block))
    gates *= torch.rand(gates.shape, generator=generator) < share
    return layer, x.to(DEVICE).T.requires_grad_(), gates.to(DEVICE).T


def within_rounding(found, exact, magnitude, terms):
    """Whether rounding a sum of so many products, whose magnitudes have that sum, explains the difference."""
    assert found.device.type == DEVICE.type
    bound = (terms + 2) * 2.0**-24 * magnitude * 1.001
    if found.dtype == torch.bfloat16:
        bound = bound + 2.0**-8 * (exact.abs() + bound)
    return bool(((found.cpu().double() - exact).abs() <= bound).all())


@on_a_device
@pytest.mark.parametrize("share", [*deep(0), 0.4, *deep(1)])
@pytest.mark.parametrize(
    ("shape", "dtype"),
    [
        *((shape, torch.float32) for shape in GATED),
        *((shape, torch.bfloat16) for shape in GATED[::3]),
        *deep(*((shape, torch.bfloat16) for shape in GATED if shape not in GATED[::3])),
    ],
)
def test_a_layer_under_gates_is_the_dense_one_to_rounding(shape, dtype, share, monkeypatch):
    monkeypatch.setattr("gradest.kernels.cuda.conditional._LISTED", 16)  # less than there are, of either
    examples, inputs, units, block = shape
    layer, x, gates = gated_layer(*shape, dtype=dtype, share=share)
    assert conditional(DEVICE, dtype).__name__ == "gradest.kernels.cuda.conditional"
    out = layer(x, gates)
    grad = torch.randn(out.shape, generator=torch.Generator().manual_seed(1)).to(dtype)
    found = torch.autograd.grad(out, (x, layer.weight, layer.bias), grad.to(DEVICE).mT.contiguous().mT)
    assert {tensor.dtype for tensor in (out, *found)} == {dtype}
    opened = gates.repeat_interleave(block, -1).cpu().double()
    given, weight, bias = (tensor.detach().cpu().double() for tensor in (x, layer.weight, layer.bias))
    scaled = opened * grad.double()
    for mine, formula, of, terms in (
        (out.detach(), lambda gates, x, w, b: gates * linear(x, w, b), (opened, given, weight, bias), inputs + 1),
        (found[0], torch.matmul, (scaled, weight), units),
        (found[1], lambda s, x: s.T @ x, (scaled, given), examples),
        (found[2], lambda s: s.sum(0), (scaled,), examples),
    ):
        assert within_rounding(mine, formula(*of), formula(*map(abs, of)), terms)
    assert layer.computed.done == 3 * int((gates != 0).sum()) * block * inputs


@on_a_device
@pytest.mark.parametrize(("units", "block"), [(24, 1), (120, 20)])
def test_gradients_of_gates_and_sparse_ones_of_weights(units, block):
    layer, x, gates = gated_layer(3, 9, units, block, share=0.2, closed_gate_gradient=False, sparse_gradient=True)
    gates.requires_grad_()
    out = layer(x, gates)
    found = torch.autograd.grad(out.square().sum(), (gates, layer.weight))
    y = linear(x, layer.weight, layer.bias).reshape(*gates.shape, block)
    wanted = torch.autograd.grad((gates[..., None] * y).square().sum(), (gates, layer.weight))
    torch.testing.assert_close(found[0], wanted[0].where(gates != 0, 0))
    rows = (gates != 0).any(0).repeat_interleave(block).nonzero()[:, 0]
    assert 0 < len(rows) < units
    assert torch.equal(found[1].coalesce().indices()[0], rows)
    torch.testing.assert_close(found[1].to_dense(), wanted[1])


@on_a_device
@pytest.mark.filterwarnings("ignore:.*:RuntimeWarning")  # numpy's, of the interpreter
@pytest.mark.parametrize("block", [1, 16])
def test_a_gate_that_is_not_finite_is_open_and_a_closed_one_hides_what_is_not(block):
    layer, x, _ = gated_layer(2, 5, 3 * block, block)
    gates = torch.tensor([[torch.nan, -0.0, torch.inf], [0.0, 2.0, 0.0]], device=DEVICE)
    assert conditional(DEVICE, torch.float32).count(gates) == 3
    with torch.no_grad():
        layer.weight[:block, 2] = torch.inf
        x[0, 0] = torch.inf
    out = layer(x, gates)
    grad_x, grad_weight = torch.autograd.grad(out.sum(), (x, layer.weight))
    assert bool(out[0, :block].isnan().all())
    assert bool((out[0, block : 2 * block] == 0).all())
    assert bool(out[1].isfinite().all())
    assert bool(grad_x[1].isfinite().all())
    assert bool(grad_weight[block : 2 * block].isfinite().all())
    assert bool(grad_weight[:block].isnan().all())


@pytest.mark.gpu
@pytest.mark.skipif(INTERPRETED, reason="needs the device")
def test_a_layer_under_gates_does_not_wait_for_the_device():
    layer, x, gates = gated_layer(64, 100, 200, 20)
    layer(x, gates).sum().backward()  # kernels compile
    try:
        torch.cuda.set_sync_debug_mode("error")
        layer(x, gates).sum().backward()
    finally:
        torch.cuda.set_sync_debug_mode("default")


@pytest.mark.slow
@pytest.mark.skipif(INTERPRETED, reason="needs the compiler")
@pytest.mark.parametrize("units", [*deep(1), 8, *deep(64)])
@pytest.mark.parametrize("weight", ["fp32", "bf16"])
@pytest.mark.parametrize("kernel", ["list", "forward", "grad_input", "grad_weight"])
def test_kernels_under_gates_compile_and_round_no_factor(kernel, weight, units):
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    from gradest.kernels.cuda import conditional as module

    function = getattr(module, f"_{kernel}")
    sizes = {"UNITS": units, "DOT": units >= 16, "KEEP_UNGATED": True, "EXAMPLES": 32, "INPUTS": 32, "COLUMNS": 64}
    pointers = {**dict.fromkeys(("out", "ungated", "x", "bias", "gates", "grad"), "*fp32"), "weight": f"*{weight}"}
    pointers |= {"members": "*i32", "counts": "*i32", "which": "*i64"}
    for ones in ({}, dict.fromkeys(("size", "batch", "inputs", "blocks", "block"), 1)):
        constants = {**sizes, "ROWS": 16, "LISTED": 1024, **ones}
        constants = {name: constants[name] for name in function.arg_names if name in constants}
        types = {name: pointers.get(name, "i32") for name in function.arg_names}
        source = ASTSource(function, {**types, **dict.fromkeys(constants, "constexpr")}, constants)
        made = triton.compile(source, GPUTarget("cuda", 90, 32), {"enable_fp_fusion": True}).asm["ptx"]
        assert "tf32" not in made
        assert "mma" not in made


@pytest.mark.skipif(INTERPRETED, reason="here they may be")
def test_tensors_on_the_cpu_are_not_for_cuda(monkeypatch):
    with pytest.raises(
        InvalidInput, match=r"a tensor is on the CPU\. Move it to a CUDA device, or unset GRADEST_KERNELS"
    ):
        gradest.Key(1).uniform((2,), (3,))
    monkeypatch.delenv("GRADEST_KERNELS")
    assert select("uniform", torch.device("cpu")).__module__.startswith("gradest.kernels.cpu.")


@pytest.mark.skipif(INTERPRETED, reason="needs the compiler")
def test_the_device_chooses_the_kernels(monkeypatch):
    monkeypatch.setattr(torch.version, "hip", None)
    device = torch.device("cuda")
    for wanted, module in (("", "cuda"), ("cuda", "cuda"), ("cpu", "reference"), ("reference", "reference")):
        monkeypatch.setenv("GRADEST_KERNELS", wanted)
        assert select("uniform", device).__module__.split(".")[2] == module
    monkeypatch.setenv("GRADEST_KERNELS", "")
    with monkeypatch.context() as patch:
        patch.setattr(torch.version, "hip", "6.0")
        assert select("uniform", device) is reference.uniform
    for version, module in (("3.3.1", "reference"), ("3.4.0+git1", "cuda"), ("4.0.0", "cuda")):
        monkeypatch.setattr("triton.__version__", version)
        kernels._has_triton.cache_clear()
        assert select("uniform", device).__module__.split(".")[2] == module
    monkeypatch.undo()
    kernels._has_triton.cache_clear()


@pytest.mark.gpu
@pytest.mark.skipif(INTERPRETED, reason="needs the device's memory")
@pytest.mark.parametrize(("units", "draws"), [(2049, 1), (700, 3)])
def test_more_than_two_to_the_31_numbers(units, draws):
    rows = (1 << 20) + 3
    if torch.cuda.mem_get_info()[0] < 24 << 30:
        pytest.skip("needs 24 GiB of the device's memory")
    neuron, a = gradest.neuron("noisy_rectifier"), torch.randn(rows, units, device=DEVICE)
    h = neuron.sample(gradest.Key(1), a, draws)
    for row in (0, rows // 2, rows - 1):
        key = gradest.Key(1, rows=torch.tensor([row], device=DEVICE))
        assert torch.equal(h[:, row : row + 1], neuron.sample(key, a[row : row + 1], draws))


@pytest.mark.gpu
@pytest.mark.skipif(INTERPRETED, reason="needs streams")
def test_kernels_run_on_the_current_stream():
    neuron, a = gradest.neuron("bernoulli"), torch.zeros(1000, 1000, device=DEVICE)
    neuron.sample(gradest.Key(1), a, 1)
    torch.cuda.synchronize()
    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        torch.cuda._sleep(100_000_000)  # so that a kernel on another stream would come before what fills a
        a.fill_(-1e4)
        h = neuron.sample(gradest.Key(1), a, 1)
    stream.synchronize()
    assert not bool(h.any())


@pytest.mark.gpu
@pytest.mark.skipif(INTERPRETED, reason="needs the device")
def test_kernels_in_a_captured_graph():
    neuron, key, a = gradest.neuron("noisy_rectifier"), gradest.Key(1), torch.zeros(100, 100, device=DEVICE)
    neuron.sample(key, a, 2)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        h = neuron.sample(key, a, 2)
    a.normal_()
    graph.replay()
    assert torch.equal(h, neuron.sample(key, a, 2))


@pytest.mark.gpu
@pytest.mark.skipif(INTERPRETED, reason="needs the device")
def test_every_device_draws_the_same():
    if torch.cuda.device_count() < 2:
        pytest.skip("needs two devices")
    neuron, a = gradest.neuron("bernoulli"), torch.randn(100, 100, device="cuda:0")
    h = neuron.sample(gradest.Key(1), a.to("cuda:1"), 2)
    assert h.device == torch.device("cuda:1")
    assert torch.equal(h.cpu(), neuron.sample(gradest.Key(1), a, 2).cpu())
