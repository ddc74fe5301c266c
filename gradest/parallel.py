"""One computation in several processes of torch.distributed: which part is this process's, and what the parts add up to.

Process r of W holds the examples r, r + W, r + 2W, ... of a batch, the order in which DistributedSampler deals them out. Without
torch.distributed there is one process, which holds all of them.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import torch
from torch import Tensor

__all__ = ["add_up", "any_of", "is_parallel", "joined_mean", "mean_state", "rank", "row_numbers", "wait", "world_size"]


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


def mean_state(state: Mapping[str, Tensor], count: int) -> dict[str, Tensor]:
    """An estimator's state, in which floating-point tensors are the mean over all examples, of which `count` are here.

    For a state that moves towards a mean over the batch, this is the state after the joined batch.
    """
    moving = {name: value for name, value in state.items() if value.is_floating_point()}
    if world_size() == 1 or not moving:
        return dict(state)
    parts = {name: value * count if count else torch.zeros_like(value) for name, value in moving.items()}
    total = torch.tensor(float(count))
    add_up([*parts.values(), total])
    return {**state, **{name: (part / total).to(part.dtype) for name, part in parts.items()}} if total else dict(state)
