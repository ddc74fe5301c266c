"""How fast samples are drawn on a CUDA device, and layers under gates computed, by the device's clock.

`pytest -m "gpu and benchmark" -s tests/benchmarks`. What is compared takes turns; each number is a median. For samples, a copy of
a tensor shows what the memory can do; the last column is the share of that bandwidth at which a call would move what a fused
kernel must, `a` in and the draws out, in the time that it takes.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn.functional import linear

import gradest
from gradest.nn import ConditionalLinear

pytestmark = [pytest.mark.gpu, pytest.mark.benchmark, pytest.mark.timeout(900)]

ROUNDS = 25


def milliseconds(call: Callable[[], Any]) -> float:
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    start.record()
    call()
    end.record()
    end.synchronize()
    return float(start.elapsed_time(end))


def medians(calls: dict[str, Callable[[], Any]]) -> dict[str, float]:
    """The median time of each call, in milliseconds."""
    for call in calls.values():
        for _ in range(3):
            call()  # kernels compile, memory is set aside
    times: dict[str, list[float]] = {name: [] for name in calls}
    for _ in range(ROUNDS):
        for name, call in calls.items():
            times[name].append(milliseconds(call))
    return {name: statistics.median(of_call) for name, of_call in times.items()}


def compare(title: str, a: Tensor, draws: int, calls: dict[str, Callable[[], Any]]) -> None:
    """Prints the median time of each call, its ratio to gradest's, and its share of the bandwidth of a copy of `a`."""
    out = torch.empty_like(a)
    middle = medians({"a copy of a": lambda: out.copy_(a), **calls})
    print(f"\n{title}, {torch.cuda.get_device_name()}")
    print(f"  {'':42} {'median ms':>10} {'of gradest':>11} {'of a copy':>10}")
    for name, taken in middle.items():
        moved = 1.0 if name == "a copy of a" else (1 + draws) / 2
        share = moved * middle["a copy of a"] / taken
        print(f"  {name:42} {taken:10.4f} {taken / middle['gradest']:10.2f}x {share:9.0%}")


def eager_binary(a: Tensor, draws: int) -> Tensor:
    return (torch.rand(draws, *a.shape, device=a.device) < torch.sigmoid(a)).float()


def eager_rectifier(a: Tensor, draws: int) -> Tensor:
    u = torch.rand(draws, *a.shape, device=a.device)
    return torch.relu(a + torch.log(u) - torch.log1p(-u))


def of_distributions(a: Tensor, draws: int) -> Tensor:
    return torch.distributions.Bernoulli(logits=a, validate_args=False).sample((draws,))


@pytest.mark.parametrize("draws", [1, 4])
@pytest.mark.parametrize("shape", [(8192, 8192), (1 << 20, 60), (64, 200)])
def test_bernoulli(shape, draws):
    a = torch.randn(shape, device="cuda")
    neuron, key, compiled = gradest.neuron("bernoulli"), gradest.Key(1), torch.compile(eager_binary)
    assert float(neuron.sample(key, a, draws).mean()) == pytest.approx(0.5, abs=0.05)
    compare(
        f"bernoulli, {draws} x {shape[0]} x {shape[1]} float32",
        a,
        draws,
        {
            "gradest": lambda: neuron.sample(key, a, draws),
            "gradest.sample": lambda: gradest.sample(neuron, a, draws, 1),
            "gradest, the noise alone": lambda: key.uniform_like(a, draws),
            "(rand < sigmoid).float()": lambda: eager_binary(a, draws),
            "the same, torch.compile": lambda: compiled(a, draws),
            "torch.distributions": lambda: of_distributions(a, draws),
        },
    )


def test_noisy_rectifier():
    a = torch.randn(8192, 8192, device="cuda")
    neuron, key, compiled = gradest.neuron("noisy_rectifier"), gradest.Key(1), torch.compile(eager_rectifier)
    compare(
        "noisy_rectifier, 1 x 8192 x 8192 float32",
        a,
        1,
        {
            "gradest": lambda: neuron.sample(key, a, 1),
            "the same in eager torch": lambda: eager_rectifier(a, 1),
            "the same, torch.compile": lambda: compiled(a, 1),
        },
    )


@pytest.mark.parametrize(("units", "classes"), [(65_536, 1000), (1 << 22, 10)])
def test_categorical(units, classes):
    a = torch.randn(1, units, classes, device="cuda")
    neuron, key = gradest.neuron("categorical"), gradest.Key(1)
    compare(
        f"categorical, {units} x {classes} float32",
        a,
        1,
        {
            "gradest": lambda: neuron.sample(key, a, 1),
            "torch.distributions": lambda: torch.distributions.OneHotCategorical(
                logits=a, validate_args=False
            ).sample(),
        },
    )


@pytest.mark.parametrize(("batch", "units", "block"), [(1, 2000, 1), (256, 2000, 1), (32, 2048, 64), (4096, 8192, 128)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_layer_under_gates(dtype, batch, units, block):
    """A tenth of the gates open, 784 inputs, against gates * (x W^T + b); backward gives the gradients of x, W and b."""
    layer = ConditionalLinear(784, units, block_size=block, method="sparse", device="cuda", dtype=dtype)
    gates = (torch.rand(batch, units // block, device="cuda") < 0.1).to(dtype)
    wide, grad = gates.repeat_interleave(block, -1), torch.randn(batch, units, device="cuda", dtype=dtype)
    x = torch.randn(batch, 784, device="cuda", dtype=dtype, requires_grad=True)
    forward = {"gradest": lambda: layer(x, gates), "dense": lambda: wide * linear(x, layer.weight, layer.bias)}
    outputs = {name: call() for name, call in forward.items()}
    torch.testing.assert_close(outputs["gradest"], outputs["dense"], rtol=0.05, atol=0.05)
    backward = {
        name: lambda out=out: torch.autograd.grad(out, (x, layer.weight, layer.bias), grad, retain_graph=True)
        for name, out in outputs.items()
    }
    print(f"\n{batch} x 784 to {units} in blocks of {block}, {dtype}, {torch.cuda.get_device_name()}")
    for way, calls in (("forward", forward), ("backward", backward)):
        print("  ", way, ", ".join(f"{name} {taken:.4f} ms" for name, taken in medians(calls).items()))
