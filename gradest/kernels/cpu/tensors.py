"""What stands between the kernels and torch: arrays of tensors, memory for new ones, and threads."""

from __future__ import annotations

import math
import threading
from collections import deque
from collections.abc import Callable
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from gradest.kernels import reference
from gradest.kernels.reference import Word

__all__ = ["NUMPY", "as_words", "empty", "flat", "in_threads", "row_major", "sampled"]

NUMPY: dict[torch.dtype, Any] = {torch.float32: np.float32, torch.float64: np.float64}
_PER_THREAD = 1 << 18  # elements that are worth a thread
_REUSED = 1 << 20  # bytes from which on memory is kept for another tensor


def sampled(
    kernel: Callable[..., None],
    seed: tuple[Word, Word],
    rows: Word,
    stream: int,
    draws: int,
    a: Tensor,
    *options: Any,
    size: int = 1,
    points: int = 1,
    more: tuple[Any, ...] = (),
    dtype: torch.dtype | None = None,
) -> Tensor:
    """What a kernel draws, `[points * draws, *a.shape]`, from the words, `a`, arrays `more` and options.

    size: how many numbers of `a` make one of the elements that it counts.
    """
    out = empty(points * draws, *a.shape, dtype=dtype or a.dtype)
    words, given, numbers = as_words(seed, rows, stream), flat(a), flat(out, 1)
    in_threads(
        lambda first, last: kernel(*words, given, *more, numbers, first, last, *options),
        a.numel() // max(1, size),
        size * draws,
    )
    return out


class _Memory(np.ndarray):
    """Bytes that wait for another tensor of their size once their own is gone: at most 3 of at most 128 MiB, the last ones.

    A tensor of a step is as large as that of the step before, and to have fresh pages mapped can take several times as long as
    the drawing.
    """

    spare: ClassVar[deque[Any]] = deque(maxlen=3)

    @classmethod
    def of(cls, size: int) -> _Memory:
        for _ in range(len(cls.spare)):
            try:
                memory = cls.spare.popleft()
            except IndexError:  # another thread has taken it
                break
            if memory.size == size:
                return memory.view(cls)  # type: ignore[no-any-return]
            cls.spare.append(memory)
        return np.empty(size, np.uint8).view(cls)  # numpy asks for large pages, which torch does not

    def __del__(self) -> None:
        if type(self.base) is np.ndarray and self.size <= 1 << 27:
            self.spare.append(self.base)


def empty(*shape: int, dtype: torch.dtype) -> Tensor:
    """As torch.empty."""
    size = math.prod(shape) * dtype.itemsize
    if size < _REUSED:
        return torch.empty(*shape, dtype=dtype)
    memory = torch.from_numpy(_Memory.of(size + 64))
    aligned = -memory.data_ptr() % 64  # as torch aligns
    return memory[aligned : aligned + size].view(dtype).view(shape)


def flat(x: Tensor, leading: int = 0) -> Any:
    """An array of the elements behind the leading dims, which shares the memory of a contiguous tensor."""
    array = _array(x)  # numpy takes a fraction of torch's time to change a shape
    if array.ndim == leading + 1:
        return array
    return array.reshape(*array.shape[:leading], math.prod(array.shape[leading:])) if leading else array.reshape(-1)


def row_major(x: Tensor) -> Tensor:
    """x, or a copy, whose elements lie one after the other: as a kernel takes them that is given where they begin."""
    return x.resolve_neg().contiguous()


def _array(x: Tensor) -> Any:
    return (x.detach() if x.requires_grad else x).contiguous().numpy()


def as_words(seed: tuple[Word, Word], rows: Word, stream: int) -> tuple[Any, ...]:
    """The words as the kernels take them: a number for all rows of the seed, and how many rows; or arrays `[rows]`."""
    if isinstance(rows, int) and isinstance(seed[0], int) and isinstance(seed[1], int):
        return seed[0] & 0xFFFFFFFF, seed[1] & 0xFFFFFFFF, rows, np.uint32(stream)
    seed, rows = reference.as_tensors(seed, rows)
    return *(_array(word).view(np.uint32) for word in (*seed, rows)), np.uint32(stream)


def in_threads(work: Callable[[int, int], None], elements: int, cost: int) -> None:
    """work(first, last) over all elements, cut among threads where there is enough to do, at `cost` numbers an element."""
    parts = elements * cost // _PER_THREAD
    if parts > 1:
        parts = min(parts, torch.get_num_threads(), elements)
    if parts <= 1:
        work(0, elements)
        return
    edges = [elements * part // parts for part in range(parts + 1)]
    threads = [threading.Thread(target=work, args=edges[part : part + 2]) for part in range(1, parts)]
    for thread in threads:
        thread.start()
    work(edges[0], edges[1])
    for thread in threads:
        thread.join()
