"""Kernels for the CPU, compiled by numba: the same bits as the reference kernels, in one pass over memory.

They are compiled at their first use and kept on disk. They release the interpreter's lock, and a large tensor is cut among as
many threads as torch uses, which live no longer than the call; so they may be called from several threads, and after a fork.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from numba import njit, uint32, uint64
from torch import Tensor

__all__ = ["uniform"]

_PARITY = np.uint32(0x1BD11BDA)
_PER_THREAD = 1 << 16  # elements that are worth a thread

_compiled: Callable[[Callable[..., Any]], Callable[..., Any]] = njit(nogil=True, cache=True)
_inlined: Callable[[Callable[..., Any]], Callable[..., Any]] = njit(inline="always")


@_inlined
def _rotate_left(x: Any, by: Any) -> Any:
    return uint32(uint32(x << uint32(by)) | uint32(x >> uint32(32 - by)))


@_inlined
def _four_rounds(x0: Any, x1: Any, a: Any, b: Any, c: Any, d: Any) -> Any:
    x0 = uint32(x0 + x1)
    x1 = uint32(_rotate_left(x1, a) ^ x0)
    x0 = uint32(x0 + x1)
    x1 = uint32(_rotate_left(x1, b) ^ x0)
    x0 = uint32(x0 + x1)
    x1 = uint32(_rotate_left(x1, c) ^ x0)
    x0 = uint32(x0 + x1)
    x1 = uint32(_rotate_left(x1, d) ^ x0)
    return x0, x1


@_inlined
def _threefry(k0: Any, k1: Any, c0: Any, c1: Any) -> Any:
    """Threefry-2x32, 20 rounds, as in `gradest.kernels.reference.threefry`."""
    k2 = uint32(k0 ^ k1 ^ _PARITY)
    x0, x1 = _four_rounds(uint32(c0 + k0), uint32(c1 + k1), 13, 15, 26, 6)
    x0, x1 = _four_rounds(uint32(x0 + k1), uint32(x1 + k2 + uint32(1)), 17, 29, 16, 24)
    x0, x1 = _four_rounds(uint32(x0 + k2), uint32(x1 + k0 + uint32(2)), 13, 15, 26, 6)
    x0, x1 = _four_rounds(uint32(x0 + k0), uint32(x1 + k1 + uint32(3)), 17, 29, 16, 24)
    x0, x1 = _four_rounds(uint32(x0 + k1), uint32(x1 + k2 + uint32(4)), 13, 15, 26, 6)
    return uint32(x0 + k2), uint32(x1 + k0 + uint32(5))


@_compiled
def _fill_float32(seed0: Any, seed1: Any, rows: Any, stream: Any, out: Any, first: Any, last: Any) -> None:
    """Uniform numbers in rows `first` to `last` of `out` `[draws, rows, units]`."""
    draws, _, units = out.shape
    for n in range(first, last):
        k0, k1 = _threefry(seed0[n], seed1[n], rows[n], stream)
        for draw in range(draws):
            for unit in range(units):
                x0, _x1 = _threefry(k0, k1, uint32(unit), uint32(draw))
                out[draw, n, unit] = np.float32(np.int32((x0 >> uint32(8)) | uint32(1))) * np.float32(2.0**-24)


@_compiled
def _fill_float64(seed0: Any, seed1: Any, rows: Any, stream: Any, out: Any, first: Any, last: Any) -> None:
    draws, _, units = out.shape
    for n in range(first, last):
        k0, k1 = _threefry(seed0[n], seed1[n], rows[n], stream)
        for draw in range(draws):
            for unit in range(units):
                x0, x1 = _threefry(k0, k1, uint32(unit), uint32(draw))
                word = (uint64(x0) << uint64(21)) | uint64(x1 >> uint32(11)) | uint64(1)
                out[draw, n, unit] = np.float64(np.int64(word)) * 2.0**-53


_FILL = {torch.float32: _fill_float32, torch.float64: _fill_float64}


def uniform(
    seed: tuple[Tensor, Tensor], rows: Tensor, stream: int, draws: int, units: int, dtype: torch.dtype
) -> Tensor:
    """Uniform numbers `[draws, rows, units]`, from int32 words `[rows]` of the seed and of the row numbers."""
    out = torch.empty(draws, len(rows), units, dtype=dtype)
    words = [np.ascontiguousarray(word.numpy()).view(np.uint32) for word in (*seed, rows)]
    fill, filled = _FILL[dtype], out.numpy()
    _in_threads(lambda first, last: fill(*words, np.uint32(stream), filled, first, last), len(rows), out.numel())
    return out


def _in_threads(work: Callable[[int, int], None], rows: int, elements: int) -> None:
    """work(first, last) over all rows, cut among threads where there is enough to do."""
    parts = max(1, min(torch.get_num_threads(), rows, elements // _PER_THREAD))
    edges = [rows * part // parts for part in range(parts + 1)]
    threads = [threading.Thread(target=work, args=edges[part : part + 2]) for part in range(1, parts)]
    for thread in threads:
        thread.start()
    work(edges[0], edges[1])
    for thread in threads:
        thread.join()
