"""What gradest adds to a training step so small that arithmetic costs nothing.

Each case is forward and backward at a batch of 1 x 10 with a quadratic loss, against the same estimator written by hand in
torch.
"""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

import gradest
from gradest.estimation.ask_tell import ask, tell
from gradest.nn import Expectation, Stochastic, broadcast_loss

from .by_hand import PAIRS

pytestmark = [pytest.mark.benchmark, pytest.mark.timeout(900)]

ASKED = 100  # microseconds at most
WEIGHT = torch.linspace(-1, 1, 10)
Step = Callable[[Tensor], object]


def f(h: Tensor) -> Tensor:
    return (h * WEIGHT).sum(-1) ** 2


def expect(name: str) -> Step:
    return lambda a: gradest.expect(f, a, "bernoulli", name)[0].mean().backward()


def expect_built(name: str) -> Step:
    neuron, estimator = gradest.neuron("bernoulli"), gradest.estimator(name)
    return lambda a: gradest.expect(f, a, neuron, estimator)[0].mean().backward()


def ask_and_tell(name: str) -> Step:
    neuron, estimator = gradest.neuron("bernoulli"), gradest.estimator(name)

    def step(a: Tensor) -> None:
        draw, state = ask(neuron, estimator, a, gradest.Key(3))
        points = draw.points.requires_grad_("grad" in estimator.needs)
        loss = f(points)
        grad = torch.autograd.grad(loss.sum(), points)[0] if "grad" in estimator.needs else None
        a.grad, _ = tell(estimator, draw, gradest.Feedback(loss.detach(), grad), state)

    return step


def expectation_layer(name: str) -> Step:
    layer = Expectation("bernoulli", name)
    return lambda a: layer(f, a).mean().backward()


def stochastic_layer(name: str) -> Step:
    layer = Stochastic("bernoulli", name)
    if name == "straight_through":
        return lambda a: f(layer(a)).mean().backward()
    return lambda a: broadcast_loss(layer, f(layer(a))).backward()


WAYS = {
    "expect, by name": expect,
    "expect": expect_built,
    "ask and tell": ask_and_tell,
    "nn.Expectation": expectation_layer,
    "nn.Stochastic": stochastic_layer,
}


def mean_gradient(step: Step, given: Tensor, steps: int = 400) -> Tensor:
    a = given.expand(64, -1).clone().requires_grad_()
    total = torch.zeros(10)
    for _ in range(steps):
        a.grad = None
        step(a)
        assert a.grad is not None
        total += a.grad.sum(0)
    return total / steps


@pytest.mark.parametrize("estimator", [estimator for neuron, estimator in PAIRS if neuron == "bernoulli"])
def test_overhead(bench, estimator):
    torch.manual_seed(0)
    given = torch.randn(1, 10)

    def by_hand(a: Tensor) -> None:
        PAIRS["bernoulli", estimator](a, f)

    steps = {"by hand": by_hand}
    for way, make in WAYS.items():
        if way == "nn.Stochastic" and estimator in ("rloo", "disarm"):
            continue  # two samples do not fit a layer that emits one
        steps[way] = make(estimator)
        if way != "ask and tell":
            gap = (mean_gradient(steps[way], given) - mean_gradient(by_hand, given)).abs().max()
            assert gap < 0.5 * mean_gradient(by_hand, given).abs().max()
    calls = {way: lambda step=step: step(given.detach().requires_grad_()) for way, step in steps.items()}
    found = bench.measure(calls, rounds=25, turn=0.02)
    for way in list(found)[1:]:
        over = [1e3 * (x - y) for x, y in zip(found[way], found["by hand"], strict=True)]
        title = f"{estimator}, 1 x 10, time beyond plain torch by hand"
        bench.bound(title, way, "µs", over, at_most=ASKED if way == "expect" else None)
