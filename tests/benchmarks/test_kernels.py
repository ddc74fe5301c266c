"""How fast samples and steps of layers are on the CPU, against eager torch. OMP_NUM_THREADS is for both sides."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

import gradest
import gradest.nn

pytestmark = [pytest.mark.benchmark, pytest.mark.timeout(900)]


def of_distributions(law: Callable[..., Any], a: Tensor) -> Tensor:
    distribution = law(logits=a)
    h: Tensor = distribution.sample()
    distribution.log_prob(h)
    return h


@pytest.mark.parametrize("draws", [1, 4])
def test_bernoulli(bench, draws):
    rows = 1024 if bench.short else 4096
    a, out = torch.randn(rows, 4096), torch.empty(rows, 4096)
    assert float(gradest.sample("bernoulli", a, draws, 1).mean()) == pytest.approx(0.5, abs=0.01)
    neuron, key, wide = gradest.neuron("bernoulli"), gradest.Key(1), a.expand(draws, -1, -1)
    found = bench.measure(
        {
            "gradest": lambda: neuron.sample(key, a, draws),
            "gradest.sample": lambda: gradest.sample(neuron, a, draws, 1),
            "a copy of one draw": lambda: out.copy_(a),
            "(rand < sigmoid).float()": lambda: eager_binary(wide),
            "torch.bernoulli(sigmoid)": lambda: torch.bernoulli(torch.sigmoid(a).expand_as(wide)),
            "torch.distributions, sample and log_prob": lambda: of_distributions(torch.distributions.Bernoulli, wide),
        },
        rounds=9,
    )
    asked = {"a copy of one draw": 1 / 4, "(rand < sigmoid).float()": 6, "torch.distributions, sample and log_prob": 15}
    bench.compare(f"bernoulli, {draws} x {rows} x 4096", found, at_least=asked if draws == 1 else None)


def eager_binary(a: Tensor) -> Tensor:
    return (torch.rand_like(a) < torch.sigmoid(a)).float()


def eager_rectifier(a: Tensor) -> Tensor:
    u = torch.rand_like(a)
    return torch.relu(a + torch.log(u) - torch.log1p(-u))


def eager_gate(a: Tensor) -> Tensor:
    root = torch.sqrt(torch.sigmoid(a))
    return torch.where(torch.rand_like(a) < root, root, torch.zeros_like(a))


def eager_concrete(a: Tensor) -> Tensor:
    u = torch.rand_like(a)
    return torch.sigmoid((a + torch.log(u) - torch.log1p(-u)) / 0.5)


def eager_hard_concrete(a: Tensor) -> Tensor:
    u = torch.rand_like(a)
    return (torch.sigmoid((a + torch.log(u) - torch.log1p(-u)) * 1.5) * 1.2 - 0.1).clamp(0, 1)


def eager_noisy_sigmoid(a: Tensor) -> Tensor:
    return torch.sigmoid(a + torch.randn_like(a))


def eager_binomial(a: Tensor) -> Tensor:
    return torch.binomial(torch.full_like(a, 4.0), torch.sigmoid(a))


def eager_poisson(a: Tensor) -> Tensor:
    return torch.poisson(torch.nn.functional.softplus(a))


SMOOTH = [
    ("noisy_rectifier", eager_rectifier),
    ("stochastic_times_smooth", eager_gate),
    ("binary_concrete", eager_concrete),
    ("hard_concrete", eager_hard_concrete),
    ("noisy_sigmoid", eager_noisy_sigmoid),
]
COUNTS = [("binomial", eager_binomial), ("poisson", eager_poisson)]
CERTAIN = [("heaviside", lambda a: (a > 0).float()), ("rectifier", torch.relu), ("sigmoid", torch.sigmoid)]


@pytest.mark.parametrize(("name", "eager"), [*SMOOTH, *COUNTS, *CERTAIN])
def test_neurons(bench, name, eager):
    neuron, key, a = gradest.neuron(name), gradest.Key(1), torch.randn(256 if bench.short else 2048, 4096)
    found = bench.measure({"gradest": lambda: neuron.sample(key, a, 1), "eager torch": lambda: eager(a)}, rounds=9)
    bench.compare(f"{name}, forward, {len(a)} x 4096", found)


def step(layer: Callable[[Tensor], Tensor], a: Tensor, grad: Tensor) -> Tensor:
    (found,) = torch.autograd.grad(layer(a), a, grad)
    return found


@pytest.mark.parametrize(("name", "eager"), SMOOTH)
def test_steps_of_smooth_layers(bench, name, eager):
    layer = gradest.nn.Stochastic(name, "held_noise")
    rows = 256 if bench.short else 2048
    a, grad = torch.randn(rows, 4096, requires_grad=True), torch.randn(rows, 4096)
    found = bench.measure(
        {"gradest": lambda: step(layer, a, grad), "eager torch": lambda: step(eager, a, grad)}, rounds=9
    )
    asked = {"eager torch": 5.0} if name in ("noisy_rectifier", "stochastic_times_smooth") else None
    bench.compare(f"{name}, forward and backward, {rows} x 4096", found, at_least=asked)


@pytest.mark.parametrize(("units", "classes"), [(4096, 1000), (100_000, 10)])
def test_gumbel_softmax(bench, units, classes):
    neuron, key = gradest.neuron("gumbel_softmax"), gradest.Key(1)
    layer = gradest.nn.Stochastic(neuron, "pathwise")
    a, grad = torch.randn(1, units, classes, requires_grad=True), torch.randn(1, units, classes)
    given = a.detach()
    forward = {
        "gradest": lambda: neuron.sample(key, given, 1),
        "torch.nn.functional.gumbel_softmax": lambda: torch.nn.functional.gumbel_softmax(given, tau=0.5),
    }
    bench.compare(f"gumbel_softmax, forward, {units} x {classes}", bench.measure(forward, rounds=9))
    both = {
        "gradest": lambda: step(layer, a, grad),
        "torch.nn.functional.gumbel_softmax": lambda: step(
            lambda a: torch.nn.functional.gumbel_softmax(a, tau=0.5), a, grad
        ),
    }
    bench.compare(f"gumbel_softmax, forward and backward, {units} x {classes}", bench.measure(both, rounds=9))


def test_bytes(bench):
    a = torch.randn(256 if bench.short else 2048, 4096)
    found = bench.measure(
        {
            "gradest.sample, dtype=torch.uint8": lambda: gradest.sample("bernoulli", a, 1, 1, dtype=torch.uint8),
            "gradest.sample, then .to(torch.uint8)": lambda: gradest.sample("bernoulli", a, 1, 1).to(torch.uint8),
            "rand < sigmoid": lambda: torch.rand_like(a) < torch.sigmoid(a),
        },
        rounds=9,
    )
    bench.compare(f"bernoulli as bytes, {len(a)} x 4096", found)


class EagerStraightThrough(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, a: Tensor, derivative: str) -> Tensor:
        p = torch.sigmoid(a)
        ctx.save_for_backward(p)
        ctx.derivative = derivative
        return (torch.rand_like(p) < p).float()

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        (p,) = ctx.saved_tensors
        return grad if ctx.derivative == "identity" else grad * p * (1 - p), None


@pytest.mark.parametrize("derivative", ["identity", "sigmoid"])
def test_steps_of_a_straight_through_layer(bench, derivative):
    layer = gradest.nn.Stochastic("bernoulli", {"name": "straight_through", "derivative": derivative})
    rows = 1024 if bench.short else 4096
    a, grad = torch.randn(rows, 4096, requires_grad=True), torch.randn(rows, 4096)

    def detached(a: Tensor) -> Tensor:
        through = a if derivative == "identity" else torch.sigmoid(a)
        h = (torch.rand_like(a) < torch.sigmoid(a)).float()
        return through + (h - through).detach()

    found = bench.measure(
        {
            "gradest": lambda: step(layer, a, grad),
            "p + (h - p).detach()": lambda: step(detached, a, grad),
            "an autograd function": lambda: step(lambda a: EagerStraightThrough.apply(a, derivative), a, grad),
        },
        rounds=9,
    )
    title = f"straight_through {derivative}, forward and backward, {rows} x 4096"
    bench.compare(title, found, at_least=dict.fromkeys(list(found)[1:], 5))


@pytest.mark.parametrize(("units", "classes"), [(4096, 1000), (100_000, 10)])
def test_categorical(bench, units, classes):
    neuron, key, a = gradest.neuron("categorical"), gradest.Key(1), torch.randn(1, units, classes)
    found = bench.measure(
        {
            "gradest": lambda: neuron.sample(key, a, 1),
            "torch OneHotCategorical": lambda: torch.distributions.OneHotCategorical(logits=a).sample(),
            "argmax of a + Gumbel noise": lambda: (a - torch.log(-torch.log(torch.rand_like(a)))).argmax(-1),
        },
        rounds=9,
    )
    bench.compare(f"categorical, {units} x {classes}", found, at_least={"torch OneHotCategorical": 4})


@pytest.mark.parametrize(("rows", "units"), [(1, 10), (64, 200), (100_000, 2)])
def test_small_batches(bench, rows, units):
    neuron, key, a = gradest.neuron("bernoulli"), gradest.Key(1), torch.randn(rows, units)
    found = bench.measure(
        {"gradest": lambda: neuron.sample(key, a, 1), "(rand < sigmoid).float()": lambda: eager_binary(a)}, rounds=9
    )
    bench.compare(f"bernoulli, {rows} x {units}", found)
