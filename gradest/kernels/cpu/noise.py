"""The random words, and the uniform numbers made from them: `gradest.kernels.reference.noise`, operation by operation."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numba import types, uint32, uint64
from numba.extending import overload
from torch import Tensor

from gradest.kernels.cpu.compilation.compiler import BLOCK, INLINED_BY_LLVM, compiled, inlined, inlined_by_llvm
from gradest.kernels.cpu.tensors import as_words, empty, flat, in_threads
from gradest.kernels.reference.noise import LOWER_WORDS, MULTIPLIERS, WEYL, Word

__all__ = ["locate", "noise_scratch", "uniform", "uniforms"]

_M0, _M1 = map(np.uint64, MULTIPLIERS)
_W0, _W1 = map(np.uint64, WEYL)
_LOW, _BITS = np.uint64(0xFFFFFFFF), np.uint64(32)
_LOWER = np.uint64(LOWER_WORDS)
_LONG_ROW = 32  # a row with this many units is worth a loop of its own; shorter ones are drawn many at a time

# A word is the lower half of a uint64, whose upper half may hold anything. So the vector unit multiplies words where they are,
# and two words of a result are joined to one uint64, which lies in memory as they do.


@inlined_by_llvm
def _round(c0: Any, c1: Any, c2: Any, c3: Any, k0: Any, k1: Any) -> Any:
    """Do one round of Philox-4x32 with this key."""
    p0, p1 = _M0 * (c0 & _LOW), _M1 * (c2 & _LOW)
    return (p1 >> _BITS) ^ c1 ^ k0, p1, (p0 >> _BITS) ^ c3 ^ k1, p0


@inlined_by_llvm
def _philox(c0: Any, c1: Any, c2: Any, c3: Any, k0: Any, k1: Any) -> Any:
    """Encrypt a counter by Philox-4x32 with 7 rounds; return its first two words as one uint64, and its last two."""
    c0, c1, c2, c3 = _round(c0, c1, c2, c3, k0, k1)
    c0, c1, c2, c3 = _round(c0, c1, c2, c3, k0 + _W0, k1 + _W1)
    c0, c1, c2, c3 = _round(c0, c1, c2, c3, k0 + uint64(2) * _W0, k1 + uint64(2) * _W1)
    c0, c1, c2, c3 = _round(c0, c1, c2, c3, k0 + uint64(3) * _W0, k1 + uint64(3) * _W1)
    c0, c1, c2, c3 = _round(c0, c1, c2, c3, k0 + uint64(4) * _W0, k1 + uint64(4) * _W1)
    c0, c1, c2, c3 = _round(c0, c1, c2, c3, k0 + uint64(5) * _W0, k1 + uint64(5) * _W1)
    c0, c1, c2, c3 = _round(c0, c1, c2, c3, k0 + uint64(6) * _W0, k1 + uint64(6) * _W1)
    return (c0 & _LOW) | (c1 << _BITS), (c2 & _LOW) | (c3 << _BITS)


@inlined
def noise_scratch(size: Any, like: Any) -> Any:
    """Return what `locate` and `uniforms` write to, for at most `size` elements at a time of the dtype of `like`.

    It is the numbers of rows and the words of their seeds, `[3, size + 1]`, and the words of counters, four for each: those that
    numbers begin with, and for float64 those that they end with.
    """
    words = np.empty(2 * size + 2, np.uint64)
    return np.empty((3, size + 1), np.uint32), words, np.empty_like(words) if like.itemsize == 8 else words


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


@compiled
def _encrypt_row(numbers: Any, row: Any, counter: Any, count: Any, draw: Any, stream: Any, words: Any) -> None:
    """Write the words of `count` counters of one row, from number `counter` on."""
    c1, c2, c3 = uint64(draw), uint64(numbers[0, row]), uint64(stream)
    k0, k1 = uint64(numbers[1, row]), uint64(numbers[2, row])
    for i in range(count):
        words[2 * i], words[2 * i + 1] = _philox(counter + uint64(i), c1, c2, c3, k0, k1)


@compiled
def _encrypt_column(numbers: Any, counter: Any, count: Any, draw: Any, stream: Any, words: Any) -> None:
    """Write the words of the counter of one number in each of the first `count` rows."""
    c2, k0, k1 = numbers[0, :count], numbers[1, :count], numbers[2, :count]
    c1, c3 = uint64(draw), uint64(stream)
    for i in range(c2.size):
        words[2 * i], words[2 * i + 1] = _philox(counter, c1, uint64(c2[i]), c3, uint64(k0[i]), uint64(k1[i]))


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


@compiled
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


@inlined
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
    scratch = noise_scratch(BLOCK, out)
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
