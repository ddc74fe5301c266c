"""How fast samples are drawn on this machine's CPU, as ratios within one run: `make bench`, or
`pytest -m benchmark -s tests/benchmarks/test_kernels.py`.

What is compared takes turns, so that a busy machine slows all of it alike; each number is a median, with the quartiles. Set
OMP_NUM_THREADS for both sides. Nothing is asserted but that what was drawn is right.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

import gradest
import gradest.nn

pytestmark = [pytest.mark.benchmark, pytest.mark.timeout(900)]

ROUNDS = 9


def compare(title: str, calls: dict[str, Callable[[], Any]], rounds: int = ROUNDS, repeat: int = 1) -> None:
    """Prints the median time of each call, and its ratio to that of gradest, round by round."""
    seconds: dict[str, list[float]] = {name: [] for name in calls}
    for call in calls.values():
        call()  # kernels compile, caches fill
    for _ in range(rounds):
        for name, call in calls.items():
            start = time.perf_counter()
            for _ in range(repeat):
                call()
            seconds[name].append((time.perf_counter() - start) / repeat)
    print(f"\n{title}, {torch.get_num_threads()} threads")
    print(f"  {'':42} {'median ms':>10} {'quartiles':>19} {'of gradest':>11}")
    for name, times in seconds.items():
        lower, middle, upper = statistics.quantiles(times, n=4)
        ratio = statistics.median(x / y for x, y in zip(times, seconds["gradest"], strict=True))
        print(f"  {name:42} {1e3 * middle:10.3f} {1e3 * lower:9.3f}-{1e3 * upper:9.3f} {ratio:10.2f}x")


def of_distributions(law: Callable[..., Any], a: Tensor) -> Tensor:
    distribution = law(logits=a)
    h: Tensor = distribution.sample()
    distribution.log_prob(h)
    return h


@pytest.mark.parametrize("draws", [1, 4])
def test_bernoulli(draws):
    a, out = torch.randn(4096, 4096), torch.empty(4096, 4096)
    assert float(gradest.sample("bernoulli", a, draws, 1).mean()) == pytest.approx(0.5, abs=0.01)
    neuron, key, wide = gradest.neuron("bernoulli"), gradest.Key(1), a.expand(draws, -1, -1)
    compare(
        f"bernoulli, {draws} x 4096 x 4096 float32",
        {
            "gradest": lambda: neuron.sample(key, a, draws),
            "gradest.sample": lambda: gradest.sample(neuron, a, draws, 1),
            "a copy of 4096 x 4096": lambda: out.copy_(a),
            "(rand < sigmoid).float()": lambda: eager_binary(wide),
            "torch.bernoulli(sigmoid)": lambda: torch.bernoulli(torch.sigmoid(a).expand_as(wide)),
            "torch.distributions, sample and log_prob": lambda: of_distributions(torch.distributions.Bernoulli, wide),
        },
        rounds=5,
    )


def eager_binary(a: Tensor) -> Tensor:
    return (torch.rand_like(a) < torch.sigmoid(a)).float()


def eager_rectifier(a: Tensor) -> Tensor:
    u = torch.rand_like(a)
    return torch.relu(a + torch.log(u) - torch.log1p(-u))


def eager_gate(a: Tensor) -> Tensor:
    root = torch.sqrt(torch.sigmoid(a))
    return torch.where(torch.rand_like(a) < root, root, torch.zeros_like(a))


SMOOTH = [("noisy_rectifier", eager_rectifier), ("stochastic_times_smooth", eager_gate)]


@pytest.mark.parametrize(("name", "eager"), SMOOTH)
def test_smooth_neurons(name, eager):
    neuron, key, a = gradest.neuron(name), gradest.Key(1), torch.randn(2048, 4096)
    compare(
        f"{name}, 2048 x 4096 float32",
        {"gradest": lambda: neuron.sample(key, a, 1), "the same in eager torch": lambda: eager(a)},
    )


def step(layer: Callable[[Tensor], Tensor], a: Tensor, grad: Tensor) -> Tensor:
    (found,) = torch.autograd.grad(layer(a), a, grad)
    return found


@pytest.mark.parametrize(("name", "eager"), SMOOTH)
def test_steps_of_smooth_layers(name, eager):
    layer = gradest.nn.Stochastic(name, "held_noise")
    a, grad = torch.randn(2048, 4096, requires_grad=True), torch.randn(2048, 4096)
    compare(
        f"{name}, forward and backward, 2048 x 4096 float32",
        {"gradest": lambda: step(layer, a, grad), "the same in eager torch": lambda: step(eager, a, grad)},
    )


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
def test_steps_of_a_straight_through_layer(derivative):
    layer = gradest.nn.Stochastic("bernoulli", {"name": "straight_through", "derivative": derivative})
    a, grad = torch.randn(4096, 4096, requires_grad=True), torch.randn(4096, 4096)

    def detached(a: Tensor) -> Tensor:
        through = a if derivative == "identity" else torch.sigmoid(a)
        h = (torch.rand_like(a) < torch.sigmoid(a)).float()
        return through + (h - through).detach()

    compare(
        f"bernoulli, straight_through {derivative}, forward and backward, 4096 x 4096 float32",
        {
            "gradest": lambda: step(layer, a, grad),
            "p + (h - p).detach(), eager": lambda: step(detached, a, grad),
            "an autograd function, eager": lambda: step(lambda a: EagerStraightThrough.apply(a, derivative), a, grad),
        },
    )


@pytest.mark.parametrize(("units", "classes"), [(4096, 1000), (100_000, 10)])
def test_categorical(units, classes):
    neuron, key, a = gradest.neuron("categorical"), gradest.Key(1), torch.randn(1, units, classes)
    compare(
        f"categorical, {units} x {classes} float32",
        {
            "gradest": lambda: neuron.sample(key, a, 1),
            "torch OneHotCategorical, sample": lambda: torch.distributions.OneHotCategorical(logits=a).sample(),
            "argmax of a + Gumbel noise, eager": lambda: (a - torch.log(-torch.log(torch.rand_like(a)))).argmax(-1),
        },
    )


def test_small_batches():
    for rows, units in ((1, 10), (64, 200), (100_000, 2)):
        neuron, key, a = gradest.neuron("bernoulli"), gradest.Key(1), torch.randn(rows, units)
        compare(
            f"bernoulli, {rows} x {units} float32",
            {
                "gradest": lambda neuron=neuron, key=key, a=a: neuron.sample(key, a, 1),
                "(rand < sigmoid).float()": lambda a=a: eager_binary(a),
            },
            repeat=50,
        )


@pytest.mark.parametrize(("rows", "units"), [(1, 10), (64, 200)])
@pytest.mark.parametrize("estimator", ["rloo", "disarm"])
def test_one_call_of_expect(estimator, rows, units):
    neuron, weight, given = gradest.neuron("bernoulli"), torch.randn(units), torch.randn(rows, units)
    ours_by_name = gradest.estimator(estimator)

    def f(h: Tensor) -> Tensor:
        return (h * weight).sum(-1) ** 2

    def ours() -> None:
        a = given.clone().requires_grad_()
        gradest.expect(f, a, neuron, ours_by_name, seed=3)[0].sum().backward()

    def by_hand() -> None:
        a = given.clone().requires_grad_()
        p = torch.sigmoid(a.detach())
        if estimator == "rloo":
            h = (torch.rand(2, rows, units) < p).float()
            loss = f(h)
            gradient = ((loss - loss.mean(0))[..., None] * (h - p)).sum(0)
        else:
            u = torch.rand(rows, units)
            h = torch.stack([u < p, 1 - u < p]).float()
            loss = f(h)
            gradient = 0.5 * (loss[0] - loss[1])[..., None] * (h[0] - h[1]) * torch.sigmoid(a.detach().abs())
        (loss.mean(0) + ((a - a.detach()) * gradient).sum(-1)).sum().backward()

    compare(
        f"expect and backward, {estimator}, {rows} x {units}",
        {"gradest": ours, "by hand": by_hand},
        rounds=25,
        repeat=50,
    )
