"""The kernels for CUDA devices: on such a device (marker gpu), or else in Triton's interpreter, in a process of its own.

The tests of bits are the same for both; the interpreter takes a sixth of a second for a tile, so it gets few of them. What it
cannot show is what the compiler does: the code that it makes is looked at for instructions that are not IEEE's.
"""

import os
import re
import subprocess
import sys

import pytest
import torch

import gradest
from gradest.errors import InvalidInput
from gradest.kernels import fused, reference, select

pytest.importorskip("triton")
INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
DEVICE = torch.device("cpu" if INTERPRETED else "cuda")
on_device = [] if INTERPRETED else [pytest.mark.gpu]

NEURONS = {
    "binary": "bernoulli",
    "gated": "stochastic_times_smooth",
    "rectified": "noisy_rectifier",
    "one_hot": "categorical",
}
DTYPES = [torch.float32, torch.float64]
SHAPES = [(5, 3, 2), (1, 1030, 1), (1030, 1, 1), (40, 33, 2)]  # rows, units, draws
if not INTERPRETED:
    SHAPES += [(70_000, 7, 2), (7, 70_001, 3), (3000, 1024, 2), (1, 1, 300)]


def group(*marks):
    def mark(test):
        for one in (*on_device, *marks):
            test = one(test)
        return test

    return mark


@pytest.fixture(autouse=True)
def _forced(monkeypatch):
    monkeypatch.setenv("GRADEST_KERNELS", "cuda")


@pytest.mark.skipif(INTERPRETED, reason="this is the interpreter")
@pytest.mark.xdist_group("interpreter")
def test_in_the_interpreter():
    environment = {**os.environ, "TRITON_INTERPRET": "1"}
    command = [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", "-p", "no:xdist", __file__]
    run = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert run.returncode == 0, run.stdout + run.stderr
    assert int(re.search(r"(\d+) passed", run.stdout)[1]) > 20


def words(rows):
    generator = torch.Generator().manual_seed(rows)
    seed0, seed1, row = torch.randint(-(1 << 31), 1 << 31, (3, rows), generator=generator).int()
    return (seed0, seed1), row


def on(device, seed, rows):
    return (seed[0].to(device), seed[1].to(device)), rows.to(device)


@group()
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("rows", "units", "draws"), SHAPES)
def test_uniform_numbers_are_the_references_bits(rows, units, draws, dtype):
    seed, row = words(rows)
    for stream in (3, (1 << 32) - 1):
        found = select("uniform", DEVICE)(*on(DEVICE, seed, row), stream, draws, units, dtype)
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


def pre_activations(rows, units, *, classes=0, dtype=torch.float32):
    """Of all sizes: of a few units, of hundreds, and saturated."""
    generator = torch.Generator().manual_seed(rows)
    shape = (rows, units, classes) if classes else (rows, units)
    a = torch.randn(shape, generator=generator, dtype=torch.float64)
    return (a * torch.tensor([1.0, 6, 300, 1e4])[torch.randint(4, shape, generator=generator)]).to(dtype).to(DEVICE)


@group()
@pytest.mark.parametrize("dtype", [*DTYPES, torch.bfloat16])
@pytest.mark.parametrize("kernel", NEURONS)
def test_fused_kernels_have_the_references_bits(kernel, dtype, monkeypatch):
    neuron = gradest.neuron(NEURONS[kernel])
    assert fused(kernel, DEVICE).__module__ == "gradest.kernels.cuda"
    for rows, units, draws in SHAPES[:1] + SHAPES[3:]:
        a = pre_activations(rows, units, classes=(neuron.event_ndim - 1) * 5, dtype=dtype)
        found, wanted = both(neuron, gradest.Key(5, stream=2), a, draws, monkeypatch)
        assert found.dtype == dtype
        assert torch.equal(found, wanted)


@group()
@pytest.mark.parametrize("dtype", DTYPES)
def test_the_two_values_of_a_binary_unit(dtype, monkeypatch):
    class Odd(type(gradest.neuron("bernoulli"))):
        low = -0.1
        high = 0.7

    found, wanted = both(Odd(), gradest.Key(5), pre_activations(9, 9, dtype=dtype), 2, monkeypatch)
    assert len(wanted.unique()) == 2
    assert torch.equal(found, wanted)


@group()
@pytest.mark.parametrize("classes", [1, 1025, 2500])
def test_many_classes(classes, monkeypatch):
    a = pre_activations(1, 2, classes=classes) / 300
    found, wanted = both(gradest.neuron("categorical"), gradest.Key(1), a, 2, monkeypatch)
    assert torch.equal(found, wanted)


@group()
@pytest.mark.parametrize("kernel", NEURONS)
def test_strides_and_rows(kernel, monkeypatch):
    """Of a, of seeds and of row numbers: a row has the same bits alone."""
    neuron = gradest.neuron(NEURONS[kernel])
    a = pre_activations(3, 4, classes=(neuron.event_ndim - 1) * 3).transpose(0, 1)
    numbers = torch.tensor([[7, 1], [1 << 40, 2], [3, 3], [(1 << 53) - 1, 1 << 31]], device=DEVICE)
    found, wanted = both(neuron, gradest.Key(*numbers.T), a, 2, monkeypatch)
    assert torch.equal(found, wanted)
    alone, _ = both(neuron, gradest.Key(*numbers[3:].T), a[3:], 2, monkeypatch)
    assert torch.equal(alone, found[:, 3:])


@group()
@pytest.mark.parametrize("kernel", NEURONS)
@pytest.mark.parametrize("shape", [(0, 3), (3, 0)])
def test_nothing_to_draw(kernel, shape):
    neuron = gradest.neuron(NEURONS[kernel])
    a = torch.zeros(*shape, *(4,) * (neuron.event_ndim - 1), device=DEVICE)
    assert neuron.sample(gradest.Key(1), a, 2).shape == (2, *a.shape)
    assert neuron.sample(gradest.Key(1), torch.zeros(2, *a.shape[1:], device=DEVICE), 0).shape == (0, 2, *a.shape[1:])


@pytest.mark.skipif(INTERPRETED, reason="here they may be")
def test_tensors_on_the_cpu_are_not_for_cuda(monkeypatch):
    with pytest.raises(InvalidInput, match="a tensor is on the CPU: put it on a CUDA device, or unset GRADEST_KERNELS"):
        gradest.Key(1).uniform((2,), (3,))
    monkeypatch.delenv("GRADEST_KERNELS")
    assert select("uniform", torch.device("cpu")).__module__ == "gradest.kernels.cpu"


@pytest.mark.skipif(INTERPRETED, reason="needs the compiler")
def test_the_device_chooses_the_kernels(monkeypatch):
    monkeypatch.setattr(torch.version, "hip", None)
    device = torch.device("cuda")
    for wanted, module in (("", "cuda"), ("cuda", "cuda"), ("cpu", "reference"), ("reference", "reference")):
        monkeypatch.setenv("GRADEST_KERNELS", wanted)
        assert select("uniform", device).__module__ == f"gradest.kernels.{module}"
    monkeypatch.setenv("GRADEST_KERNELS", "")
    monkeypatch.setattr(torch.version, "hip", "6.0")
    assert select("uniform", device) is reference.uniform
