"""The random words, and the uniform numbers made from them: `gradest.kernels.reference.noise`, operation by operation."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numba import types, uint32, uint64
from numba.extending import overload
from torch import Tensor

from gradest.kernels.cpu.compilation.compiler import BLOCK, INLINED_BY_LLVM, compiled, inlined, stack, stack_rows
from gradest.kernels.cpu.tensors import as_words, empty, flat, in_threads
from gradest.kernels.cpu.vectors.cipher import LANES, encrypt_column, encrypt_row
from gradest.kernels.reference.noise import LOWER_WORDS, Word

__all__ = ["block_scratch", "locate", "noise_scratch", "uniform", "uniforms"]

_LOWER = np.uint64(LOWER_WORDS)
_ROWS, _WORDS = BLOCK + LANES, 2 * (BLOCK + LANES)
_LONG_ROW = 32  # a row with this many units is worth a loop of its own; shorter ones are drawn many at a time


@inlined
def noise_scratch(size: Any, like: Any) -> Any:
    """Return what `locate` and `uniforms` write to, for at most `size` elements at a time of the dtype of `like`.

    It is the numbers of rows and the words of their seeds, `[3, size + LANES]`, and the words of counters, four for each: those
    that numbers begin with, and for float64 those that they end with.
    """
    words = np.empty(2 * (size + LANES), np.uint64)
    return np.zeros((3, size + LANES), np.uint32), words, np.empty_like(words) if like.itemsize == 8 else words


@inlined
def block_scratch(like: Any) -> Any:
    """Return what `noise_scratch` does for `BLOCK` elements, in memory that ends with the call of the kernel."""
    numbers, words = stack_rows(3, _ROWS, np.uint32), stack(_WORDS, np.uint64)
    numbers[:] = 0
    return numbers, words, stack(_WORDS, np.uint64) if like.itemsize == 8 else words


@compiled
def locate(
    words: Any, seed0: Any, seed1: Any, stream: Any, units: Any, first: Any, last: Any, scratch: Any
) -> tuple[Any, Any, Any, Any]:
    """Write the rows of the elements `first` to `last`, and return their place, which `uniforms` takes.

    The first arguments are as `as_words` returns them. The place is the stream, the number of units of a row, the unit of the
    first element, and the number of rows.
    """
    first_row, count = first // units, (last - 1) // units - first // units + 1
    number, k0, k1 = scratch[0][0, :count], scratch[0][1, :count], scratch[0][2, :count]
    if words.size > 0:
        for i in range(count):
            row = first_row + i
            number[i], k0[i], k1[i] = words[0, row], words[1, row], words[2, row]
    else:
        for i in range(count):
            number[i], k0[i], k1[i] = uint32(first_row + i), uint32(seed0), uint32(seed1)
    return stream, units, first % units, count


@inlined
def _encrypt_row(numbers: Any, row: Any, counter: Any, count: Any, draw: Any, stream: Any, words: Any) -> None:
    """Write the words of `count` counters of one row, from number `counter` on."""
    c1, c2, c3 = uint64(draw), uint64(numbers[0, row]), uint64(stream)
    k0, k1 = uint64(numbers[1, row]), uint64(numbers[2, row])
    for i in range(0, count, LANES):
        encrypt_row(words, i, counter, c1, c2, c3, k0, k1)


@inlined
def _encrypt_column(numbers: Any, counter: Any, count: Any, draw: Any, stream: Any, words: Any) -> None:
    """Write the words of the counter of one number in each of the first `count` rows."""
    for i in range(0, count, LANES):
        encrypt_column(words, i, counter, uint64(draw), numbers[0], uint64(stream), numbers[1], numbers[2])


def _number(word: Any, rest: Any, like: Any) -> Any:
    """Return the uniform number that `uniform_from_words` makes of two words, in the dtype of `like`."""
    raise NotImplementedError


@overload(_number, jit_options=INLINED_BY_LLVM)
def _(word: Any, rest: Any, like: Any) -> Any:
    def narrow(word: Any, rest: Any, like: Any) -> Any:
        # the upper 23 bits make a number from 1 to 2, less 1 - 2**-24: the same number, without a conversion
        return np.uint32((word >> uint32(9)) | uint32(0x3F800000)).view(np.float32) - np.float32(1 - 2.0**-24)

    def wide(word: Any, rest: Any, like: Any) -> Any:
        # signed words, because vector units convert only these to floating point; no step rounds
        upper = np.float64(np.int32(word ^ uint32(0x80000000))) + 2.0**31
        return upper * 2.0**-32 + np.float64(np.int32((rest >> uint32(11)) | uint32(1))) * 2.0**-53

    return narrow if like == types.float32 else wide


@inlined
def _uniforms_by_row(scratch: Any, place: Any, draw: Any, out: Any) -> None:
    numbers, words, rest = scratch
    stream, units, unit, rows = place
    begin = 0
    for row in range(rows):
        end = min(begin + units - unit, out.size)
        counter = unit // 4
        count, shift = (unit + end - begin + 3) // 4 - counter, unit - 4 * counter
        _encrypt_row(numbers, row, uint64(counter), count, draw, stream, words)
        if out.itemsize == 8:
            _encrypt_row(numbers, row, uint64(counter) + _LOWER, count, draw, stream, rest)
        u, x, y = out[begin:end], words.view(np.uint32)[shift:], rest.view(np.uint32)[shift:]
        for i in range(u.size):
            u[i] = _number(x[i], y[i], u[i])
        begin, unit = end, 0


@inlined
def _uniforms_by_column(scratch: Any, place: Any, draw: Any, out: Any) -> None:
    numbers, words, rest = scratch
    stream, units, first, rows = place
    x, y = words.view(np.uint32), rest.view(np.uint32)
    for begin in range(0, units, 4):
        counter = uint64(begin // 4)
        _encrypt_column(numbers, counter, rows, draw, stream, words)
        if out.itemsize == 8:
            _encrypt_column(numbers, counter + _LOWER, rows, draw, stream, rest)
        for unit in range(begin, min(begin + 4, units)):
            for row in range(1 if unit < first else 0, (out.size + first - unit + units - 1) // units):
                word = uint64(4 * row + unit - begin)
                out[uint64(row * units + unit - first)] = _number(x[word], y[word], out[0])


@compiled
def uniforms(scratch: Any, place: Any, draw: Any, out: Any) -> None:
    """Write the uniform numbers of a block of elements in one draw; `locate` has written their rows, and returned `place`."""
    if place[1] >= _LONG_ROW or place[3] == 1:
        _uniforms_by_row(scratch, place, draw, out)
    else:
        _uniforms_by_column(scratch, place, draw, out)


@compiled
def _uniform(
    words: Any, seed0: Any, seed1: Any, rows: Any, stream: Any, units: Any, out: Any, first: Any, last: Any
) -> None:
    scratch = block_scratch(out)
    for at in range(first, last, BLOCK):
        end = min(at + BLOCK, last)
        place = locate(words, seed0, seed1, stream, units, at, end, scratch)
        for draw in range(len(out)):
            uniforms(scratch, place, draw, out[draw, at:end])


def uniform(seed: tuple[Word, Word], rows: Word, stream: int, draws: int, units: int, dtype: torch.dtype) -> Tensor:
    """Compute the same as `reference.uniform`."""
    out = empty(draws, rows if isinstance(rows, int) else len(rows), units, dtype=dtype)
    numbers, words = flat(out, 1), as_words(seed, rows, stream)
    in_threads(lambda first, last: _uniform(*words, units, numbers, first, last), numbers.shape[1], draws)
    return out
