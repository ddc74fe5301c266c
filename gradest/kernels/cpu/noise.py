"""The random words, and the uniform numbers made from them: `gradest.kernels.reference.noise`, operation by operation."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numba import types, uint32
from numba.extending import overload
from torch import Tensor

from gradest.kernels.cpu.compiler import BLOCK, compiled, inlined, inlined_by_llvm
from gradest.kernels.cpu.tensors import as_words, empty, flat, in_threads
from gradest.kernels.reference.noise import Word

__all__ = ["locate", "row_count", "uniform", "uniforms"]

_PARITY = np.uint32(0x1BD11BDA)
_LONG_ROW = 128  # a row with this many units is worth loops of its own, in which the words of its key are constant


@inlined_by_llvm
def _rotate_left(x: Any, by: Any) -> Any:
    return uint32(uint32(x << uint32(by)) | uint32(x >> uint32(32 - by)))


@inlined_by_llvm
def _four_rounds(x0: Any, x1: Any, k0: Any, k1: Any, a: Any, b: Any, c: Any, d: Any) -> Any:
    """Add two words of the key schedule, then do four rounds with these rotations."""
    x0, x1 = uint32(x0 + k0), uint32(x1 + k1)
    x0 = uint32(x0 + x1)
    x1 = uint32(_rotate_left(x1, a) ^ x0)
    x0 = uint32(x0 + x1)
    x1 = uint32(_rotate_left(x1, b) ^ x0)
    x0 = uint32(x0 + x1)
    x1 = uint32(_rotate_left(x1, c) ^ x0)
    x0 = uint32(x0 + x1)
    x1 = uint32(_rotate_left(x1, d) ^ x0)
    return x0, x1


@inlined_by_llvm
def _rounds_1_to_4(x0: Any, x1: Any, k0: Any, k1: Any) -> Any:
    return _four_rounds(x0, x1, k0, k1, 13, 15, 26, 6)


@inlined_by_llvm
def _rounds_5_to_8(x0: Any, x1: Any, k0: Any, k1: Any) -> Any:
    return _four_rounds(x0, x1, k1, uint32(uint32(k0 ^ k1 ^ _PARITY) + uint32(1)), 17, 29, 16, 24)


@inlined_by_llvm
def _rounds_9_to_12(x0: Any, x1: Any, k0: Any, k1: Any) -> Any:
    return _four_rounds(x0, x1, uint32(k0 ^ k1 ^ _PARITY), uint32(k0 + uint32(2)), 13, 15, 26, 6)


@inlined_by_llvm
def _rounds_13_to_16(x0: Any, x1: Any, k0: Any, k1: Any) -> Any:
    return _four_rounds(x0, x1, k0, uint32(k1 + uint32(3)), 17, 29, 16, 24)


@inlined_by_llvm
def _rounds_17_to_20(x0: Any, x1: Any, k0: Any, k1: Any) -> Any:
    k2 = uint32(k0 ^ k1 ^ _PARITY)
    x0, x1 = _four_rounds(x0, x1, k1, uint32(k2 + uint32(4)), 13, 15, 26, 6)
    return uint32(x0 + k2), uint32(x1 + k0 + uint32(5))


@inlined_by_llvm
def _threefry(k0: Any, k1: Any, c0: Any, c1: Any) -> Any:
    """Encrypt a counter by Threefry-2x32 with 20 rounds."""
    x0, x1 = _rounds_1_to_4(c0, c1, k0, k1)
    x0, x1 = _rounds_5_to_8(x0, x1, k0, k1)
    x0, x1 = _rounds_9_to_12(x0, x1, k0, k1)
    x0, x1 = _rounds_13_to_16(x0, x1, k0, k1)
    return _rounds_17_to_20(x0, x1, k0, k1)


def _at(x: Any, i: Any) -> Any:
    """Return x[i] of an array, or x itself if it is one number for all rows."""
    raise NotImplementedError


@overload(_at, inline="always")
def _(x: Any, i: Any) -> Any:
    def one_for_each(x: Any, i: Any) -> Any:
        return x[i]

    def one_for_all(x: Any, i: Any) -> Any:
        return x

    return one_for_each if isinstance(x, types.Array) else one_for_all


def _row(rows: Any, i: Any) -> Any:
    """Return the number of row i: rows[i], or i if `rows` is only how many rows there are."""
    raise NotImplementedError


@overload(_row, inline="always")
def _(rows: Any, i: Any) -> Any:
    def given(rows: Any, i: Any) -> Any:
        return rows[i]

    def counted(rows: Any, i: Any) -> Any:
        return uint32(i)

    return given if isinstance(rows, types.Array) else counted


def row_count(rows: Any) -> Any:
    """Return how many rows there are."""
    raise NotImplementedError


@overload(row_count, inline="always")
def _(rows: Any) -> Any:
    def given(rows: Any) -> Any:
        return rows.size

    def counted(rows: Any) -> Any:
        return rows

    return given if isinstance(rows, types.Array) else counted


@compiled
def locate(
    seed0: Any, seed1: Any, rows: Any, stream: Any, units: Any, first: Any, last: Any, keys: Any, words: Any
) -> Any:
    """Write the keys and unit numbers of the elements `first` to `last` into rows 0 to 2 of `words` `[5, size]`.

    If rows are long, or all elements are in one row, write one column for each row, its key and the first of its units, and
    return how many units a row has. Otherwise write one column for each element, and return 0. `keys` `[2, > size]` is scratch.
    """
    first_row, end_row = first // units, (last - 1) // units + 1
    by_row = units >= _LONG_ROW or end_row == first_row + 1
    row_keys = words if by_row else keys
    for i in range(end_row - first_row):
        row = first_row + i
        row_keys[0, i], row_keys[1, i] = _threefry(
            uint32(_at(seed0, row)), uint32(_at(seed1, row)), _row(rows, row), stream
        )
    if by_row:
        for i in range(end_row - first_row):
            words[2, i] = uint32(max(first - (first_row + i) * units, 0))
        return units
    for i in range(end_row - first_row):
        start = (first_row + i) * units
        begin, end = max(first, start), min(last, start + units)
        k0, k1, unit = keys[0, i], keys[1, i], uint32(begin - start)
        begin, end = begin - first, end - first
        key0, key1, unit_of = words[0, begin:end], words[1, begin:end], words[2, begin:end]
        for j in range(key0.size):
            key0[j], key1[j], unit_of[j] = k0, k1, uint32(unit + uint32(j))
    return 0


def _unit(x: Any, i: Any) -> Any:
    """Return the number of unit i: x[i] of an array, or x + i if x is the number of the first unit."""
    raise NotImplementedError


@overload(_unit, inline="always")
def _(x: Any, i: Any) -> Any:
    def each(x: Any, i: Any) -> Any:
        return x[i]

    def counted(x: Any, i: Any) -> Any:
        return uint32(x + uint32(i))

    return each if isinstance(x, types.Array) else counted


def _numbers(k0: Any, k1: Any, unit: Any, draw: Any, x: Any, y: Any, out: Any) -> None:
    """Write the uniform numbers of units in one draw, as `uniform_from_words` defines them; x and y are scratch."""
    raise NotImplementedError


@overload(_numbers, inline="always")  # in a call that is not inlined numba counts references to each array, atomically
def _(k0: Any, k1: Any, unit: Any, draw: Any, x: Any, y: Any, out: Any) -> Any:
    @inlined
    def rounds_1_to_16(k0: Any, k1: Any, unit: Any, draw: Any, x: Any, y: Any) -> None:
        for i in range(x.size):
            x[i], y[i] = _rounds_1_to_4(_unit(unit, i), uint32(draw), _at(k0, i), _at(k1, i))
        for i in range(x.size):
            x[i], y[i] = _rounds_5_to_8(x[i], y[i], _at(k0, i), _at(k1, i))
        for i in range(x.size):
            x[i], y[i] = _rounds_9_to_12(x[i], y[i], _at(k0, i), _at(k1, i))
        for i in range(x.size):
            x[i], y[i] = _rounds_13_to_16(x[i], y[i], _at(k0, i), _at(k1, i))

    def narrow(k0: Any, k1: Any, unit: Any, draw: Any, x: Any, y: Any, out: Any) -> None:
        rounds_1_to_16(k0, k1, unit, draw, x, y)
        for i in range(out.size):
            word, _rest = _rounds_17_to_20(x[i], y[i], _at(k0, i), _at(k1, i))
            out[i] = np.float32(np.int32((word >> uint32(8)) | uint32(1))) * np.float32(2.0**-24)

    def wide(k0: Any, k1: Any, unit: Any, draw: Any, x: Any, y: Any, out: Any) -> None:
        rounds_1_to_16(k0, k1, unit, draw, x, y)
        for i in range(out.size):
            x[i], y[i] = _rounds_17_to_20(x[i], y[i], _at(k0, i), _at(k1, i))
        for i in range(out.size):
            # signed words, because vector units convert only these to floating point; no step rounds
            upper = np.float64(np.int32(x[i] ^ uint32(0x80000000))) + 2.0**31
            out[i] = upper * 2.0**-32 + np.float64(np.int32((y[i] >> uint32(11)) | uint32(1))) * 2.0**-53

    return narrow if out.dtype == types.float32 else wide


@compiled
def _uniforms_of_row(words: Any, row: Any, draw: Any, out: Any, begin: Any, end: Any) -> None:
    x, y = words[3, begin:end], words[4, begin:end]
    _numbers(words[0, row], words[1, row], words[2, row], draw, x, y, out[begin:end])


@compiled
def _uniforms_of_elements(words: Any, draw: Any, out: Any) -> None:
    _numbers(words[0], words[1], words[2], draw, words[3, : out.size], words[4, : out.size], out)


@inlined
def uniforms(words: Any, row_units: Any, draw: Any, out: Any) -> None:
    """Write the uniform numbers of a block in one draw, from the results of `locate`. Rows 3 and 4 of `words` are scratch."""
    if row_units:
        row, begin, end = np.int64(0), np.int64(0), min(row_units - np.int64(words[2, 0]), out.size)
        while begin < out.size:
            _uniforms_of_row(words, row, draw, out, begin, end)
            row, begin, end = row + 1, end, min(end + row_units, out.size)
    else:
        _uniforms_of_elements(words, draw, out)


@compiled
def _uniform(seed0: Any, seed1: Any, rows: Any, stream: Any, units: Any, out: Any, first: Any, last: Any) -> None:
    keys, words = np.empty((2, BLOCK + 1), np.uint32), np.empty((5, BLOCK), np.uint32)
    for at in range(first, last, BLOCK):
        size = min(BLOCK, last - at)
        row_units = locate(seed0, seed1, rows, stream, units, at, at + size, keys, words)
        for draw in range(len(out)):
            uniforms(words, row_units, draw, out[draw, at : at + size])


def uniform(seed: tuple[Word, Word], rows: Word, stream: int, draws: int, units: int, dtype: torch.dtype) -> Tensor:
    """Compute the same as `reference.uniform`."""
    out = empty(draws, rows if isinstance(rows, int) else len(rows), units, dtype=dtype)
    numbers, words = flat(out, 1), as_words(seed, rows, stream)
    in_threads(lambda first, last: _uniform(*words, units, numbers, first, last), numbers.shape[1], draws)
    return out
