"""The way from torch to the kernels and back: arrays of tensors, memory for new tensors, and threads."""

from __future__ import annotations

import ctypes
import math
import os
import threading
from collections import deque
from collections.abc import Callable
from itertools import pairwise
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from gradest.errors import InvalidInput
from gradest.kernels.reference.noise import Word, as_tensors

__all__ = [
    "LIKE",
    "NUMPY",
    "as_words",
    "check_size",
    "empty",
    "empty_as",
    "flat",
    "in_threads",
    "row_major",
    "run_in_team",
    "zeros_as",
]

NUMPY: dict[torch.dtype, Any] = {torch.float32: np.float32, torch.float64: np.float64}
LIKE: dict[torch.dtype, Any] = {
    torch.float32: np.float32(0),
    torch.float64: np.float64(0),
    torch.uint8: np.uint8(0),
    torch.bool: np.uint8(0),
}
"""A number of each dtype, by whose type a kernel knows that of the memory at an address."""

_CALLBACK = ctypes.CFUNCTYPE(None, ctypes.c_void_p)
_NO_WORDS = np.empty((3, 0), np.uint32)
_FIRST_STREAM = np.uint32(0)
_NUMBERS_PER_THREAD = 1 << 18  # fewer are not worth a thread of their own
_LEAST_REUSED_BYTES = 1 << 20  # memory of a tensor this large is kept for another tensor


class _Memory(np.ndarray):
    """The bytes of a tensor, kept for another tensor of the same size once their own is gone.

    At most 3 blocks wait, of at most 128 MiB each, the latest ones. A tensor of one training step is usually as large as that of
    the step before, and mapping fresh pages can take several times as long as drawing the numbers.
    """

    spare: ClassVar[deque[Any]] = deque(maxlen=3)

    @classmethod
    def of(cls, size: int) -> _Memory:
        for _ in range(len(cls.spare)):
            try:
                memory = cls.spare.popleft()
            except IndexError:  # another thread has taken the last block
                break
            if memory.size == size:
                return memory.view(cls)  # type: ignore[no-any-return]
            cls.spare.append(memory)
        return np.empty(size, np.uint8).view(cls)  # numpy asks for large pages, which torch does not

    def __del__(self) -> None:
        if type(self.base) is np.ndarray and self.size <= 1 << 27:
            self.spare.append(self.base)


def empty(*shape: int, dtype: torch.dtype) -> Tensor:
    """Make an uninitialised tensor, as torch.empty does, in memory that is used again."""
    size = math.prod(shape) * dtype.itemsize
    if size < _LEAST_REUSED_BYTES:
        return torch.empty(*shape, dtype=dtype, device="cpu")
    memory = torch.from_numpy(_Memory.of(size + 64))
    aligned = -memory.data_ptr() % 64  # as torch aligns
    return memory[aligned : aligned + size].view(dtype).view(shape)


def empty_as(x: Tensor, *shape: int) -> Tensor:
    """Make a tensor as `empty` does, of the dtype of x, which costs half as much if it is small."""
    if math.prod(shape) * x.element_size() < _LEAST_REUSED_BYTES:
        return x.new_empty(*shape) if shape else x.new_empty(())
    return empty(*shape, dtype=x.dtype)


def zeros_as(x: Tensor, *shape: int) -> Tensor:
    """Make a tensor of zeros, of the dtype of x, whose memory, if it is large, is cleared where it is first touched."""
    size = math.prod(shape) * x.element_size()
    if size < _LEAST_REUSED_BYTES:
        return x.new_zeros(*shape)
    memory = np.zeros(size, np.uint8)  # torch.zeros writes all of them, into small pages
    return torch.from_numpy(memory).view(x.dtype).view(shape)


def flat(x: Tensor, leading: int = 0) -> Any:
    """Return an array `[*leading dims, elements]`, which shares the memory of x if x is contiguous."""
    array = _array(x)  # numpy changes a shape in a fraction of the time that torch takes
    if array.ndim == leading + 1:
        return array
    return array.reshape(*array.shape[:leading], math.prod(array.shape[leading:])) if leading else array.reshape(-1)


def row_major(x: Tensor) -> Tensor:
    """Return x or a copy whose elements are contiguous, for kernels that take the address of the first element."""
    return x if x.is_contiguous() and not x.is_neg() else x.resolve_neg().contiguous()


def _array(x: Tensor) -> Any:
    return (x.detach() if x.requires_grad else x).contiguous().numpy()


def check_size(grad: Tensor, numbers: int) -> None:
    """Raise InvalidInput if a gradient has another number of numbers than the outputs, beyond which a kernel would read."""
    if grad.numel() != numbers:
        raise InvalidInput(
            f"the gradient with respect to the outputs has {grad.numel()} numbers, and there are {numbers} outputs; "
            "expand it to their shape"
        )


def as_words(seed: tuple[Word, Word], rows: Word, stream: int) -> tuple[Any, ...]:
    """Convert the words to what kernels take: the words of each row, two of the seed, the number of rows, and the stream.

    The words of each row, `[3, rows]`, are its number and the two of its seed. They are empty if all words are ints: then the
    rows are numbered from 0, and share the seed. Both forms have the same types, so that a kernel is compiled once for both.
    """
    if isinstance(rows, int) and isinstance(seed[0], int) and isinstance(seed[1], int):
        return (
            _NO_WORDS,
            seed[0] & 0xFFFFFFFF,
            seed[1] & 0xFFFFFFFF,
            rows,
            _FIRST_STREAM if not stream else np.uint32(stream),
        )
    seed, rows = as_tensors(seed, rows)
    words = np.stack([_array(word).view(np.uint32) for word in (rows, *seed)])
    return words, 0, 0, words.shape[1], np.uint32(stream)


def in_threads(work: Callable[[int, int], None], elements: int, numbers: int) -> None:
    """Call work(first, last) on parts of the elements, in threads if there is enough to do; an element has `numbers` numbers.

    An error of any part is raised once all have ended.
    """
    parts = elements * numbers // _NUMBERS_PER_THREAD
    if parts > 1:
        parts = min(parts, torch.get_num_threads(), elements)
    if parts <= 1:
        work(0, elements)
        return
    edges = [elements * part // parts for part in range(parts + 1)]
    waiting = iter(
        list(pairwise(edges))
    )  # one iterator for all threads: the interpreter gives each part to one of them
    errors: list[BaseException] = []

    def take_parts(_: Any = None) -> None:
        try:
            for first, last in waiting:
                work(first, last)
        except BaseException as error:
            errors.append(error)

    if not run_in_team(_CALLBACK(take_parts), None, parts):
        threads = [threading.Thread(target=take_parts) for _ in range(parts - 1)]
        for thread in threads:
            thread.start()
        take_parts()
        for thread in threads:
            thread.join()
    if errors:
        raise errors[0]


def run_in_team(function: Any, data: Any, threads: int) -> bool:
    """Call the C function of one address, function(data), once in each of so many threads of torch's own, at the same time.

    Threads beside torch's would compete with them, for they keep spinning for a while after each of torch's operators. Returns
    False, and does nothing, if torch does not run on GNU OpenMP.
    """
    for run in _team:
        run(function, data, threads, 0)
    return bool(_team)


def _find_team() -> list[Any]:
    """Find GNU OpenMP's function that runs a team of threads, if torch has loaded it."""
    try:
        team = ctypes.CDLL(None).GOMP_parallel
    except (AttributeError, OSError, TypeError):
        return []
    team.restype, team.argtypes = None, (ctypes.c_void_p, ctypes.c_void_p, ctypes.c_uint, ctypes.c_uint)
    return [team]


_team = _find_team()
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_team.clear)  # the threads do not survive a fork
