"""How time and memory grow with the number of units, rows, draws and points."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor

import gradest

pytestmark = [pytest.mark.benchmark, pytest.mark.timeout(3600)]


def loss(h: Tensor) -> Tensor:
    return ((h - 0.2) ** 2).sum(-1)


def sample(rows: int = 64, units: int = 200, draws: int = 1) -> Callable[[], object]:
    a, neuron = torch.randn(rows, units), gradest.neuron("bernoulli")
    return lambda: gradest.sample(neuron, a, draws)


def gradient(rows: int = 64, units: int = 200, points: int = 2) -> Callable[[], object]:
    a, neuron = torch.randn(rows, units, requires_grad=True), gradest.neuron("bernoulli")
    estimator = gradest.estimator({"name": "rloo", "samples": points})
    return lambda: gradest.expect(loss, a, neuron, estimator)[0].sum().backward()


def estimate(rows: int = 16, units: int = 50, draws: int = 100) -> Callable[[], object]:
    a = torch.randn(rows, units)
    return lambda: gradest.estimate(loss, a, "bernoulli", "rloo", draws=draws)


@pytest.mark.parametrize(
    ("what", "axis", "sizes"),
    [
        (sample, "units", [4**n for n in range(9)]),
        (sample, "rows", [4**n for n in range(8)]),
        (sample, "draws", [4**n for n in range(5)]),
        (gradient, "units", [4**n for n in range(8)]),
        (gradient, "rows", [4**n for n in range(7)]),
        (gradient, "points", [2 * 4**n for n in range(5)]),
        (estimate, "units", [4**n for n in range(7)]),
        (estimate, "rows", [4**n for n in range(6)]),
        (estimate, "draws", [4 * 4**n for n in range(7)]),
    ],
)
def test_time(bench, what, axis, sizes):
    names = {
        sample: "a bernoulli sample, 64 x 200",
        gradient: "rloo, expect and backward, 64 x 200",
        estimate: "estimate, 100 draws of rloo, 16 x 50",
    }
    calls = {size: what(**{axis: size}) for size in sizes}
    bench.grow(names[what], axis, bench.measure(calls, rounds=5, turn=0.04), at_most=1.1)


STATUS = Path("/proc/self/status")
SCRIPT = f"""
import sys, time
import torch, gradest

def kilobytes(field):
    # getrusage would tell of the process that started this one as well
    with open("{STATUS}") as status:
        return next(int(line.split()[1]) for line in status if line.startswith(field))

def run(draws):
    gradest.estimate(lambda h: ((h - 0.2) ** 2).sum(-1), a, "bernoulli", "rloo", draws=draws, seed=1)

torch.set_num_threads(int(sys.argv[2]))
a = torch.randn(64, 200, generator=torch.Generator().manual_seed(0))
before = kilobytes("VmRSS")
run(100)  # loads what one call needs, which is not in the time
began = time.perf_counter()
run(int(sys.argv[1]))
print(1e3 * (time.perf_counter() - began), (kilobytes("VmHWM") - before) / 1024)
"""


@pytest.mark.skipif(not STATUS.exists(), reason="needs /proc")
def test_many_draws(bench):
    """Each number of draws in a process of its own."""
    time, memory = {}, {}
    for draws in (1_000, 3_000, 10_000) if bench.short else (10_000, 100_000, 1_000_000):
        done = subprocess.run(
            [sys.executable, "-c", SCRIPT, str(draws), str(torch.get_num_threads())],
            capture_output=True,
            text=True,
            check=True,
        )
        milliseconds, mebibytes = map(float, done.stdout.split())
        time[draws], memory[draws] = [milliseconds], [mebibytes]
    bench.grow("estimate, rloo, 64 x 200", "draws", time, overhead=False, at_most=1.1)
    title = "estimate, rloo, 64 x 200, peak memory above start"
    bench.grow(title, "draws", memory, unit="MiB", overhead=False, at_most=0.05)
