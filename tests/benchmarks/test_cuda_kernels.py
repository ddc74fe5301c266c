"""How fast samples are drawn on a CUDA device, by the device's clock: `pytest -m "gpu and benchmark" -s tests/benchmarks`.

What is compared takes turns; each number is a median. A copy of a tensor shows what the memory can do; the last column is the
share of that bandwidth at which a call would move what a fused kernel must, `a` in and the draws out, in the time that it takes.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

import gradest

pytestmark = [pytest.mark.gpu, pytest.mark.benchmark, pytest.mark.timeout(900)]

ROUNDS = 25


def milliseconds(call: Callable[[], Any]) -> float:
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    start.record()
    call()
    end.record()
    end.synchronize()
    return float(start.elapsed_time(end))


def compare(title: str, a: Tensor, draws: int, calls: dict[str, Callable[[], Any]]) -> None:
    """Prints the median time of each call, its ratio to gradest's, and its share of the bandwidth of a copy of `a`."""
    out = torch.empty_like(a)
    calls = {"a copy of a": lambda: out.copy_(a), **calls}
    for call in calls.values():
        for _ in range(3):
            call()  # kernels compile, memory is set aside
    times: dict[str, list[float]] = {name: [] for name in calls}
    for _ in range(ROUNDS):
        for name, call in calls.items():
            times[name].append(milliseconds(call))
    middle = {name: statistics.median(of_call) for name, of_call in times.items()}
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
