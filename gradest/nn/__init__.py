"""Torch modules: stochastic layers that train, keep their estimator's state, and behave in evaluation.

    layer = gradest.nn.Stochastic("bernoulli", "reinforce_centered")
    h = layer(a)                                                      # somewhere inside a model
    gradest.nn.broadcast_loss(model, loss_per_example).backward()     # in place of loss_per_example.mean().backward()

    with gradest.nn.StochasticGraph(model, samples=K) as graph:       # several layers, several costs, K whole-path samples
        graph.add_cost(cost(model(graph.expand(x))))
        graph.surrogate().backward()

Seeds are drawn from torch's global generator, so `torch.manual_seed` determines the noise. Under torch.distributed, example i of
the process of rank r is example r + i · world_size of the joined batch, the order in which DistributedSampler assigns examples:
processes with equal seeds draw the noise that one process would have drawn for the joined batch, and the estimator computes its
state from the joined batch.
"""

from gradest.nn.conditional import ConditionalLinear
from gradest.nn.costs.broadcast import broadcast_loss
from gradest.nn.costs.graph import StochasticGraph
from gradest.nn.expectation import Expectation
from gradest.nn.layers import Stochastic
from gradest.nn.module import Evaluation

__all__ = ["ConditionalLinear", "Evaluation", "Expectation", "Stochastic", "StochasticGraph", "broadcast_loss"]
