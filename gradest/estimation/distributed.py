"""One computation in several processes of torch.distributed: which part is this process's, and what the parts add up to.

Process r of W holds the examples r, r + W, r + 2W, ... of a batch, the order in which DistributedSampler deals them out. Without
torch.distributed there is one process, which holds all of them.
"""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from gradest.contract.estimator import Draw, Estimator, Feedback, State
from gradest.random import Key, fresh_seed

__all__ = ["fresh_key", "is_parallel", "joined_state", "rank", "row_numbers", "world_size"]


def is_parallel() -> bool:
    """Whether torch.distributed runs, be it in one process."""
    return torch.distributed.is_available() and torch.distributed.is_initialized()


def rank() -> int:
    """The number of this process, from 0."""
    return torch.distributed.get_rank() if is_parallel() else 0


def world_size() -> int:
    """How many processes there are."""
    return torch.distributed.get_world_size() if is_parallel() else 1


def row_numbers(batch: torch.Size) -> Tensor:
    """The row numbers that this process's part `[*batch]` of a batch has in the joined one; the first dim is dealt out."""
    if not batch:
        return torch.tensor(0)
    examples = rank() + world_size() * torch.arange(batch[0])
    within = batch[1:].numel()
    return (examples[:, None] * within + torch.arange(within)).reshape(batch)


def joined_state(estimator: Estimator, draw: Draw, feedback: Feedback, state: State) -> State:
    """The state that the estimator makes of the joined batch, of which each process has its part's draw and feedback.

    What a state learns need not be a mean over examples, so each process draws the joined batch, from everybody's rows, and has
    the estimator look at it as a single process would. f is not evaluated again. Without a batch dim there is nothing to join.
    """
    batch = draw.points.shape[1 : draw.points.ndim - draw.neuron.event_ndim]
    if not batch:
        return estimator.backward(draw, feedback, state)[1]
    key = draw.key
    rows = torch.arange(batch.numel()).reshape(batch) if key.rows is None else key.rows.expand(batch)
    seeds = torch.as_tensor(key.seed).expand(batch)
    seeds, rows = _join(torch.stack([seeds, rows.to(seeds.device)]).to(draw.a.device), 1)
    joined = estimator.forward(draw.neuron, _join(draw.a, 0), replace(key, seed=seeds, rows=rows), state)
    loss, grad = (None if x is None else _join(x, 1) for x in (feedback.loss, feedback.grad))
    return estimator.backward(joined, Feedback(loss, grad), state)[1]


def _join(x: Tensor, dim: int) -> Tensor:
    """The joined batch of which each process has its part, examples in this dim."""
    own = x.movedim(dim, 0)
    lengths = [torch.tensor(0, device=x.device) for _ in range(world_size())]
    torch.distributed.all_gather(lengths, torch.tensor(len(own), device=x.device))
    padded = own.new_zeros(max(map(int, lengths)), *own.shape[1:])
    padded[: len(own)] = own
    parts = [torch.empty_like(padded) for _ in lengths]
    torch.distributed.all_gather(parts, padded)
    joined = own.new_empty(sum(map(int, lengths)), *own.shape[1:])
    for place, (part, length) in enumerate(zip(parts, lengths, strict=True)):
        joined[place :: world_size()] = part[:length]
    return joined.movedim(0, dim).contiguous()


def fresh_key(a: Tensor, event_ndim: int, seed: int | Tensor | None = None) -> Key:
    """A key for `a`, a fresh one by default, whose row numbers are global under torch.distributed."""
    key = Key(fresh_seed() if seed is None else seed)
    if world_size() == 1:
        return key
    return replace(key, rows=row_numbers(a.shape[: max(0, a.ndim - event_ndim)]), shared=True)
