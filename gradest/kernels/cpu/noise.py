"""The random words, and the uniform numbers made from them: `gradest.kernels.reference.noise`, operation by operation."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numba import types, uint32
from numba.extending import overload
from torch import Tensor

from gradest.kernels.cpu.compilation.compiler import BLOCK, INLINED_BY_LLVM, compiled, inlined, inlined_by_llvm
from gradest.kernels.cpu.tensors import as_words, empty, flat, in_threads
from gradest.kernels.reference.noise import Word

__all__ = ["locate", "row_count", "uniform", "uniforms"]

_PARITY = np.uint32(0x1BD11BDA)
_BITS = np.uint32(32)
_LONG_ROW = 128  # a row with this many units is worth loops of its own, in which the words of its key are constant


@inlined_by_llvm
def _four_rounds(x0: Any, x1: Any, a: Any, b: Any, c: Any, d: Any) -> Any:
    """Do four rounds of Threefry-2x32 with these rotations."""
    x0 = uint32(x0 + x1)
    x1 = uint32(uint32(uint32(x1 << a) | uint32(x1 >> uint32(_BITS - a))) ^ x0)
    x0 = uint32(x0 + x1)
    x1 = uint32(uint32(uint32(x1 << b) | uint32(x1 >> uint32(_BITS - b))) ^ x0)
    x0 = uint32(x0 + x1)
    x1 = uint32(uint32(uint32(x1 << c) | uint32(x1 >> uint32(_BITS - c))) ^ x0)
    x0 = uint32(x0 + x1)
    x1 = uint32(uint32(uint32(x1 << d) | uint32(x1 >> uint32(_BITS - d))) ^ x0)
    return x0, x1


@inlined_by_llvm
def _odd_rounds(x0: Any, x1: Any, k0: Any, k1: Any) -> Any:
    """Add two words of the key schedule, then do rounds 1 to 4, 9 to 12, or 17 to 20."""
    return _four_rounds(uint32(x0 + k0), uint32(x1 + k1), uint32(13), uint32(15), uint32(26), uint32(6))


@inlined_by_llvm
def _even_rounds(x0: Any, x1: Any, k0: Any, k1: Any) -> Any:
    """Add two words of the key schedule, then do rounds 5 to 8, or 13 to 16."""
    return _four_rounds(uint32(x0 + k0), uint32(x1 + k1), uint32(17), uint32(29), uint32(16), uint32(24))


@inlined_by_llvm
def _third(k0: Any, k1: Any) -> Any:
    """Return the third word of the key schedule."""
    return uint32(k0 ^ k1 ^ _PARITY)


@inlined_by_llvm
def _threefry(k0: Any, k1: Any, c0: Any, c1: Any) -> Any:
    """Encrypt a counter by Threefry-2x32 with 20 rounds."""
    k2 = _third(k0, k1)
    x0, x1 = _odd_rounds(c0, c1, k0, k1)
    x0, x1 = _even_rounds(x0, x1, k1, uint32(k2 + uint32(1)))
    x0, x1 = _odd_rounds(x0, x1, k2, uint32(k0 + uint32(2)))
    x0, x1 = _even_rounds(x0, x1, k0, uint32(k1 + uint32(3)))
    x0, x1 = _odd_rounds(x0, x1, k1, uint32(k2 + uint32(4)))
    return uint32(x0 + k2), uint32(x1 + uint32(k0 + uint32(5)))


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


# The cipher is in loops of four rounds, because a longer chain of operations that wait for one another would fill the processor's
# queue. Loops over a row, whose key is constant, and over elements with keys of their own are written out: numba compiles a plain
# loop in a fraction of the time that it takes for one that is put together from functions of arrays.


@compiled
def _words_of_row(words: Any, row: Any, draw: Any, begin: Any, end: Any) -> None:
    """Write the words before the last four rounds into rows 3 and 4 of `words`, for units of one row."""
    k0, k1, first = words[0, row], words[1, row], words[2, row]
    k2 = _third(k0, k1)
    x, y = words[3, begin:end], words[4, begin:end]
    for i in range(x.size):
        x[i], y[i] = _odd_rounds(uint32(first + uint32(i)), uint32(draw), k0, k1)
    for i in range(x.size):
        x[i], y[i] = _even_rounds(x[i], y[i], k1, uint32(k2 + uint32(1)))
    for i in range(x.size):
        x[i], y[i] = _odd_rounds(x[i], y[i], k2, uint32(k0 + uint32(2)))
    for i in range(x.size):
        x[i], y[i] = _even_rounds(x[i], y[i], k0, uint32(k1 + uint32(3)))


@compiled
def _words_of_elements(words: Any, draw: Any, size: Any) -> None:
    """Write the words before the last four rounds into rows 3 and 4 of `words`, for elements with keys of their own."""
    k0, k1, unit, x, y = words[0, :size], words[1, :size], words[2, :size], words[3, :size], words[4, :size]
    for i in range(x.size):
        x[i], y[i] = _odd_rounds(unit[i], uint32(draw), k0[i], k1[i])
    for i in range(x.size):
        x[i], y[i] = _even_rounds(x[i], y[i], k1[i], uint32(_third(k0[i], k1[i]) + uint32(1)))
    for i in range(x.size):
        x[i], y[i] = _odd_rounds(x[i], y[i], _third(k0[i], k1[i]), uint32(k0[i] + uint32(2)))
    for i in range(x.size):
        x[i], y[i] = _even_rounds(x[i], y[i], k0[i], uint32(k1[i] + uint32(3)))


def _number(word: Any, rest: Any, like: Any) -> Any:
    """Return the uniform number that `uniform_from_words` makes of two words, in the dtype of `like`."""
    raise NotImplementedError


@overload(_number, jit_options=INLINED_BY_LLVM)
def _(word: Any, rest: Any, like: Any) -> Any:
    def narrow(word: Any, rest: Any, like: Any) -> Any:
        return np.float32(np.int32((word >> uint32(8)) | uint32(1))) * np.float32(2.0**-24)

    def wide(word: Any, rest: Any, like: Any) -> Any:
        # signed words, because vector units convert only these to floating point; no step rounds
        upper = np.float64(np.int32(word ^ uint32(0x80000000))) + 2.0**31
        return upper * 2.0**-32 + np.float64(np.int32((rest >> uint32(11)) | uint32(1))) * 2.0**-53

    return narrow if like == types.float32 else wide


@compiled
def _uniforms_of_row(words: Any, row: Any, draw: Any, out: Any, begin: Any, end: Any) -> None:
    _words_of_row(words, row, draw, begin, end)
    k0, k1, x, y, u = words[0, row], words[1, row], words[3, begin:end], words[4, begin:end], out[begin:end]
    k2 = _third(k0, k1)
    for i in range(u.size):
        word, rest = _odd_rounds(x[i], y[i], k1, uint32(k2 + uint32(4)))
        u[i] = _number(uint32(word + k2), uint32(rest + uint32(k0 + uint32(5))), u[i])


@compiled
def _uniforms_of_elements(words: Any, draw: Any, out: Any) -> None:
    _words_of_elements(words, draw, out.size)
    k0, k1, x, y = words[0], words[1], words[3], words[4]
    for i in range(out.size):
        k2 = _third(k0[i], k1[i])
        word, rest = _odd_rounds(x[i], y[i], k1[i], uint32(k2 + uint32(4)))
        out[i] = _number(uint32(word + k2), uint32(rest + uint32(k0[i] + uint32(5))), out[i])


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
