"""One training run in several processes of torch.distributed: the process group, sums and barriers."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

from gradest.estimation.distributed import world_size

__all__ = ["all_reduce_sum", "any_rank", "barrier", "joined_mean", "processes"]


@contextmanager
def processes() -> Iterator[None]:
    """Join the processes that torchrun has started into a group for the block; no thread of the group outlives it.

    If torch.distributed.nn.functional is imported while there is a group, as by the first step of an optimiser, its default
    arguments hold the group. The group's threads would then live until the interpreter exits, which now and then aborts there.
    """
    import torch.distributed.nn.functional  # noqa: PLC0415  # slow to import, and needed by several processes alone

    torch.distributed.init_process_group("gloo")
    try:
        yield
    finally:
        torch.distributed.destroy_process_group()


def all_reduce_sum(tensors: Iterable[Tensor]) -> None:
    """Replace each tensor by its sum over the processes, in place. All processes get the same bits."""
    if world_size() == 1:
        return
    by_type: dict[tuple[torch.dtype, torch.device], list[Tensor]] = {}
    for tensor in tensors:
        by_type.setdefault((tensor.dtype, tensor.device), []).append(tensor)
    for alike in by_type.values():  # one message per type, whatever the number of tensors
        joined = torch.cat([tensor.detach().flatten() for tensor in alike])
        torch.distributed.all_reduce(joined)
        parts = torch.split(joined, [tensor.numel() for tensor in alike])
        for tensor, part in zip(alike, parts, strict=True):
            tensor.detach().copy_(part.reshape(tensor.shape))


def any_rank(flag: bool) -> bool:
    """Return whether the flag is set in any process."""
    if world_size() == 1:
        return flag
    count = torch.tensor(int(flag))
    torch.distributed.all_reduce(count)
    return bool(count)


def barrier() -> None:
    """Wait until all processes have called this."""
    if world_size() > 1:
        torch.distributed.barrier()


def joined_mean(values: Tensor, of: int) -> Tensor:
    """Return values whose mean over the first dim is that over the joined batch, differentiable in this process's part.

    values: `[batch, units]`, this process's part of a batch of `of` examples. A single process gets them back unchanged;
    several get the mean over the joined batch, `[1, units]`. The processes' gradients add up to that of the joined batch.
    """
    if world_size() == 1:
        return values
    own = values.sum(0)
    total = own.detach().clone()
    all_reduce_sum([total])
    return ((total + (own - own.detach())) / of)[None]  # the difference is 0, so all processes have the same bits
