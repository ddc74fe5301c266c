"""How far samples and steps of layers are from the speed that they should have beside eager torch, where caches matter.

CPU time of one thread, the least of many calls in turns, with other operators of torch between them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest
import torch
from torch import Tensor

import gradest
from gradest.nn import Stochastic

from .test_kernels import eager_binary, eager_gate, eager_noisy_sigmoid, eager_rectifier, step

pytestmark = [pytest.mark.benchmark, pytest.mark.timeout(900)]

SIZES = (256, 2048), (1024, 4096)
CLASSES = 10
STEPS: dict[str, tuple[str, Callable[[Tensor], Tensor]]] = {
    "noisy_rectifier": ("held_noise", eager_rectifier),
    "stochastic_times_smooth": ("held_noise", eager_gate),
    "noisy_sigmoid": ("held_noise", eager_noisy_sigmoid),
    "bernoulli": ("straight_through", lambda a: a + (eager_binary(a) - a).detach()),
}
"""The estimator, and the lines by hand, by the name of the unit."""


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def rounds(*size: int) -> int:
    return max(9, (30 << 20) // (size[0] * size[1]))


@pytest.mark.parametrize("size", SIZES, ids="{0[0]}x{0[1]}".format)
def test_binary(bench, size):
    a, neuron, key = torch.randn(size), gradest.neuron("bernoulli"), gradest.Key(1)
    calls = {"gradest": lambda: neuron.sample(key, a, 1), "eager torch": lambda: eager_binary(a)}
    title = f"bernoulli, forward, {size[0]} x {size[1]}, CPU time"
    bench.compare(title, bench.least_in_turns(calls, rounds(*size)), at_least={"eager torch": 8})


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("size", [*SIZES, (4096, 4096)], ids="{0[0]}x{0[1]}".format)
def test_binary_in_half_precision(bench, size, dtype):
    a, neuron, key = torch.randn(size).to(dtype), gradest.neuron("bernoulli"), gradest.Key(1)
    calls = {
        "gradest": lambda: neuron.sample(key, a, 1),
        "gradest, from a widened copy": lambda: neuron.sample(key, a.float(), 1).to(dtype),
        "eager torch": lambda: (torch.rand_like(a) < torch.sigmoid(a)).to(dtype),
    }
    title = f"bernoulli, {dtype}, forward, {size[0]} x {size[1]}, CPU time"
    bench.compare(title, bench.least_in_turns(calls, rounds(*size)))


def test_binary_beside_a_copy(bench):
    a, out = torch.randn(4096, 4096), torch.empty(4096, 4096)
    neuron, key = gradest.neuron("bernoulli"), gradest.Key(1)
    calls = {"gradest": lambda: neuron.sample(key, a, 1), "a copy": lambda: out.copy_(a)}
    found = bench.least_in_turns(calls, rounds(*a.shape))
    bench.compare("bernoulli, forward, 4096 x 4096, CPU time", found, at_least={"a copy": 1 / 2.2})


@pytest.mark.parametrize("size", SIZES, ids="{0[0]}x{0[1]}".format)
@pytest.mark.parametrize("name", STEPS)
def test_steps(bench, name, size):
    estimator, eager = STEPS[name]
    layer = Stochastic(name, estimator)
    a, grad = torch.randn(size, requires_grad=True), torch.randn(size)
    calls = {"gradest": lambda: step(layer, a, grad), "eager torch": lambda: step(eager, a, grad)}
    title = f"{name} with {estimator}, forward and backward, {size[0]} x {size[1]}, CPU time"
    bench.compare(title, bench.least_in_turns(calls, rounds(*size)), at_least={"eager torch": 5})


@pytest.mark.parametrize("size", SIZES, ids="{0[0]}x{0[1]}".format)
def test_classes(bench, size):
    neuron, key, a = gradest.neuron("categorical"), gradest.Key(1), torch.randn(size[0], size[1] // CLASSES, CLASSES)
    calls = {
        "gradest": lambda: neuron.sample(key, a, 1),
        "torch OneHotCategorical": lambda: torch.distributions.OneHotCategorical(logits=a).sample(),
        "argmax of a + Gumbel noise": lambda: (a - torch.log(-torch.log(torch.rand_like(a)))).argmax(-1),
    }
    asked = {"torch OneHotCategorical": 8.0, "argmax of a + Gumbel noise": 2.0}
    title = f"categorical, forward, {size[0]} x {size[1] // CLASSES} x {CLASSES}, CPU time"
    bench.compare(title, bench.least_in_turns(calls, rounds(*size)), at_least=asked)
