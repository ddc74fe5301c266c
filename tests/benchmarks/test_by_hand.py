"""The commonest pairs against the same lines written by hand in torch, forward and backward, at sizes that fit a cache.

CPU time of one thread, the least of many turns: what Python and the operators take, whatever else the machine does.
"""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

import gradest
from gradest.nn import Stochastic, broadcast_loss

from .by_hand import PAIRS, Loss, Step

pytestmark = [pytest.mark.benchmark, pytest.mark.timeout(900)]

ASKED = 1.5  # times the lines by hand, at most
SIZES = (1, 10), (64, 200)  # rows and numbers of a row
CLASSES = 10


def pre_activations(neuron: str, rows: int, numbers: int) -> Tensor:
    a = torch.randn(rows, numbers)
    return a.unflatten(-1, (-1, CLASSES)) if neuron == "categorical" else a


def loss_of(a: Tensor) -> Loss:
    """A quadratic loss, one number an event."""
    weight = torch.linspace(-1, 1, a[0].numel()).view_as(a[0])
    dims = tuple(range(1 - a.ndim, 0))
    return lambda h: (h * weight).sum(dims) ** 2


def by_layer(neuron: str, estimator: str) -> Step | None:
    if estimator in ("rloo", "disarm"):
        return None  # two samples do not fit a layer that emits one
    layer = Stochastic(neuron, estimator)
    if "loss" in layer.estimator.needs:
        return lambda a, f: broadcast_loss(layer, f(layer(a))).backward()
    return lambda a, f: f(layer(a)).mean().backward()


@pytest.mark.parametrize("pair", PAIRS, ids="-".join)
@pytest.mark.parametrize("size", SIZES, ids="{0[0]}x{0[1]}".format)
def test_a_step(bench, size, pair):
    torch.manual_seed(0)
    neuron, estimator = pair
    given = pre_activations(neuron, *size)
    f = loss_of(given)
    steps: dict[str, Step | None] = {
        "by hand": PAIRS[pair],
        "expect": lambda a, f: gradest.expect(f, a, neuron, estimator)[0].mean().backward(),
        "nn.Stochastic": by_layer(neuron, estimator),
    }
    calls = {
        way: lambda step=step: step(given.detach().requires_grad_(), f)
        for way, step in steps.items()
        if step is not None
    }
    _keep(bench, f"{neuron} with {estimator}, {size[0]} x {size[1]}, forward and backward", calls)


@pytest.mark.parametrize("size", SIZES, ids="{0[0]}x{0[1]}".format)
@pytest.mark.parametrize("neuron", ["bernoulli", "gaussian"])
def test_a_sample(bench, size, neuron):
    a = pre_activations(neuron, *size)

    def by_hand() -> Tensor:
        if neuron == "gaussian":
            return a + torch.randn_like(a)
        p = torch.sigmoid(a)
        return (torch.rand_like(p) < p).float()

    _keep(
        bench,
        f"sample of {neuron}, {size[0]} x {size[1]}",
        {"by hand": by_hand, "gradest": lambda: gradest.sample(neuron, a)},
    )


def _keep(bench, title: str, calls: dict[str, Callable[[], object]]) -> None:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        least = bench.least(calls)
    finally:
        torch.set_num_threads(threads)
    for way, milliseconds in least.items():
        if way != "by hand":
            ratio = milliseconds / least["by hand"]
            bench.bound(f"{title}, CPU time", way, "× by hand", [ratio], at_most=ASKED)
