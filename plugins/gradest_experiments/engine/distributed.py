"""One training run in several processes of torch.distributed: sums, barriers and the process group."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

from gradest.estimation.distributed import world_size

__all__ = ["all_reduce_sum", "any_rank", "barrier", "joined_mean", "processes"]


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


def all_reduce_sum(tensors: Iterable[Tensor]) -> None:
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


def any_rank(flag: bool) -> bool:
    """Whether the flag is set in any process."""
    if world_size() == 1:
        return flag
    count = torch.tensor(int(flag))
    torch.distributed.all_reduce(count)
    return bool(count)


def barrier() -> None:
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
    all_reduce_sum([total])
    return ((total + (own - own.detach())) / of)[None]  # the difference is 0, so that all have the same bits
