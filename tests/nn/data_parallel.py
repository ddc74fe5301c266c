"""Training of a small model, also as one of two processes: `python -m tests.nn.data_parallel STORE WEIGHTS RANK ESTIMATOR...`."""

from __future__ import annotations

import sys

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from gradest.nn import Stochastic, StochasticGraph, broadcast_loss

WORLD = 2


def surrogate(model: nn.Module, run: nn.Module, x: Tensor, paths: str) -> Tensor:
    """What is differentiated in place of the loss, by broadcast_loss or in a StochasticGraph of three paths."""
    if not paths:
        return broadcast_loss(model, (run(x)[..., 0] - x.sum(-1)) ** 2)
    with StochasticGraph(model, 3) as graph:
        graph.add_cost((run(graph.expand(x))[..., 0] - x.sum(-1)) ** 2)
        return graph.surrogate()


def train(words: str, rank: int = 0, world: int = 1) -> nn.Module:
    """Train with the estimator that `words` begin with, in a graph of several paths if "paths" follows.

    With a world of two, the process has every second example and the model is under DistributedDataParallel.
    """
    torch.manual_seed(0)
    name, _, paths = words.partition(" ")
    estimator = {"name": "nvil", "samples": 3} if name == "nvil" else name
    model = nn.Sequential(nn.Linear(4, 5), Stochastic("bernoulli", estimator), nn.Linear(5, 1))
    data = torch.randn(6, 8, 4)
    run = DistributedDataParallel(model) if world > 1 else model
    optimiser = torch.optim.SGD(model.parameters(), lr=0.1)
    for batch in data:
        optimiser.zero_grad()
        surrogate(model, run, batch[rank::world], paths).backward()
        optimiser.step()
    return model


def main(store: str, weights: str, rank: int, *estimators: str) -> None:
    """Train with each estimator as one of two processes that talk by gloo; the first of them saves the weights."""
    import torch.distributed.nn.functional  # see gradest_experiments.engine.distributed.processes

    torch.distributed.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=WORLD)
    # of a model under DistributedDataParallel, which holds the process group, nothing is left but the weights
    found = {estimator: train(estimator, rank, WORLD).state_dict() for estimator in estimators}
    if rank == 0:
        torch.save(found, weights)
    torch.distributed.barrier()
    torch.distributed.destroy_process_group()


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], int(sys.argv[3]), *sys.argv[4:])
