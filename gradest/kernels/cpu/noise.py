"""The random words, and uniform numbers of them."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numba import types, uint32
from numba.extending import overload
from torch import Tensor

from gradest.kernels.cpu.compiler import BLOCK, compiled, inlined
from gradest.kernels.cpu.tensors import as_words, empty, flat, in_threads
from gradest.kernels.reference import Word

__all__ = ["prepare", "row_count", "uniform", "uniforms"]

_PARITY = np.uint32(0x1BD11BDA)
_LONG = 128  # units from which on a row is worth loops of its own, in which the words of its key do not change


@inlined
def _rotate_left(x: Any, by: Any) -> Any:
    return uint32(uint32(x << uint32(by)) | uint32(x >> uint32(32 - by)))


@inlined
def _four_rounds(x0: Any, x1: Any, k0: Any, k1: Any, a: Any, b: Any, c: Any, d: Any) -> Any:
    """Adds the words of the key, and then goes on by four rounds."""
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


@inlined
def _first(x0: Any, x1: Any, k0: Any, k1: Any) -> Any:
    return _four_rounds(x0, x1, k0, k1, 13, 15, 26, 6)


@inlined
def _second(x0: Any, x1: Any, k0: Any, k1: Any) -> Any:
    return _four_rounds(x0, x1, k1, uint32(uint32(k0 ^ k1 ^ _PARITY) + uint32(1)), 17, 29, 16, 24)


@inlined
def _third(x0: Any, x1: Any, k0: Any, k1: Any) -> Any:
    return _four_rounds(x0, x1, uint32(k0 ^ k1 ^ _PARITY), uint32(k0 + uint32(2)), 13, 15, 26, 6)


@inlined
def _fourth(x0: Any, x1: Any, k0: Any, k1: Any) -> Any:
    return _four_rounds(x0, x1, k0, uint32(k1 + uint32(3)), 17, 29, 16, 24)


@inlined
def _fifth(x0: Any, x1: Any, k0: Any, k1: Any) -> Any:
    k2 = uint32(k0 ^ k1 ^ _PARITY)
    x0, x1 = _four_rounds(x0, x1, k1, uint32(k2 + uint32(4)), 13, 15, 26, 6)
    return uint32(x0 + k2), uint32(x1 + k0 + uint32(5))


@inlined
def _threefry(k0: Any, k1: Any, c0: Any, c1: Any) -> Any:
    """Threefry-2x32, 20 rounds, as in `gradest.kernels.reference.threefry`."""
    x0, x1 = _first(c0, c1, k0, k1)
    x0, x1 = _second(x0, x1, k0, k1)
    x0, x1 = _third(x0, x1, k0, k1)
    x0, x1 = _fourth(x0, x1, k0, k1)
    return _fifth(x0, x1, k0, k1)


def _at(x: Any, i: Any) -> Any:
    """x[i], or x where it is one number for all."""
    raise NotImplementedError


@overload(_at, inline="always")
def _(x: Any, i: Any) -> Any:
    def one_for_each(x: Any, i: Any) -> Any:
        return x[i]

    def one_for_all(x: Any, i: Any) -> Any:
        return x

    return one_for_each if isinstance(x, types.Array) else one_for_all


def _row(rows: Any, i: Any) -> Any:
    """The number of row i: rows[i], or i where only their count is given."""
    raise NotImplementedError


@overload(_row, inline="always")
def _(rows: Any, i: Any) -> Any:
    def given(rows: Any, i: Any) -> Any:
        return rows[i]

    def counted(rows: Any, i: Any) -> Any:
        return uint32(i)

    return given if isinstance(rows, types.Array) else counted


def row_count(rows: Any) -> Any:
    """How many rows there are."""
    raise NotImplementedError


@overload(row_count, inline="always")
def _(rows: Any) -> Any:
    def given(rows: Any) -> Any:
        return rows.size

    def counted(rows: Any) -> Any:
        return rows

    return given if isinstance(rows, types.Array) else counted


@compiled
def prepare(
    seed0: Any, seed1: Any, rows: Any, stream: Any, units: Any, first: Any, last: Any, keys: Any, where: Any
) -> Any:
    """Where the elements `first` to `last` are, into rows 0 to 2 of `where`; `keys` `[2, > size]` is scratch.

    Returns how many units a row has, if rows are long or there is one only. Then each row's key and the first of its units are
    written, and the other units count up from it. Else 0, and the key and the unit of each element are.
    """
    first_row, end_row = first // units, (last - 1) // units + 1
    by_row = units >= _LONG or end_row == first_row + 1
    found = where if by_row else keys
    for i in range(end_row - first_row):
        row = first_row + i
        found[0, i], found[1, i] = _threefry(uint32(_at(seed0, row)), uint32(_at(seed1, row)), _row(rows, row), stream)
    if by_row:
        for i in range(end_row - first_row):
            where[2, i] = uint32(max(first - (first_row + i) * units, 0))
        return units
    for i in range(end_row - first_row):
        start = (first_row + i) * units
        begin, end = max(first, start), min(last, start + units)
        k0, k1, unit = keys[0, i], keys[1, i], uint32(begin - start)
        begin, end = begin - first, end - first
        key0, key1, unit_of = where[0, begin:end], where[1, begin:end], where[2, begin:end]
        for j in range(key0.size):
            key0[j], key1[j], unit_of[j] = k0, k1, uint32(unit + uint32(j))
    return 0


def _unit(x: Any, i: Any) -> Any:
    """x[i], or x + i where only the first is given."""
    raise NotImplementedError


@overload(_unit, inline="always")
def _(x: Any, i: Any) -> Any:
    def each(x: Any, i: Any) -> Any:
        return x[i]

    def counted(x: Any, i: Any) -> Any:
        return uint32(x + uint32(i))

    return each if isinstance(x, types.Array) else counted


def _numbers(k0: Any, k1: Any, unit: Any, draw: Any, x: Any, y: Any, out: Any) -> None:
    """The uniform numbers of units in one draw, as `reference.uniform_from_words` makes them; words `x` and `y` are scratch."""
    raise NotImplementedError


@overload(_numbers, inline="always")  # numba counts references to the arrays that are handed to a call, atomically
def _(k0: Any, k1: Any, unit: Any, draw: Any, x: Any, y: Any, out: Any) -> Any:
    @inlined
    def until_the_fourth(k0: Any, k1: Any, unit: Any, draw: Any, x: Any, y: Any) -> None:
        for i in range(x.size):
            x[i], y[i] = _first(_unit(unit, i), uint32(draw), _at(k0, i), _at(k1, i))
        for i in range(x.size):
            x[i], y[i] = _second(x[i], y[i], _at(k0, i), _at(k1, i))
        for i in range(x.size):
            x[i], y[i] = _third(x[i], y[i], _at(k0, i), _at(k1, i))
        for i in range(x.size):
            x[i], y[i] = _fourth(x[i], y[i], _at(k0, i), _at(k1, i))

    def narrow(k0: Any, k1: Any, unit: Any, draw: Any, x: Any, y: Any, out: Any) -> None:
        until_the_fourth(k0, k1, unit, draw, x, y)
        for i in range(out.size):
            word, _rest = _fifth(x[i], y[i], _at(k0, i), _at(k1, i))
            out[i] = np.float32(np.int32((word >> uint32(8)) | uint32(1))) * np.float32(2.0**-24)

    def wide(k0: Any, k1: Any, unit: Any, draw: Any, x: Any, y: Any, out: Any) -> None:
        until_the_fourth(k0, k1, unit, draw, x, y)
        for i in range(out.size):
            x[i], y[i] = _fifth(x[i], y[i], _at(k0, i), _at(k1, i))
        for i in range(out.size):
            # signed words, as these convert in vectors; no step rounds
            upper = np.float64(np.int32(x[i] ^ uint32(0x80000000))) + 2.0**31
            out[i] = upper * 2.0**-32 + np.float64(np.int32((y[i] >> uint32(11)) | uint32(1))) * 2.0**-53

    return narrow if out.dtype == types.float32 else wide


@compiled
def _in_row(where: Any, row: Any, draw: Any, out: Any, begin: Any, end: Any) -> None:
    x, y = where[3, begin:end], where[4, begin:end]
    _numbers(where[0, row], where[1, row], where[2, row], draw, x, y, out[begin:end])


@compiled
def _one_by_one(where: Any, draw: Any, out: Any) -> None:
    _numbers(where[0], where[1], where[2], draw, where[3, : out.size], where[4, : out.size], out)


@inlined
def uniforms(where: Any, by_row: Any, draw: Any, out: Any) -> None:
    """The uniform numbers of a block in one draw; `by_row` is what `prepare` has returned."""
    if by_row:
        row, begin, end = 0, 0, min(by_row - np.int64(where[2, 0]), out.size)
        while begin < out.size:
            _in_row(where, row, draw, out, begin, end)
            row, begin, end = row + 1, end, min(end + by_row, out.size)
    else:
        _one_by_one(where, draw, out)


@compiled
def _uniform(seed0: Any, seed1: Any, rows: Any, stream: Any, units: Any, out: Any, first: Any, last: Any) -> None:
    keys, where = np.empty((2, BLOCK + 1), np.uint32), np.empty((5, BLOCK), np.uint32)
    for at in range(first, last, BLOCK):
        size = min(BLOCK, last - at)
        by_row = prepare(seed0, seed1, rows, stream, units, at, at + size, keys, where)
        for draw in range(len(out)):
            uniforms(where, by_row, draw, out[draw, at : at + size])


def uniform(seed: tuple[Word, Word], rows: Word, stream: int, draws: int, units: int, dtype: torch.dtype) -> Tensor:
    """Uniform numbers `[draws, rows, units]`, from the two words of the seed and the row numbers."""
    out = empty(draws, rows if isinstance(rows, int) else len(rows), units, dtype=dtype)
    numbers, words = flat(out, 1), as_words(seed, rows, stream)
    in_threads(lambda first, last: _uniform(*words, units, numbers, first, last), numbers.shape[1], draws)
    return out
