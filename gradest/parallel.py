"""One computation in several processes of torch.distributed: which part is this process's, and what the parts add up to.

Process r of W holds the examples r, r + W, r + 2W, ... of a batch, the order in which DistributedSampler deals them out. Without
torch.distributed there is one process, which holds all of them.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import replace

import torch
from torch import Tensor

from gradest.estimator import Draw, Estimator, Feedback, State

__all__ = [
    "add_up",
    "any_of",
    "is_parallel",
    "joined_mean",
    "joined_state",
    "processes",
    "rank",
    "row_numbers",
    "wait",
    "world_size",
]


@contextmanager
def processes() -> Iterator[None]:
    """Inside, the processes that torchrun has started are one group; after it, no thread of the group is left.

    torch.distributed.nn.functional takes the group for its default arguments if it is imported while there is one, as the first
    step of an optimiser does. The group's threads would then live until the interpreter ends, which now and then aborts it.
    """
    import torch.distributed.nn.functional  # noqa: PLC0415  # takes a while, and only several processes need it

    torch.distributed.init_process_group("gloo")
    try:
        yield
    finally:
        torch.distributed.destroy_process_group()


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


def add_up(tensors: Iterable[Tensor]) -> None:
    """Replace each tensor by its sum over the processes, in place. All processes get the same bits."""
    if world_size() == 1:
        return
    by_type: dict[tuple[torch.dtype, torch.device], list[Tensor]] = {}
    for tensor in tensors:
        by_type.setdefault((tensor.dtype, tensor.device), []).append(tensor)
    for alike in by_type.values():  # one message a type, whatever the number of tensors
        joined = torch.cat([tensor.detach().flatten() for tensor in alike])
        torch.distributed.all_reduce(joined)
        parts = torch.split(joined, [tensor.numel() for tensor in alike])
        for tensor, part in zip(alike, parts, strict=True):
            tensor.detach().copy_(part.reshape(tensor.shape))


def any_of(flag: bool) -> bool:
    """Whether the flag is set in any process."""
    if world_size() == 1:
        return flag
    count = torch.tensor(int(flag))
    torch.distributed.all_reduce(count)
    return bool(count)


def wait() -> None:
    """Wait until all processes have come here."""
    if world_size() > 1:
        torch.distributed.barrier()


def joined_mean(values: Tensor, of: int) -> Tensor:
    """Values `[batch, units]` that have the mean over all `of` examples, `[1, units]`, if there are several processes.

    Its gradient is in the values of this process: the sum of the processes' gradients is that of the joined batch.
    """
    if world_size() == 1:
        return values
    own = values.sum(0)
    total = own.detach().clone()
    add_up([total])
    return ((total + (own - own.detach())) / of)[None]  # the difference is 0, so that all have the same bits


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
