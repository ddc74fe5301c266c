"""Penalties that are added to a surrogate: one that reaches a layer which was told another loss is reported."""

import warnings
import weakref

import pytest
import torch
from torch import nn

from gradest.nn import Stochastic, StochasticGraph, broadcast_loss

pytestmark = pytest.mark.usefixtures("fresh_compiler")


class Chain(nn.Module):
    def __init__(self, neuron, estimator):
        super().__init__()
        self.linears = nn.ModuleList([nn.Linear(4, 6), nn.Linear(6, 3)])
        self.layers = nn.ModuleList([Stochastic(neuron, estimator) for _ in range(2)])

    def forward(self, x):
        a = self.linears[0](x)
        h = self.layers[0](a)
        b = self.linears[1](h)
        return a, h, b, self.layers[1](b)


LOSSES = {  # what reaches the first sample: the gradient of the loss, that of the second sample's port, or both
    "of the samples": lambda h, g: (g.square().sum(-1) + 0.3 * h.sum(-1) - h[:, 0] * g[:, 1]) ** 2,
    "of the last sample": lambda h, g: (g.sum(-1) - 1) ** 2,
    "of numbers": lambda h, g: (g + h.sum(-1, keepdim=True)).detach().sum(-1),
}
ADDED = {
    "nothing": (lambda a, h, b, g, loss: 0, False),
    "of the pre-activations": (lambda a, h, b, g, loss: a.square().mean(), False),
    "of a detached sample": (lambda a, h, b, g, loss: h.detach().mean(), False),
    "of the first sample": (lambda a, h, b, g, loss: 5 * h.sum(-1).mean(), True),
    "of what follows from it": (lambda a, h, b, g, loss: b.square().sum(-1).mean(), True),
    "of the last sample": (lambda a, h, b, g, loss: 5 * g.sum(-1).mean(), True),
}


@pytest.mark.parametrize("scope", [False, True])
@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("added", ADDED)
def test_a_penalty_that_is_added_to_the_scalar(added, loss, scope):
    for neuron, estimator, dtype in (
        ("bernoulli", "reinforce", torch.float32),
        ("bernoulli", "reinforce_average", torch.bfloat16),
        ("stochastic_times_smooth", "pathwise_score", torch.float64),
    ):
        if estimator == "pathwise_score" and loss == "of numbers":
            continue  # it needs dL/dh
        torch.manual_seed(0)
        model, x = Chain(neuron, estimator).to(dtype), torch.randn(16, 4, dtype=dtype)
        penalty, noticed = ADDED[added]
        with StochasticGraph(model) if scope else torch.enable_grad() as graph:
            a, h, b, g = model(x)
            cost = LOSSES[loss](h, g)
            if scope:
                graph.add_cost(cost)
                scalar = graph.surrogate()
                graph.add_cost(2 * cost)  # the second surrogate sends its own part along the same graph
                scalar = scalar + graph.surrogate()
            else:
                scalar = broadcast_loss(model, cost)
        with warnings.catch_warnings(record=True) as given:
            warnings.simplefilter("always")
            (3 * scalar + penalty(a, h, b, g, cost)).backward()
        assert any("no part of the loss this layer was told" in str(one.message) for one in given) == noticed


def test_a_penalty_is_looked_for_now_and_then_and_keeps_nothing_alive():
    layer, lin, x = Stochastic("bernoulli", "reinforce"), nn.Linear(4, 6), torch.randn(5, 4)
    noticed = []
    for step in range(1, 10):
        a = lin(x)
        kept = weakref.ref(a)
        h = layer(a)
        scalar = broadcast_loss(layer, h.sum(-1)) + h.mean()
        del a, h
        with warnings.catch_warnings(record=True) as given:
            warnings.simplefilter("always")
            scalar.backward()
        noticed += [step] * len(given)
        del scalar
        assert kept() is None
    assert noticed == [1, 2, 4, 8]
