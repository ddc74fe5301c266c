"""Kernels for the CPU, compiled by numba: the same bits as the reference, in one pass over memory.

They are compiled at their first use and kept on disk. They release the interpreter's lock, and a large tensor is cut among as
many threads as torch uses, which live no longer than the call; so they may be called from several threads, and after a fork.

Each kernel walks over the elements of `[rows, units]` in blocks that stay in the cache. For a block it works out what all draws
share, the row keys and what depends on `a` alone, and then draws. Its loops hold nothing that a vector unit cannot do:
no calls, no conversion between unsigned integers and floating point, no index but the loop's own. And they are short: a long
chain of operations that wait for one another fills the processor's queue before those of the next element are in sight, so a
cipher cut in five loops, and a sigmoid in three, take little more than half the time.

A function whose body raises NotImplementedError is a name for numba alone, which takes the overload that follows it.
"""

from __future__ import annotations

import math
import threading
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any, ClassVar

import numpy as np
import torch
from numba import njit, types, uint32
from numba.extending import overload
from torch import Tensor

from gradest.kernels import reference
from gradest.kernels.portable import CONSTANTS, LANES
from gradest.kernels.reference import Word

__all__ = [
    "all_finite",
    "antithetic",
    "antithetic_score",
    "binary",
    "binomial",
    "concrete",
    "concrete_pullback",
    "gated",
    "gated_backward",
    "leave_one_out_score",
    "logistic_backward",
    "logistic_score",
    "moments",
    "normal",
    "normal_pullback",
    "one_hot",
    "poisson",
    "rectified",
    "rectified_backward",
    "repeated",
    "softmax",
    "softmax_backward",
    "uniform",
]

_NUMPY: dict[torch.dtype, Any] = {torch.float32: np.float32, torch.float64: np.float64}
_PARITY = np.uint32(0x1BD11BDA)
_BLOCK = 512  # elements that are worked on at a time: with their words and numbers they fit into 32 KiB
_PER_THREAD = 1 << 18  # elements that are worth a thread
_REUSED = 1 << 20  # bytes from which on memory is kept for another tensor

_compiled: Callable[[Callable[..., Any]], Callable[..., Any]] = njit(nogil=True, cache=True, error_model="numpy")
_inlined: Callable[[Callable[..., Any]], Callable[..., Any]] = njit(inline="always")

# --- the random words --------------------------------------------------------------------------------------------------------


@_inlined
def _rotate_left(x: Any, by: Any) -> Any:
    return uint32(uint32(x << uint32(by)) | uint32(x >> uint32(32 - by)))


@_inlined
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


@_inlined
def _first(x0: Any, x1: Any, k0: Any, k1: Any) -> Any:
    return _four_rounds(x0, x1, k0, k1, 13, 15, 26, 6)


@_inlined
def _second(x0: Any, x1: Any, k0: Any, k1: Any) -> Any:
    return _four_rounds(x0, x1, k1, uint32(uint32(k0 ^ k1 ^ _PARITY) + uint32(1)), 17, 29, 16, 24)


@_inlined
def _third(x0: Any, x1: Any, k0: Any, k1: Any) -> Any:
    return _four_rounds(x0, x1, uint32(k0 ^ k1 ^ _PARITY), uint32(k0 + uint32(2)), 13, 15, 26, 6)


@_inlined
def _fourth(x0: Any, x1: Any, k0: Any, k1: Any) -> Any:
    return _four_rounds(x0, x1, k0, uint32(k1 + uint32(3)), 17, 29, 16, 24)


@_inlined
def _fifth(x0: Any, x1: Any, k0: Any, k1: Any) -> Any:
    k2 = uint32(k0 ^ k1 ^ _PARITY)
    x0, x1 = _four_rounds(x0, x1, k1, uint32(k2 + uint32(4)), 13, 15, 26, 6)
    return uint32(x0 + k2), uint32(x1 + k0 + uint32(5))


@_inlined
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


def _count(rows: Any) -> Any:
    """How many rows there are."""
    raise NotImplementedError


@overload(_count, inline="always")
def _(rows: Any) -> Any:
    def given(rows: Any) -> Any:
        return rows.size

    def counted(rows: Any) -> Any:
        return rows

    return given if isinstance(rows, types.Array) else counted


@_compiled
def _prepare(
    seed0: Any, seed1: Any, rows: Any, stream: Any, units: Any, first: Any, last: Any, keys: Any, where: Any
) -> Any:
    """The row keys and units of the elements `first` to `last`, into rows 0 to 2 of `where`; `keys` `[2, > size]` is scratch.

    Returns whether the elements are of one row. Then only the first of them is written, and the others count up from it.
    """
    first_row, end_row = first // units, (last - 1) // units + 1
    for i in range(end_row - first_row):
        row = first_row + i
        keys[0, i], keys[1, i] = _threefry(uint32(_at(seed0, row)), uint32(_at(seed1, row)), _row(rows, row), stream)
    if end_row == first_row + 1:
        where[0, 0], where[1, 0], where[2, 0] = keys[0, 0], keys[1, 0], uint32(first - first_row * units)
        return True
    for i in range(end_row - first_row):
        start = (first_row + i) * units
        begin, end = max(first, start), min(last, start + units)
        k0, k1, unit = keys[0, i], keys[1, i], uint32(begin - start)
        begin, end = begin - first, end - first
        key0, key1, unit_of = where[0, begin:end], where[1, begin:end], where[2, begin:end]
        for j in range(key0.size):
            key0[j], key1[j], unit_of[j] = k0, k1, uint32(unit + uint32(j))
    return False


@_inlined
def _float32(x0: Any) -> Any:
    return np.float32(np.int32((x0 >> uint32(8)) | uint32(1))) * np.float32(2.0**-24)


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


@overload(_numbers)
def _(k0: Any, k1: Any, unit: Any, draw: Any, x: Any, y: Any, out: Any) -> Any:
    @_inlined
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


@_inlined
def _draw(where: Any, in_row: Any, draw: Any, out: Any) -> None:
    """The uniform numbers of a block in one draw."""
    x, y = where[3, : out.size], where[4, : out.size]
    if in_row:
        _numbers(where[0, 0], where[1, 0], where[2, 0], draw, x, y, out)
    else:
        _numbers(where[0], where[1], where[2], draw, x, y, out)


# --- elementary functions, operation by operation as in `gradest.kernels.portable` --------------------------------------------


def _polynomial(coefficients: tuple[float, ...], kind: Any) -> Any:
    """Horner's scheme, unrolled: a compiled function of x."""
    last = kind(coefficients[-1])
    if len(coefficients) == 1:
        return _inlined(lambda x: last)
    before = _polynomial(coefficients[:-1], kind)
    return _inlined(lambda x: before(x) * x + last)


_N, _W = CONSTANTS[torch.float32], CONSTANTS[torch.float64]
_N_EXP, _W_EXP = _polynomial(_N.exp, np.float32), _polynomial(_W.exp, np.float64)
_N_LOG, _W_LOG = _polynomial(_N.log, np.float32), _polynomial(_W.log, np.float64)
_N_LIMIT, _N_LN2, _N_PER_LN2 = np.float32(_N.limit), tuple(map(np.float32, _N.ln2)), np.float32(1 / sum(_N.ln2))
_W_LIMIT, _W_LN2, _W_PER_LN2 = _W.limit, _W.ln2, 1 / sum(_W.ln2)
_N_ROOT, _N_SHIFT = np.int32(_N.root_half), np.int32((_N.bias << _N.mantissa) - _N.root_half)
_W_ROOT, _W_SHIFT = np.int64(_W.root_half), np.int64((_W.bias << _W.mantissa) - _W.root_half)
_N_HALF, _W_HALF = np.int32(_N.bias << (_N.mantissa - 1)), np.int64(_W.bias << (_W.mantissa - 1))
(_N_MIDDLE, _N_MIDDLE_BY), (_N_TAIL, _N_TAIL_BY) = (
    (_polynomial(top, np.float32), _polynomial(bottom, np.float32)) for top, bottom in _N.normal
)
(_W_MIDDLE, _W_MIDDLE_BY), (_W_TAIL, _W_TAIL_BY), (_W_FAR, _W_FAR_BY) = (
    (_polynomial(top, np.float64), _polynomial(bottom, np.float64)) for top, bottom in _W.normal
)
_N_STEPS, _W_STEPS = _N.steps, _W.steps
_N_MASK, _W_MASK = np.int32((1 << _N.mantissa) - 1), np.int64((1 << _W.mantissa) - 1)


def _reduced(x: Any) -> Any:
    """z, a whole number, and r with x = z log 2 + r."""
    raise NotImplementedError


@overload(_reduced, inline="always")
def _(x: Any) -> Any:
    def narrow(x: Any) -> Any:
        x = min(max(x, -_N_LIMIT), _N_LIMIT)
        z = np.floor(x * _N_PER_LN2 + np.float32(0.5))
        return z, x - z * _N_LN2[0] - z * _N_LN2[1]

    def wide(x: Any) -> Any:
        x = min(max(x, -_W_LIMIT), _W_LIMIT)
        z = np.floor(x * _W_PER_LN2 + 0.5)
        return z, x - z * _W_LN2[0] - z * _W_LN2[1]

    return narrow if x == types.float32 else wide


def _small_exp(r: Any) -> Any:
    """e^r."""
    raise NotImplementedError


@overload(_small_exp, inline="always")
def _(r: Any) -> Any:
    def narrow(r: Any) -> Any:
        return _N_EXP(r) * r * r + r + np.float32(1)

    def wide(r: Any) -> Any:
        return _W_EXP(r) * r * r + r + 1.0

    return narrow if r == types.float32 else wide


def _power_of_two(z: Any) -> Any:
    """2^z."""
    raise NotImplementedError


@overload(_power_of_two, inline="always")
def _(z: Any) -> Any:
    def narrow(z: Any) -> Any:
        return np.int32((np.int32(z) + np.int32(127)) << np.int32(23)).view(np.float32)

    def wide(z: Any) -> Any:
        return np.int64(np.int64(np.int32(z) + np.int32(1023)) << np.int64(52)).view(np.float64)

    return narrow if z == types.float32 else wide


@_inlined
def _exp(x: Any) -> Any:
    z, r = _reduced(x)
    return _small_exp(r) * _power_of_two(z)


def _log(x: Any) -> Any:
    raise NotImplementedError


@overload(_log, inline="always")
def _(x: Any) -> Any:
    def narrow(x: Any) -> Any:
        shifted = np.int32(np.float32(x).view(np.int32) + _N_SHIFT)
        k = np.float32(np.int32((shifted >> np.int32(23)) - np.int32(127)))
        f = np.int32((shifted & _N_MASK) + _N_ROOT).view(np.float32) - np.float32(1)
        s = f / (f + np.float32(2))
        square = s * s
        half = np.float32(0.5) * f * f
        rest = s * (half + square * _N_LOG(square))
        return k * _N_LN2[0] - ((half - (rest + k * _N_LN2[1])) - f)

    def wide(x: Any) -> Any:
        shifted = np.int64(np.float64(x).view(np.int64) + _W_SHIFT)
        k = np.float64(np.int32((shifted >> np.int64(52)) - np.int64(1023)))
        f = np.int64((shifted & _W_MASK) + _W_ROOT).view(np.float64) - 1.0
        s = f / (f + 2.0)
        square = s * s
        half = 0.5 * f * f
        rest = s * (half + square * _W_LOG(square))
        return k * _W_LN2[0] - ((half - (rest + k * _W_LN2[1])) - f)

    return narrow if x == types.float32 else wide


def _sqrt(x: Any) -> Any:
    raise NotImplementedError


@overload(_sqrt, inline="always")
def _(x: Any) -> Any:
    def narrow(x: Any) -> Any:
        y = np.int32((np.float32(x).view(np.int32) >> np.int32(1)) + _N_HALF).view(np.float32)
        for _ in range(_N_STEPS):
            y = np.float32(0.5) * (y + x / y)
        return y

    def wide(x: Any) -> Any:
        y = np.int64((np.float64(x).view(np.int64) >> np.int64(1)) + _W_HALF).view(np.float64)
        for _ in range(_W_STEPS):
            y = 0.5 * (y + x / y)
        return y

    return narrow if x == types.float32 else wide


def _ndtri(u: Any) -> Any:
    raise NotImplementedError


@overload(_ndtri, inline="always")
def _(u: Any) -> Any:
    def narrow(u: Any) -> Any:
        q = u - np.float32(0.5)
        r = np.float32(0.180625) - q * q
        z = q * (_N_MIDDLE(r) / _N_MIDDLE_BY(r))
        r = _sqrt(-_log(min(u, np.float32(1) - u))) - np.float32(1.6)
        far = _N_TAIL(r) / _N_TAIL_BY(r)
        return z if abs(q) <= np.float32(0.425) else (-far if q < np.float32(0) else far)

    def wide(u: Any) -> Any:
        q = u - 0.5
        r = 0.180625 - q * q
        z = q * (_W_MIDDLE(r) / _W_MIDDLE_BY(r))
        r = _sqrt(-_log(min(u, 1.0 - u)))
        near, beyond = r - 1.6, r - 5.0
        far = _W_TAIL(near) / _W_TAIL_BY(near) if r <= 5.0 else _W_FAR(beyond) / _W_FAR_BY(beyond)
        return z if abs(q) <= 0.425 else (-far if q < 0.0 else far)

    return narrow if u == types.float32 else wide


@_compiled
def _sigmoids(x: Any, out: Any, power: Any) -> None:
    """σ(x) of each; `power` is scratch."""
    one = x.dtype.type(1)
    for i in range(x.size):
        power[i], out[i] = _reduced(-x[i])
    for i in range(x.size):
        out[i] = _small_exp(out[i])
    for i in range(x.size):
        out[i] = one / (out[i] * _power_of_two(power[i]) + one)


@_compiled
def _both_sigmoids(x: Any, p: Any, q: Any, power: Any) -> None:
    """σ(x) and σ(-x) of each; `power` is scratch."""
    one = x.dtype.type(1)
    for i in range(x.size):
        power[i], q[i] = _reduced(-x[i])
    for i in range(x.size):
        q[i] = _small_exp(q[i])
    for i in range(x.size):
        e = q[i] * _power_of_two(power[i])
        p[i] = one / (e + one)
        q[i] = e * p[i]


# --- the kernels -------------------------------------------------------------------------------------------------------------
#
# `a` is flat, `out` `[draws, elements]`; a call does the elements `first` to `last`. Loops go over slices, whose own index starts
# at 0: for another numba would look whether it is negative, and not vectorise.


@_compiled
def _uniform(seed0: Any, seed1: Any, rows: Any, stream: Any, units: Any, out: Any, first: Any, last: Any) -> None:
    keys, where = np.empty((2, _BLOCK + 1), np.uint32), np.empty((5, _BLOCK), np.uint32)
    for at in range(first, last, _BLOCK):
        size = min(_BLOCK, last - at)
        in_row = _prepare(seed0, seed1, rows, stream, units, at, at + size, keys, where)
        for draw in range(len(out)):
            _draw(where, in_row, draw, out[draw, at : at + size])


@_compiled
def _binary(
    seed0: Any, seed1: Any, rows: Any, stream: Any, a: Any, out: Any, first: Any, last: Any, low: Any, high: Any
) -> None:
    keys, where = np.empty((2, _BLOCK + 1), np.uint32), np.empty((5, _BLOCK), np.uint32)
    p, u = np.empty(_BLOCK, a.dtype), np.empty(_BLOCK, a.dtype)
    for at in range(first, last, _BLOCK):
        size = min(_BLOCK, last - at)
        in_row = _prepare(seed0, seed1, rows, stream, a.size // _count(rows), at, at + size, keys, where)
        x = a[at : at + size]
        _sigmoids(x, p, u)
        for draw in range(len(out)):
            _draw(where, in_row, draw, u[:size])
            h = out[draw, at : at + size]
            for i in range(size):
                h[i] = high if u[i] < p[i] else low


@_compiled
def _antithetic(
    seed0: Any, seed1: Any, rows: Any, stream: Any, a: Any, out: Any, first: Any, last: Any, low: Any, high: Any
) -> None:
    keys, where = np.empty((2, _BLOCK + 1), np.uint32), np.empty((5, _BLOCK), np.uint32)
    p, u = np.empty(_BLOCK, a.dtype), np.empty(_BLOCK, a.dtype)
    one, pairs = a.dtype.type(1), len(out) // 2
    for at in range(first, last, _BLOCK):
        size = min(_BLOCK, last - at)
        in_row = _prepare(seed0, seed1, rows, stream, a.size // _count(rows), at, at + size, keys, where)
        _sigmoids(a[at : at + size], p, u)
        for draw in range(pairs):
            _draw(where, in_row, draw, u[:size])
            h, mirror = out[draw, at : at + size], out[pairs + draw, at : at + size]
            for i in range(size):
                h[i] = high if u[i] < p[i] else low
            for i in range(size):
                mirror[i] = high if one - u[i] < p[i] else low


@_compiled
def _gated(seed0: Any, seed1: Any, rows: Any, stream: Any, a: Any, out: Any, first: Any, last: Any) -> None:
    keys, where = np.empty((2, _BLOCK + 1), np.uint32), np.empty((5, _BLOCK), np.uint32)
    zero = a.dtype.type(0)
    r, u = np.empty(_BLOCK, a.dtype), np.empty(_BLOCK, a.dtype)
    for at in range(first, last, _BLOCK):
        size = min(_BLOCK, last - at)
        in_row = _prepare(seed0, seed1, rows, stream, a.size // _count(rows), at, at + size, keys, where)
        x = a[at : at + size]
        _sigmoids(x, r, u)
        for i in range(size):
            r[i] = _sqrt(r[i])
        for draw in range(len(out)):
            _draw(where, in_row, draw, u[:size])
            h = out[draw, at : at + size]
            for i in range(size):
                h[i] = r[i] if u[i] < r[i] else zero


@_compiled
def _concrete(
    seed0: Any,
    seed1: Any,
    rows: Any,
    stream: Any,
    a: Any,
    out: Any,
    first: Any,
    last: Any,
    per_temperature: Any,
    lower: Any,
    width: Any,
) -> None:
    keys, where = np.empty((2, _BLOCK + 1), np.uint32), np.empty((5, _BLOCK), np.uint32)
    zero, one = a.dtype.type(0), a.dtype.type(1)
    u, s, power = np.empty(_BLOCK, a.dtype), np.empty(_BLOCK, a.dtype), np.empty(_BLOCK, a.dtype)
    for at in range(first, last, _BLOCK):
        size = min(_BLOCK, last - at)
        in_row = _prepare(seed0, seed1, rows, stream, a.size // _count(rows), at, at + size, keys, where)
        x = a[at : at + size]
        for draw in range(len(out)):
            _draw(where, in_row, draw, u[:size])
            for i in range(size):
                u[i] = (x[i] + _log(u[i] / (one - u[i]))) * per_temperature
            _sigmoids(u[:size], s, power)
            h = out[draw, at : at + size]
            for i in range(size):
                h[i] = min(max(lower + width * s[i], zero), one)


@_compiled
def _normal(
    seed0: Any, seed1: Any, rows: Any, stream: Any, a: Any, out: Any, first: Any, last: Any, std: Any, shape: Any
) -> None:
    keys, where = np.empty((2, _BLOCK + 1), np.uint32), np.empty((5, _BLOCK), np.uint32)
    zero = a.dtype.type(0)
    u, power = np.empty(_BLOCK, a.dtype), np.empty(_BLOCK, a.dtype)
    for at in range(first, last, _BLOCK):
        size = min(_BLOCK, last - at)
        in_row = _prepare(seed0, seed1, rows, stream, a.size // _count(rows), at, at + size, keys, where)
        x = a[at : at + size]
        for draw in range(len(out)):
            _draw(where, in_row, draw, u[:size])
            h = out[draw, at : at + size]
            for i in range(size):
                u[i] = x[i] + std * _ndtri(u[i])
            if shape == 2:
                _sigmoids(u[:size], h, power)
            else:
                for i in range(size):
                    h[i] = zero if shape == 1 and u[i] < zero else u[i]


@_compiled
def _rectified(seed0: Any, seed1: Any, rows: Any, stream: Any, a: Any, out: Any, first: Any, last: Any) -> None:
    keys, where = np.empty((2, _BLOCK + 1), np.uint32), np.empty((5, _BLOCK), np.uint32)
    zero, one = a.dtype.type(0), a.dtype.type(1)
    u = np.empty(_BLOCK, a.dtype)
    for at in range(first, last, _BLOCK):
        size = min(_BLOCK, last - at)
        in_row = _prepare(seed0, seed1, rows, stream, a.size // _count(rows), at, at + size, keys, where)
        x = a[at : at + size]
        for draw in range(len(out)):
            _draw(where, in_row, draw, u[:size])
            h = out[draw, at : at + size]
            for i in range(size):
                z = x[i] + _log(u[i] / (one - u[i]))
                h[i] = zero if z < zero else z


def _order(x: Any) -> Any:
    """A view of `x` as integers, in which positive numbers have the same order."""
    raise NotImplementedError


@overload(_order)
def _(x: Any) -> Any:
    kind = np.int32 if x.dtype == types.float32 else np.int64

    def view(x: Any) -> Any:
        return x.view(kind)

    return view


@_compiled
def _one_hot(
    seed0: Any, seed1: Any, rows: Any, stream: Any, a: Any, out: Any, first: Any, last: Any, classes: Any
) -> None:
    """`first` and `last` count units of several classes, which are in one block all of them."""
    block = max(1, _BLOCK // classes) * classes
    keys, where = np.empty((2, block + 1), np.uint32), np.empty((5, block), np.uint32)
    w, u = np.empty(block, a.dtype), np.empty(block, a.dtype)
    zero, one = a.dtype.type(0), a.dtype.type(1)
    for at in range(first * classes, last * classes, block):
        size = min(block, last * classes - at)
        in_row = _prepare(seed0, seed1, rows, stream, a.size // _count(rows), at, at + size, keys, where)
        for unit in range(0, size, classes):
            x, y = a[at + unit : at + unit + classes], w[unit : unit + classes]
            largest = x.max()
            for i in range(classes):
                y[i] = _exp(largest - x[i])
        for draw in range(len(out)):
            _draw(where, in_row, draw, u[:size])
            for i in range(size):
                u[i] = -_log(u[i]) * w[i]
            h = out[draw, at : at + size]
            h[:] = zero
            order = _order(u)
            for unit in range(0, size, classes):
                # the least, and then where it is: each is a loop that vectorises, which looking for both at once is not
                arrivals = order[unit : unit + classes]
                least = arrivals[0]
                for i in range(classes):
                    least = min(least, arrivals[i])
                index = np.int32(classes)
                for i in range(classes):
                    index = min(index, np.int32(i) if arrivals[i] == least else np.int32(classes))
                h[unit + index] = one


@_inlined
def _last_sum(x: Any, lanes: Any) -> Any:
    """As `portable.last_sum`; `lanes` is scratch."""
    width = min(x.size, LANES)
    lane = lanes[:width]
    for i in range(width):
        lane[i] = x[i]
    for start in range(LANES, x.size, LANES):
        more = x[start : start + LANES]
        for i in range(more.size):
            lane[i] += more[i]
    half = LANES
    while half > 1:
        half //= 2
        upper = lanes[half:width] if half < width else lanes[:0]
        for i in range(upper.size):
            lane[i] += upper[i]
        width = min(width, half)
    return lanes[0]


@_compiled
def _softmax(
    seed0: Any,
    seed1: Any,
    rows: Any,
    stream: Any,
    a: Any,
    out: Any,
    first: Any,
    last: Any,
    classes: Any,
    per_temperature: Any,
) -> None:
    """As for `_one_hot`."""
    block = max(1, _BLOCK // classes) * classes
    keys, where = np.empty((2, block + 1), np.uint32), np.empty((5, block), np.uint32)
    u, lanes = np.empty(block, a.dtype), np.empty(LANES, a.dtype)
    for at in range(first * classes, last * classes, block):
        size = min(block, last * classes - at)
        in_row = _prepare(seed0, seed1, rows, stream, a.size // _count(rows), at, at + size, keys, where)
        x = a[at : at + size]
        for draw in range(len(out)):
            _draw(where, in_row, draw, u[:size])
            for i in range(size):
                u[i] = -_log(u[i])
            for i in range(size):
                u[i] = (x[i] - _log(u[i])) * per_temperature
            for unit in range(0, size, classes):
                y = u[unit : unit + classes]
                largest = y.max()
                for i in range(classes):
                    y[i] -= largest
            for i in range(size):
                u[i] = _exp(u[i])
            h = out[draw, at : at + size]
            for unit in range(0, size, classes):
                y, z = u[unit : unit + classes], h[unit : unit + classes]
                total = _last_sum(y, lanes)
                for i in range(classes):
                    z[i] = y[i] / total


@_compiled
def _binomial(
    seed0: Any, seed1: Any, rows: Any, stream: Any, a: Any, out: Any, first: Any, last: Any, trials: Any
) -> None:
    keys, where = np.empty((2, _BLOCK + 1), np.uint32), np.empty((5, _BLOCK), np.uint32)
    u, one = np.empty(_BLOCK, a.dtype), a.dtype.type(1)
    ratio, least, term = np.empty(_BLOCK, np.float64), np.empty(_BLOCK, np.float64), np.empty(_BLOCK, np.float64)
    below, v, count = np.empty(_BLOCK, np.float64), np.empty(_BLOCK, np.float64), np.empty(_BLOCK, np.float64)
    for at in range(first, last, _BLOCK):
        size = min(_BLOCK, last - at)
        in_row = _prepare(seed0, seed1, rows, stream, a.size // _count(rows), at, at + size, keys, where)
        x = a[at : at + size]
        for i in range(size):
            ratio[i] = _exp(-np.float64(abs(x[i])))
        for i in range(size):
            base, power, n = 1.0 + ratio[i], 1.0, trials
            while n > 1:
                power, base, n = power * base if n % 2 else power, base * base, n // 2
            least[i] = 1.0 / (power * base)
        for draw in range(len(out)):
            _draw(where, in_row, draw, u[:size])
            for i in range(size):
                v[i] = np.float64(one - u[i] if x[i] > 0 else u[i])
                term[i], below[i], count[i] = least[i], 0.0, 0.0
            for k in range(trials):
                by = np.float64(trials - k) / np.float64(k + 1)
                for i in range(size):
                    below[i] += term[i]
                    count[i] += 1.0 if v[i] >= below[i] else 0.0
                    term[i] *= ratio[i] * by
            h = out[draw, at : at + size]
            for i in range(size):
                h[i] = np.float64(trials) - count[i] if x[i] > 0 else count[i]


@_compiled
def _poisson(seed0: Any, seed1: Any, rows: Any, stream: Any, a: Any, out: Any, first: Any, last: Any) -> None:
    keys, where = np.empty((2, _BLOCK + 1), np.uint32), np.empty((5, _BLOCK), np.uint32)
    u = np.empty(_BLOCK, a.dtype)
    rate, least, term = np.empty(_BLOCK, np.float64), np.empty(_BLOCK, np.float64), np.empty(_BLOCK, np.float64)
    below, v, count = np.empty(_BLOCK, np.float64), np.empty(_BLOCK, np.float64), np.empty(_BLOCK, np.float64)
    for at in range(first, last, _BLOCK):
        size = min(_BLOCK, last - at)
        in_row = _prepare(seed0, seed1, rows, stream, a.size // _count(rows), at, at + size, keys, where)
        x = a[at : at + size]
        for i in range(size):
            rate[i] = _exp(-np.float64(abs(x[i])))
        for i in range(size):
            e = rate[i]
            least[i] = (e if x[i] > 0 else 1.0) / (1.0 + e)
            rate[i] = max(np.float64(x[i]), 0.0) + _log(1.0 + e)
        for draw in range(len(out)):
            _draw(where, in_row, draw, u[:size])
            for i in range(size):
                v[i], term[i], below[i], count[i] = np.float64(u[i]), least[i], 0.0, 0.0
            k, more = 0, 1
            while more:
                k, more = k + 1, 0
                by = 1.0 / np.float64(k)
                for i in range(size):
                    above = below[i] + term[i]
                    step = 1 if v[i] >= above > below[i] else 0
                    more += step
                    count[i] += np.float64(np.int32(step))
                    below[i] = above
                    term[i] *= rate[i] * by
            h = out[draw, at : at + size]
            for i in range(size):
                h[i] = count[i]


@_compiled
def _repeated(a: Any, out: Any, first: Any, last: Any, shape: Any) -> None:
    zero, one = a.dtype.type(0), a.dtype.type(1)
    power = np.empty(_BLOCK, a.dtype)
    for at in range(first, last, _BLOCK):
        size = min(_BLOCK, last - at)
        x = a[at : at + size]
        for draw in range(len(out)):
            h = out[draw, at : at + size]
            if draw > 0:
                h[:] = out[0, at : at + size]
            elif shape == 2:
                _sigmoids(x, h, power)
            elif shape == 1:
                for i in range(size):
                    h[i] = zero if x[i] < zero else x[i]
            else:
                for i in range(size):
                    h[i] = one if x[i] > zero else zero


@_compiled
def _logistic_score(a: Any, h: Any, weights: Any, out: Any, first: Any, last: Any, high: Any) -> None:
    p, q, power = np.empty(_BLOCK, a.dtype), np.empty(_BLOCK, a.dtype), np.empty(_BLOCK, a.dtype)
    units = a.size // weights.shape[1]
    at = first
    while at < last:
        row = at // units
        size = min(_BLOCK, (row + 1) * units - at, last - at)
        _both_sigmoids(a[at : at + size], p, q, power)
        total = out[at : at + size]
        for k in range(len(h)):
            weight, x = weights[k, row], h[k, at : at + size]
            if k == 0:
                for i in range(size):
                    total[i] = weight * (q[i] if x[i] == high else -p[i])
            else:
                for i in range(size):
                    total[i] += weight * (q[i] if x[i] == high else -p[i])
        at += size


@_compiled
def _leave_one_out_score(a: Any, h: Any, loss: Any, out: Any, first: Any, last: Any, high: Any) -> None:
    count, units, weights = a.dtype.type(len(loss)), a.size // loss.shape[1], np.empty_like(loss)
    for row in range(first // units, (last - 1) // units + 1):
        mean = loss[0, row]
        for k in range(1, len(loss)):
            mean += loss[k, row]
        mean /= count
        for k in range(len(loss)):
            weights[k, row] = (loss[k, row] - mean) / (count - a.dtype.type(1))
    _logistic_score(a, h, weights, out, first, last, high)


@_compiled
def _antithetic_score(a: Any, h: Any, loss: Any, out: Any, first: Any, last: Any, high: Any) -> None:
    size_of, p, power = np.empty(_BLOCK, a.dtype), np.empty(_BLOCK, a.dtype), np.empty(_BLOCK, a.dtype)
    zero, one = a.dtype.type(0), a.dtype.type(1)
    units, pairs, count = a.size // loss.shape[1], len(loss) // 2, a.dtype.type(len(loss))
    at = first
    while at < last:
        row = at // units
        size = min(_BLOCK, (row + 1) * units - at, last - at)
        x, total, magnitude = a[at : at + size], out[at : at + size], size_of[:size]
        for i in range(size):
            magnitude[i] = abs(x[i])
        _sigmoids(magnitude, p, power)
        for k in range(pairs):
            weight = (loss[k, row] - loss[pairs + k, row]) / count
            one_of, other = h[k, at : at + size], h[pairs + k, at : at + size]
            if k == 0:
                for i in range(size):
                    total[i] = zero
            for i in range(size):
                total[i] += weight * ((one if one_of[i] == high else zero) - (one if other[i] == high else zero))
        for i in range(size):
            total[i] *= p[i]
        at += size


@_compiled
def _logistic_backward(a: Any, grad: Any, out: Any, first: Any, last: Any, slope: Any, height: Any) -> None:
    x, p, q, power = (
        np.empty(_BLOCK, a.dtype),
        np.empty(_BLOCK, a.dtype),
        np.empty(_BLOCK, a.dtype),
        np.empty(_BLOCK, a.dtype),
    )
    for at in range(first, last, _BLOCK):
        size = min(_BLOCK, last - at)
        given, g, y = a[at : at + size], grad[at : at + size], out[at : at + size]
        for i in range(size):
            x[i] = slope * given[i]
        _both_sigmoids(x[:size], p, q, power)
        for i in range(size):
            y[i] = g[i] * (height * (p[i] * q[i]))


@_compiled
def _concrete_pullback(
    seed0: Any,
    seed1: Any,
    rows: Any,
    stream: Any,
    a: Any,
    grad: Any,
    out: Any,
    first: Any,
    last: Any,
    per_temperature: Any,
    height: Any,
    lower: Any,
    width: Any,
) -> None:
    keys, where = np.empty((2, _BLOCK + 1), np.uint32), np.empty((5, _BLOCK), np.uint32)
    zero, one = a.dtype.type(0), a.dtype.type(1)
    u, p = np.empty(_BLOCK, a.dtype), np.empty(_BLOCK, a.dtype)
    q, power = np.empty(_BLOCK, a.dtype), np.empty(_BLOCK, a.dtype)
    for at in range(first, last, _BLOCK):
        size = min(_BLOCK, last - at)
        in_row = _prepare(seed0, seed1, rows, stream, a.size // _count(rows), at, at + size, keys, where)
        x = a[at : at + size]
        for draw in range(len(out)):
            _draw(where, in_row, draw, u[:size])
            for i in range(size):
                u[i] = (x[i] + _log(u[i] / (one - u[i]))) * per_temperature
            _both_sigmoids(u[:size], p, q, power)
            g, y = grad[draw, at : at + size], out[draw, at : at + size]
            for i in range(size):
                y[i] = g[i] * (height * (p[i] * q[i]))
            if width > zero:
                for i in range(size):
                    h = lower + width * p[i]
                    y[i] = zero if h <= zero or h >= one else y[i]


@_compiled
def _normal_pullback(
    seed0: Any, seed1: Any, rows: Any, stream: Any, a: Any, grad: Any, out: Any, first: Any, last: Any, std: Any
) -> None:
    keys, where = np.empty((2, _BLOCK + 1), np.uint32), np.empty((5, _BLOCK), np.uint32)
    u, p = np.empty(_BLOCK, a.dtype), np.empty(_BLOCK, a.dtype)
    q, power = np.empty(_BLOCK, a.dtype), np.empty(_BLOCK, a.dtype)
    for at in range(first, last, _BLOCK):
        size = min(_BLOCK, last - at)
        in_row = _prepare(seed0, seed1, rows, stream, a.size // _count(rows), at, at + size, keys, where)
        x = a[at : at + size]
        for draw in range(len(out)):
            _draw(where, in_row, draw, u[:size])
            for i in range(size):
                u[i] = x[i] + std * _ndtri(u[i])
            _both_sigmoids(u[:size], p, q, power)
            g, y = grad[draw, at : at + size], out[draw, at : at + size]
            for i in range(size):
                y[i] = g[i] * (p[i] * q[i])


@_compiled
def _gated_backward(a: Any, h: Any, grad: Any, out: Any, first: Any, last: Any) -> None:
    p, q, power = np.empty(_BLOCK, a.dtype), np.empty(_BLOCK, a.dtype), np.empty(_BLOCK, a.dtype)
    zero, half = a.dtype.type(0), a.dtype.type(0.5)
    for at in range(first, last, _BLOCK):
        size = min(_BLOCK, last - at)
        _both_sigmoids(a[at : at + size], p, q, power)
        for draw in range(len(h)):
            x, g, y = h[draw, at : at + size], grad[draw, at : at + size], out[draw, at : at + size]
            for i in range(size):
                y[i] = g[i] * (half * x[i] * q[i]) if x[i] > zero else zero


@_compiled
def _rectified_backward(h: Any, grad: Any, out: Any, first: Any, last: Any) -> None:
    zero = h.dtype.type(0)
    x, g, y = h[first:last], grad[first:last], out[first:last]
    for i in range(x.size):
        y[i] = g[i] if x[i] > zero else zero


@_compiled
def _softmax_backward(h: Any, grad: Any, out: Any, first: Any, last: Any, classes: Any, per_temperature: Any) -> None:
    """`first` and `last` count units of several classes."""
    g, y, lanes = np.empty(classes, h.dtype), np.empty(classes, h.dtype), np.empty(LANES, h.dtype)
    for at in range(first * classes, last * classes, classes):
        x, z = h[at : at + classes], out[at : at + classes]
        from_here = grad[at + x.argmax()]
        for i in range(classes):
            g[i] = grad[at + i] - from_here
            y[i] = x[i] * g[i]
        total = _last_sum(y, lanes)
        for i in range(classes):
            z[i] = x[i] * (g[i] - total) * per_temperature


@_compiled
def _largest_bits(bits: Any, first: Any, last: Any, mask: Any) -> Any:
    """The largest of `bits` under `mask`."""
    largest = bits.dtype.type(0)
    x = bits[first:last]
    for i in range(x.size):
        largest = max(largest, x[i] & mask)
    return largest


@_compiled
def _add_rows(values: Any, total: Any, first: Any, last: Any) -> None:
    """Adds the rows of `[n, elements]` to `total`, one after the other."""
    for at in range(first, last, _BLOCK):
        end = min(last, at + _BLOCK)
        y = total[at:end]
        for row in range(len(values)):
            x = values[row, at:end]
            for i in range(y.size):
                y[i] += np.float64(x[i])


@_compiled
def _add_squares(values: Any, mean: Any, total: Any, first: Any, last: Any) -> None:
    """Adds the squared distances of the rows from `mean` to `total`, one after the other."""
    for at in range(first, last, _BLOCK):
        end = min(last, at + _BLOCK)
        m, y = mean[at:end], total[at:end]
        for row in range(len(values)):
            x = values[row, at:end]
            for i in range(y.size):
                apart = np.float64(x[i]) - m[i]
                y[i] += apart * apart


# --- their callers -----------------------------------------------------------------------------------------------------------


def uniform(seed: tuple[Word, Word], rows: Word, stream: int, draws: int, units: int, dtype: torch.dtype) -> Tensor:
    """Uniform numbers `[draws, rows, units]`, from the two words of the seed and the row numbers."""
    out = _empty(draws, rows if isinstance(rows, int) else len(rows), units, dtype=dtype)
    flat, words = _flat(out, 1), _words(seed, rows, stream)
    _in_threads(lambda first, last: _uniform(*words, units, flat, first, last), flat.shape[1], draws)
    return out


def binary(
    seed: tuple[Word, Word],
    rows: Word,
    stream: int,
    draws: int,
    a: Tensor,
    low: float,
    high: float,
    dtype: torch.dtype | None = None,
) -> Tensor:
    """low + (high - low) 1[u < σ(a)], `[draws, rows, units]`, for `a` `[rows, units]`; words as for `uniform`.

    dtype: uint8 or bool, where it holds the two values; by default that of `a`.
    """
    kind = _NUMPY[a.dtype]
    values: tuple[Any, ...] = (kind(low), kind(low) + kind(high - low))
    if dtype is not None:
        values = tuple(map(np.uint8 if dtype == torch.uint8 else np.bool_, values))
    return _sampled(_binary, seed, rows, stream, draws, a, *values, dtype=dtype)


def antithetic(
    seed: tuple[Word, Word], rows: Word, stream: int, pairs: int, a: Tensor, low: float, high: float
) -> Tensor:
    """`binary` at u and at 1 - u, `[2 pairs, rows, units]`: first all at u, then all at 1 - u."""
    kind = _NUMPY[a.dtype]
    return _sampled(_antithetic, seed, rows, stream, pairs, a, kind(low), kind(low) + kind(high - low), points=2)


def gated(seed: tuple[Word, Word], rows: Word, stream: int, draws: int, a: Tensor) -> Tensor:
    """r 1[u < r], r = √σ(a); arguments as for `binary`."""
    return _sampled(_gated, seed, rows, stream, draws, a)


def rectified(seed: tuple[Word, Word], rows: Word, stream: int, draws: int, a: Tensor) -> Tensor:
    """max(0, a + log(u / (1 - u))); arguments as for `binary`."""
    return _sampled(_rectified, seed, rows, stream, draws, a)


def concrete(
    seed: tuple[Word, Word],
    rows: Word,
    stream: int,
    draws: int,
    a: Tensor,
    per_temperature: float,
    lower: float,
    width: float,
) -> Tensor:
    """min(1, max(0, lower + width σ((a + log(u / (1 - u))) per_temperature))); arguments as for `binary`."""
    kind = _NUMPY[a.dtype]
    return _sampled(_concrete, seed, rows, stream, draws, a, kind(per_temperature), kind(lower), kind(width))


def normal(seed: tuple[Word, Word], rows: Word, stream: int, draws: int, a: Tensor, std: float, shape: int) -> Tensor:
    """f(a + std Φ⁻¹(u)), f the identity for shape 0, max(0, ·) for 1, σ for 2; arguments as for `binary`."""
    return _sampled(_normal, seed, rows, stream, draws, a, _NUMPY[a.dtype](std), shape)


def one_hot(seed: tuple[Word, Word], rows: Word, stream: int, draws: int, a: Tensor, classes: int) -> Tensor:
    """One at the class c of each unit where -log(u_c) e^(max a - a_c) is least, else 0, for `a` `[rows, units * classes]`."""
    return _sampled(_one_hot, seed, rows, stream, draws, a, classes, size=classes)


def softmax(
    seed: tuple[Word, Word],
    rows: Word,
    stream: int,
    draws: int,
    a: Tensor,
    classes: int,
    per_temperature: float,
) -> Tensor:
    """softmax((a - log(-log u)) per_temperature) of each unit, for `a` `[rows, units * classes]`."""
    return _sampled(_softmax, seed, rows, stream, draws, a, classes, _NUMPY[a.dtype](per_temperature), size=classes)


def binomial(seed: tuple[Word, Word], rows: Word, stream: int, draws: int, a: Tensor, trials: int) -> Tensor:
    """The number of k < trials with F(k) <= u, F the distribution function at p = σ(a); arguments as for `binary`."""
    return _sampled(_binomial, seed, rows, stream, draws, a, trials)


def poisson(seed: tuple[Word, Word], rows: Word, stream: int, draws: int, a: Tensor) -> Tensor:
    """The number of k with F(k) <= u, F the distribution function at the rate softplus(a); arguments as for `binary`."""
    return _sampled(_poisson, seed, rows, stream, draws, a)


def repeated(draws: int, a: Tensor, shape: int) -> Tensor:
    """`draws` times 1[a > 0] for shape 0, max(0, a) for 1, σ(a) for 2; `[draws, *a.shape]`."""
    out = _empty(draws, *a.shape, dtype=a.dtype)
    given = _flat(a), _flat(out, 1)
    _in_threads(lambda first, last: _repeated(*given, first, last, shape), a.numel(), draws)
    return out


def all_finite(x: Tensor) -> bool:
    """As `reference.all_finite`, but never False where all are finite."""
    if x.dtype not in _NUMPY:
        return reference.all_finite(x)
    # the exponents of infinity and NaN are larger than all others
    constants = CONSTANTS[x.dtype]
    bits = _flat(x.detach().view(constants.integer))
    kind = bits.dtype.type
    mask, found = kind(torch.iinfo(constants.integer).max), []

    def look(first: int, last: int) -> None:
        found.append(int(_largest_bits(bits, first, last, mask)))

    _in_threads(look, bits.size, 1)
    return max(found) < (2 * constants.bias + 1) << constants.mantissa


def moments(parts: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
    """As `reference.moments`."""
    if parts[0].dtype not in _NUMPY:
        parts = [part.double() for part in parts]
    values, count = [_flat(part, 1) for part in parts], sum(map(len, parts))
    mean, squares = (torch.zeros(parts[0].shape[1:], dtype=torch.float64) for _ in range(2))
    total, around = _flat(mean), _flat(squares)

    def work(first: int, last: int) -> None:
        for part in values:
            _add_rows(part, total, first, last)
        total[first:last] /= count
        for part in values:
            _add_squares(part, total, around, first, last)

    _in_threads(work, total.size, count)
    return mean, squares


def logistic_score(a: Tensor, h: Tensor, weights: Tensor, high: float) -> Tensor:
    """As `reference.logistic_score`."""
    if len(h) > reference.FEW or not len(h):
        return reference.logistic_score(a, h, weights, high)
    return _scored(_logistic_score, a, h, weights, high)


def leave_one_out_score(a: Tensor, h: Tensor, loss: Tensor, high: float) -> Tensor:
    """As `reference.leave_one_out_score`."""
    if len(h) > reference.FEW:
        return reference.leave_one_out_score(a, h, loss, high)
    return _scored(_leave_one_out_score, a, h, loss, high)


def antithetic_score(a: Tensor, h: Tensor, loss: Tensor, high: float) -> Tensor:
    """As `reference.antithetic_score`."""
    if len(h) > 2 * reference.FEW or not len(h):
        return reference.antithetic_score(a, h, loss, high)
    return _scored(_antithetic_score, a, h, loss, high)


def _scored(kernel: Callable[..., None], a: Tensor, h: Tensor, of_points: Tensor, high: float) -> Tensor:
    out = _empty(*a.shape, dtype=a.dtype)
    given = _flat(a), _flat(h, 1), _flat(of_points, 1), _flat(out)
    value = _NUMPY[a.dtype](high)
    if a.numel():
        _in_threads(lambda first, last: kernel(*given, first, last, value), a.numel(), len(h))
    return out


def logistic_backward(a: Tensor, grad: Tensor, slope: float | Tensor, height: float | Tensor) -> Tensor:
    """As `reference.logistic_backward`."""
    kind, out = _NUMPY[a.dtype], _empty(*a.shape, dtype=a.dtype)
    given = _flat(a), _flat(grad), _flat(out)
    options = kind(slope), kind(height)
    _in_threads(lambda first, last: _logistic_backward(*given, first, last, *options), a.numel(), 1)
    return out


def concrete_pullback(
    seed: tuple[Word, Word],
    rows: Word,
    stream: int,
    draws: int,
    a: Tensor,
    grad: Tensor,
    per_temperature: float,
    height: float,
    lower: float = 0.0,
    width: float = 0.0,
) -> Tensor:
    """As `reference.concrete_backward` at x = (a + log(u / (1 - u))) per_temperature; without a width, nothing is clipped.

    grad is of `draws` times the numbers of `a`, the other arguments as for `binary`.
    """
    options = map(_NUMPY[a.dtype], (per_temperature, height, lower, width))
    return _sampled(_concrete_pullback, seed, rows, stream, draws, a, *options, more=(_flat(grad, 1),))


def normal_pullback(
    seed: tuple[Word, Word], rows: Word, stream: int, draws: int, a: Tensor, grad: Tensor, std: float
) -> Tensor:
    """grad · σ(x) σ(-x), x = a + std Φ⁻¹(u); arguments as for `concrete_pullback`."""
    return _sampled(_normal_pullback, seed, rows, stream, draws, a, _NUMPY[a.dtype](std), more=(_flat(grad, 1),))


def gated_backward(a: Tensor, h: Tensor, grad: Tensor) -> Tensor:
    """As `reference.gated_backward`."""
    out = _empty(*h.shape, dtype=a.dtype)
    given = _flat(a), _flat(h, 1), _flat(grad, 1), _flat(out, 1)
    _in_threads(lambda first, last: _gated_backward(*given, first, last), a.numel(), len(h))
    return out


def rectified_backward(h: Tensor, grad: Tensor) -> Tensor:
    """As `reference.rectified_backward`."""
    out = _empty(*h.shape, dtype=h.dtype)
    given = _flat(h), _flat(grad), _flat(out)
    _in_threads(lambda first, last: _rectified_backward(*given, first, last), h.numel(), 1)
    return out


def softmax_backward(h: Tensor, grad: Tensor, per_temperature: float) -> Tensor:
    """As `reference.softmax_backward`."""
    out, classes = _empty(*h.shape, dtype=h.dtype), h.shape[-1]
    given, options = (_flat(h), _flat(grad), _flat(out)), (classes, _NUMPY[h.dtype](per_temperature))
    units = h.numel() // max(1, classes)
    _in_threads(lambda first, last: _softmax_backward(*given, first, last, *options), units, classes)
    return out


def _sampled(
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
    out = _empty(points * draws, *a.shape, dtype=dtype or a.dtype)
    words, given, flat = _words(seed, rows, stream), _flat(a), _flat(out, 1)
    _in_threads(
        lambda first, last: kernel(*words, given, *more, flat, first, last, *options),
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


def _empty(*shape: int, dtype: torch.dtype) -> Tensor:
    """As torch.empty."""
    size = math.prod(shape) * dtype.itemsize
    if size < _REUSED:
        return torch.empty(shape, dtype=dtype)
    memory = torch.from_numpy(_Memory.of(size + 64))
    aligned = -memory.data_ptr() % 64  # as torch aligns
    return memory[aligned : aligned + size].view(dtype).view(shape)


def _flat(x: Tensor, leading: int = 0) -> Any:
    """An array of the elements behind the leading dims, which shares the memory of a contiguous tensor."""
    array = _array(x)  # numpy takes a fraction of torch's time to change a shape
    return array.reshape(*array.shape[:leading], math.prod(array.shape[leading:])) if leading else array.reshape(-1)


def _array(x: Tensor) -> Any:
    return (x.detach() if x.requires_grad else x).contiguous().numpy()


def _words(seed: tuple[Word, Word], rows: Word, stream: int) -> tuple[Any, ...]:
    """The words as the kernels take them: a number for all rows of the seed, and how many rows; or arrays `[rows]`."""
    if isinstance(rows, int) and isinstance(seed[0], int) and isinstance(seed[1], int):
        return seed[0] & 0xFFFFFFFF, seed[1] & 0xFFFFFFFF, rows, np.uint32(stream)
    seed, rows = reference.as_tensors(seed, rows)
    return *(_array(word).view(np.uint32) for word in (*seed, rows)), np.uint32(stream)


def _in_threads(work: Callable[[int, int], None], elements: int, cost: int) -> None:
    """work(first, last) over all elements, cut among threads where there is enough to do, at `cost` numbers an element."""
    parts = max(1, min(torch.get_num_threads(), elements * cost // _PER_THREAD, elements))
    if parts == 1:
        work(0, elements)
        return
    edges = [elements * part // parts for part in range(parts + 1)]
    threads = [threading.Thread(target=work, args=edges[part : part + 2]) for part in range(1, parts)]
    for thread in threads:
        thread.start()
    work(edges[0], edges[1])
    for thread in threads:
        thread.join()
