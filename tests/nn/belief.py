"""A sigmoid belief network small enough to enumerate, and its surrogate in eager and compiled code."""

import itertools

import torch
from torch import nn

from gradest.nn import Stochastic, StochasticGraph

WEIGHT = torch.tensor([1.0, -0.7])


class Belief(nn.Module):
    """Two layers of 3 and 2 units, and a loss that depends on both samples and on all parameters directly."""

    def __init__(self, first, second):
        super().__init__()
        self.inner, self.outer = nn.Linear(2, 3), nn.Linear(3, 2)
        self.first, self.second = Stochastic("bernoulli", first), Stochastic("bernoulli", second)

    def forward(self, x):
        h = self.first(self.inner(x))
        return h, self.second(self.outer(h))

    def first_cost(self, x, h):
        return 0.3 * (torch.sigmoid(self.inner(x)) * h).sum(-1)

    def last_cost(self, h, g):
        return ((g * WEIGHT).sum(-1) + 0.3 + 0.2 * h.sum(-1)) ** 2 - 0.2 * (torch.sigmoid(self.outer(h)) * g).sum(-1)

    def loss(self, x, h, g):
        return self.first_cost(x, h) + self.last_cost(h, g)

    def expectation(self, x, target):
        """E[loss], or another target of several samples, by enumeration of all 32 outcomes or of all tuples of them."""
        probability, loss = [], []
        for h in itertools.product([0.0, 1.0], repeat=3):
            for g in itertools.product([0.0, 1.0], repeat=2):
                h_, g_ = torch.tensor(h).expand(len(x), 3), torch.tensor(g).expand(len(x), 2)
                p, q = torch.sigmoid(self.inner(x)), torch.sigmoid(self.outer(h_))
                probability.append((h_ * p + (1 - h_) * (1 - p)).prod(-1) * (g_ * q + (1 - g_) * (1 - q)).prod(-1))
                loss.append(self.loss(x, h_, g_))
        probability, loss = torch.stack(probability), torch.stack(loss)
        if target.samples == 1:
            return (probability * loss).sum(0)
        drawn = torch.tensor(list(itertools.product(range(32), repeat=target.samples))).T
        return (probability[drawn].prod(0) * target.combine(loss[drawn])).sum(0)


def surrogate(model, x, samples=None, flatten=False, call=None):
    with StochasticGraph(model, samples) as graph:
        x = graph.expand(x, flatten)
        h, g = model(x) if call is None else call(x)
        graph.add_cost(model.loss(x, h, g))
        return graph.surrogate()


def compiled_inside(model, samples, flatten):
    return torch.compile(lambda x: surrogate(model, x, samples, flatten), backend="aot_eager", fullgraph=True)


def compiled_outside(model, samples, flatten):
    call = torch.compile(model, backend="aot_eager", fullgraph=True)
    return lambda x: surrogate(model, x, samples, flatten, call)
