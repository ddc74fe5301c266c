"""Training of a small model, also as one of two processes: `python -m tests.nn.data_parallel STORE WEIGHTS RANK ESTIMATOR...`."""

from __future__ import annotations

import sys

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from gradest.nn import Stochastic, StochasticGraph, broadcast_loss

WORLD = 2


PARTS = ([0, 2, 4, 6, 7], [1, 3, 5])  # of uneven size: the process of the first numbers its examples 0, 2, 4, 6 and 8


def surrogate(model: nn.Module, run: nn.Module, x: Tensor, way: str) -> Tensor:
    """What is differentiated in place of the loss, by broadcast_loss or in a StochasticGraph of three paths."""
    if way == "uneven":
        whole = run is model
        y = model[2](model[1](model[0](x), rows=torch.tensor([0, 1, 2, 3, 4, 5, 6, 8]))) if whole else run(x)
        return broadcast_loss(model, (y[..., 0] - x.sum(-1)) ** 2, "sum") * (1 if whole else WORLD) / 8
    if not way:
        return broadcast_loss(model, (run(x)[..., 0] - x.sum(-1)) ** 2)
    with StochasticGraph(model, 3) as graph:
        graph.add_cost((run(graph.expand(x))[..., 0] - x.sum(-1)) ** 2)
        return graph.surrogate()


def train(words: str, rank: int = 0, world: int = 1) -> nn.Module:
    """Train with the estimator that `words` begin with, in a graph of several paths if "paths" follows.

    With a world of two, the process has every second example, or five and three of eight if "uneven" follows, and the model is
    under DistributedDataParallel.
    """
    torch.manual_seed(0)
    name, _, way = words.partition(" ")
    estimator = {"name": "nvil", "samples": 3} if name == "nvil" else name
    model = nn.Sequential(nn.Linear(4, 5), Stochastic("bernoulli", estimator), nn.Linear(5, 1))
    data = torch.randn(6, 8, 4)
    run = DistributedDataParallel(model) if world > 1 else model
    optimiser = torch.optim.SGD(model.parameters(), lr=0.1)
    for batch in data:
        optimiser.zero_grad()
        part = batch[PARTS[rank]] if world > 1 and way == "uneven" else batch[rank::world]
        surrogate(model, run, part, way).backward()
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
