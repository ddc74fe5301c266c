"""Gradients of gradest against those of storchastic, Pyro, snntorch, reinmax and torch written by hand."""

from __future__ import annotations

import statistics
from collections.abc import Callable
from contextlib import ExitStack
from functools import partial
from importlib.util import find_spec

import pytest
import torch
from torch import Tensor

import gradest
import gradest.nn

from .peers import Peer, exact, logits, loss, slopes

pytestmark = [
    pytest.mark.benchmark,
    pytest.mark.timeout(900),
    pytest.mark.skipif(
        not all(map(find_spec, ("storch", "pyro", "snntorch", "reinmax"))), reason="needs gradest[bench]"
    ),
]

Gradient = Callable[[], Tensor]


def ours(estimator: str, **options: object) -> Gradient:
    given, neuron, made = logits(), gradest.neuron("bernoulli"), gradest.estimator({"name": estimator, **options})

    def gradient() -> Tensor:
        a = given.detach().requires_grad_()
        gradest.expect(loss, a, neuron, made)[0].mean().backward()
        return a.grad

    return gradient


def rloo_by_hand() -> Gradient:
    given = logits()

    def gradient() -> Tensor:
        a = given.detach().requires_grad_()
        p = torch.sigmoid(a)
        h = (torch.rand(2, *a.shape) < p).float()
        first, second = loss(h)
        # ½ (f₁ - f₂)(b₁ - b₂): p falls out
        surrogate = a * (0.5 * (first - second)[:, None] * (h[0] - h[1]))
        (0.5 * (first + second) + surrogate.sum(-1)).mean().backward()
        return a.grad

    return gradient


def disarm_by_hand() -> Gradient:
    given = logits()

    def gradient() -> Tensor:
        a = given.detach().requires_grad_()
        p, u = torch.sigmoid(a.detach()), torch.rand_like(a)
        h = torch.stack([(u > 1 - p).float(), (u < p).float()])
        first, second = loss(h)
        surrogate = a * (0.5 * (first - second)[:, None] * (h[0] - h[1]) * torch.maximum(p, 1 - p))
        (0.5 * (first + second) + surrogate.sum(-1)).mean().backward()
        return a.grad

    return gradient


def log_prob_by_hand() -> Gradient:
    """A loss to differentiate, as it is written with torch.distributions."""
    given = logits()

    def gradient() -> Tensor:
        a = given.detach().requires_grad_()
        law = torch.distributions.Bernoulli(logits=a)
        h = law.sample((2,))
        cost = loss(h)
        ((cost - cost.flip(0)) * law.log_prob(h).sum(-1)).mean().backward()
        return a.grad

    return gradient


@pytest.mark.parametrize(
    ("estimator", "options", "by_hand", "peers", "at_least"),
    [
        (
            "rloo",
            {},
            {"torch by hand": rloo_by_hand, "torch.distributions": log_prob_by_hand},
            {"storchastic": "storchastic_rloo"},
            {"storchastic": 10, "torch by hand": 1},
        ),
        (
            "disarm",
            {},
            {"torch by hand": disarm_by_hand},
            {"storchastic, ARM": "storchastic_arm"},
            {"storchastic, ARM": 10, "torch by hand": 1},
        ),
        ("reinforce", {"samples": 2}, {}, {"Pyro, TraceGraph_ELBO": "pyro_reinforce"}, {}),
    ],
)
def test_binary(bench, estimator, options, by_hand, peers, at_least):
    torch.manual_seed(0)
    with ExitStack() as stack:
        contenders = {"gradest": ours(estimator, **options), **{name: make() for name, make in by_hand.items()}}
        contenders |= {name: stack.enter_context(Peer(peer)) for name, peer in peers.items()}
        for name, contender in contenders.items():
            check_unbiased(
                name, contender.slopes if isinstance(contender, Peer) else partial(slopes, contender, exact())
            )
        bench.compare(f"{estimator}, K = 2, 64 x 200, a gradient", bench.measure(contenders), at_least=at_least)


def check_unbiased(name: str, more: Callable[[int], list[float]]) -> None:
    """The mean of ⟨ĝ, g⟩ / ⟨g, g⟩ is 1, to 5 standard errors of at most 0.05 each: a factor of two is ten away, or more.

    more: so many more draws of it. Too many would be needed if the variance were far above that of the estimators here.
    """
    found = more(100)
    while (error := statistics.stdev(found) / len(found) ** 0.5) > 0.05:
        assert len(found) < 3000, name
        found += more(100)
    assert abs(statistics.mean(found) - 1) < 5 * error, name


@pytest.mark.parametrize("derivative", ["atan", "sigmoid"])
def test_surrogate(bench, derivative):
    """The same function of the same pre-activations, hence the same gradient."""
    from snntorch import surrogate

    units = 1024 if bench.short else 2048
    given, grad = torch.randn(units, units), torch.randn(units, units)
    layer = gradest.nn.Stochastic("heaviside", {"name": "surrogate", "derivative": derivative, "slope": 2.0})
    spike = getattr(surrogate, derivative)(2.0)

    def of(step: Callable[[Tensor], Tensor]) -> Gradient:
        def gradient() -> Tensor:
            a = given.detach().requires_grad_()
            step(a).backward(grad)
            return a.grad

        return gradient

    contenders = {"gradest": of(layer), "snntorch": of(spike)}
    assert torch.equal(layer(given), spike(given))
    torch.testing.assert_close(contenders["gradest"](), contenders["snntorch"]())
    bench.compare(f"surrogate, {derivative}, {units} x {units}, a step and its gradient", bench.measure(contenders))


def test_reinmax(bench):
    """A quadratic loss, for which reinmax is exact."""
    from reinmax import reinmax

    torch.manual_seed(0)
    given, weight = torch.randn(256, 32, 8), torch.randn(32, 8)
    layer = gradest.nn.Stochastic("categorical", "reinmax")

    def of(sample: Callable[[Tensor], Tensor]) -> Gradient:
        def gradient() -> Tensor:
            a = given.detach().requires_grad_()
            ((sample(a) * weight).sum((-2, -1)) ** 2).mean().backward()
            return a.grad

        return gradient

    p = given.softmax(-1).requires_grad_()
    mean, square = (p * weight).sum(-1), (p * weight**2).sum(-1)
    ((mean.sum(-1) ** 2 + (square - mean**2).sum(-1)).mean()).backward()
    truth = p.detach() * (p.grad - (p.detach() * p.grad).sum(-1, keepdim=True))
    contenders = {"gradest": of(layer), "reinmax": of(lambda a: reinmax(a, 1.0)[0])}
    for name, gradient in contenders.items():
        check_unbiased(name, partial(slopes, gradient, truth))
    bench.compare("reinmax, 256 x 32 x 8 classes, a sample and its gradient", bench.measure(contenders))
