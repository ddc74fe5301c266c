"""A gradient of several stochastic layers with whole-path samples, against that of storchastic and of torch written by hand."""

from __future__ import annotations

import statistics
from functools import partial
from importlib.util import find_spec

import pytest
import torch
from torch import Tensor

from gradest.nn import Stochastic, StochasticGraph

from .peers import (
    IMAGES,
    PATHS,
    Gradient,
    Peer,
    belief_by_hand,
    belief_direction,
    belief_network,
    inference_gradient,
    slopes,
)

pytestmark = [
    pytest.mark.benchmark,
    pytest.mark.timeout(900),
    pytest.mark.skipif(find_spec("storch") is None, reason="needs gradest[bench]"),
]


def ours() -> Gradient:
    network, x = belief_network([Stochastic("bernoulli", "rloo"), Stochastic("bernoulli", "rloo")])

    def gradient() -> Tensor:
        network.zero_grad()
        with StochasticGraph(network, samples=PATHS) as graph:
            for cost in network.costs(x, graph.expand):
                graph.add_cost(cost)
            graph.surrogate().backward()
        return inference_gradient(network)

    return gradient


def test_belief_network(bench):
    """All three estimate one gradient: their mean components in a direction agree within 5 standard errors of at most 5 % of it.
    Each layer has half of the component, so a factor of two in either would be ten away, or more.
    """
    torch.manual_seed(0)
    with Peer("storchastic_belief") as peer:
        contenders = {"gradest": ours(), "torch by hand": belief_by_hand(), "storchastic": peer}
        direction, found = belief_direction(), {}
        for name, contender in contenders.items():
            component = contender.slopes if contender is peer else partial(slopes, contender, direction)
            found[name] = component(60)
        error = {name: statistics.stdev(values) / len(values) ** 0.5 for name, values in found.items()}
        mean = {name: statistics.mean(values) for name, values in found.items()}
        for name in contenders:
            assert error[name] < 0.05 * mean[name], name
            assert abs(mean[name] - mean["gradest"]) < 5 * (error[name] ** 2 + error["gradest"] ** 2) ** 0.5, name
        title = f"sigmoid belief network 784-200-200, rloo, K = {PATHS} paths, {IMAGES} images, a gradient"
        bench.compare(title, bench.measure(contenders))
