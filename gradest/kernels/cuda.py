"""Kernels for CUDA devices, compiled by Triton: the bits of the reference, in one pass over memory.

A program does a tile of rows and units: it works out what all draws share, the row keys and what depends on `a` alone, and then
draws; nothing but the output is written. The formulas are those of `gradest.kernels.portable`, operation by operation. They
have the same bits because a compiler is allowed nothing here that IEEE 754 does not define: launches forbid it to contract a
product and a sum, and divisions are rounded to nearest. (What is divided or rounded to an integer is never subnormal, for some
versions of Triton take that for 0.)

The functions that launch them are those of `gradest.kernels.cpu`, which says what each gives. Kernels are compiled at their first
use, for which Triton wants a C compiler, and kept on disk. With TRITON_INTERPRET=1 in the environment before Triton is imported
they run on CPU tensors, slowly, by an interpreter.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from gradest.kernels import reference
from gradest.kernels.portable import CONSTANTS
from gradest.kernels.reference import Word, signed_word

__all__ = [
    "IEEE",
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
    "normal",
    "normal_pullback",
    "one_hot",
    "poisson",
    "rectified",
    "rectified_backward",
    "repeated",
    "softmax",
    "softmax_backward",
    "surrogate_backward",
    "uniform",
]

_Words = tuple[Tensor | int, ...]

IEEE = {"enable_fp_fusion": False}
"""What Triton is told to compile these kernels: no contraction of a product and a sum."""

_TILE = 1024  # numbers that a program draws at a time; with 4 warps, 8 a thread, which share the work for a row
_LEAST = 32  # neighbours that a tile is wide, so that memory is read in whole sectors

_N_STEP, _W_STEP = tl.constexpr(2.0**-24), tl.constexpr(2.0**-53)

_compiled: Callable[..., Any] = triton.jit(do_not_specialize=["stream", "draws", "points", "row_count", "trials"])
_inlined: Callable[..., Any] = triton.jit

# --- the random words --------------------------------------------------------------------------------------------------------


@_inlined
def _four_rounds(x0, x1, a: tl.constexpr, b: tl.constexpr, c: tl.constexpr, d: tl.constexpr):
    x0 += x1
    x1 = ((x1 << a) | (x1 >> (32 - a))) ^ x0
    x0 += x1
    x1 = ((x1 << b) | (x1 >> (32 - b))) ^ x0
    x0 += x1
    x1 = ((x1 << c) | (x1 >> (32 - c))) ^ x0
    x0 += x1
    x1 = ((x1 << d) | (x1 >> (32 - d))) ^ x0
    return x0, x1


@_inlined
def _threefry(k0, k1, c0, c1):
    """Threefry-2x32, 20 rounds, as in `gradest.kernels.reference.threefry`, on uint32."""
    k2 = k0 ^ k1 ^ 0x1BD11BDA
    x0, x1 = _four_rounds(c0 + k0, c1 + k1, 13, 15, 26, 6)
    x0, x1 = _four_rounds(x0 + k1, x1 + k2 + 1, 17, 29, 16, 24)
    x0, x1 = _four_rounds(x0 + k2, x1 + k0 + 2, 13, 15, 26, 6)
    x0, x1 = _four_rounds(x0 + k0, x1 + k1 + 3, 17, 29, 16, 24)
    x0, x1 = _four_rounds(x0 + k1, x1 + k2 + 4, 13, 15, 26, 6)
    return x0 + k2, x1 + k0 + 5


@_inlined
def _row_keys(seed0, seed1, rows, stream, row, inside):
    k0 = tl.load(seed0 + row, mask=inside, other=0).to(tl.uint32, bitcast=True)
    k1 = tl.load(seed1 + row, mask=inside, other=0).to(tl.uint32, bitcast=True)
    number = tl.load(rows + row, mask=inside, other=0).to(tl.uint32, bitcast=True)
    return _threefry(k0, k1, number, stream)


@_inlined
def _places(row_count, units, ROWS: tl.constexpr, UNITS: tl.constexpr):
    """This program's rows `[ROWS]` and units `[UNITS]`, and places in memory `[ROWS, UNITS]` with their mask."""
    across = tl.cdiv(units, UNITS)
    program = tl.program_id(0).to(tl.int64)
    row = program // across * ROWS + tl.arange(0, ROWS)
    unit = program % across * UNITS + tl.arange(0, UNITS)
    inside = (row < row_count)[:, None] & (unit < units)[None, :]
    return row, unit, row[:, None] * units + unit[None, :], inside


@_inlined
def _tile(seed0, seed1, rows, stream, row_count, units, ROWS: tl.constexpr, UNITS: tl.constexpr):
    """This program's keys `[ROWS, 1]`, unit numbers `[1, UNITS]`, and places in memory `[ROWS, UNITS]` with their mask."""
    row, unit, at, inside = _places(row_count, units, ROWS, UNITS)
    k0, k1 = _row_keys(seed0, seed1, rows, stream, row, row < row_count)
    return k0[:, None], k1[:, None], unit.to(tl.uint32)[None, :], at, inside


@_inlined
def _draw(k0, k1, unit, draw, dtype: tl.constexpr):
    """The uniform numbers of a tile in one draw, as `reference.uniform_from_words` makes them."""
    x0, x1 = _threefry(k0, k1, unit, draw)
    word = (x0.to(tl.uint64) << 21) | (x1 >> 11) if dtype == tl.float64 else x0 >> 8
    return (word | 1).to(dtype) * (_W_STEP if dtype == tl.float64 else _N_STEP)


# --- elementary functions, operation by operation as in `gradest.kernels.portable` --------------------------------------------

_N, _W = CONSTANTS[torch.float32], CONSTANTS[torch.float64]
_N_EXP, _W_EXP = tl.constexpr(_N.exp), tl.constexpr(_W.exp)
_N_LOG, _W_LOG = tl.constexpr(_N.log), tl.constexpr(_W.log)
_N_EXP_TERMS, _W_EXP_TERMS = tl.constexpr(len(_N.exp)), tl.constexpr(len(_W.exp))
_N_LOG_TERMS, _W_LOG_TERMS = tl.constexpr(len(_N.log)), tl.constexpr(len(_W.log))
_N_LN2, _W_LN2 = tl.constexpr(_N.ln2), tl.constexpr(_W.ln2)
_N_PER_LN2, _W_PER_LN2 = tl.constexpr(1 / sum(_N.ln2)), tl.constexpr(1 / sum(_W.ln2))
_N_LIMIT, _W_LIMIT = tl.constexpr(_N.limit), tl.constexpr(_W.limit)
_N_BITS, _W_BITS = tl.constexpr(_N.mantissa), tl.constexpr(_W.mantissa)
_N_BIAS, _W_BIAS = tl.constexpr(_N.bias), tl.constexpr(_W.bias)
_N_ROOT, _W_ROOT = tl.constexpr(_N.root_half), tl.constexpr(_W.root_half)
_N_SHIFT = tl.constexpr((_N.bias << _N.mantissa) - _N.root_half)
_W_SHIFT = tl.constexpr((_W.bias << _W.mantissa) - _W.root_half)
_N_MASK, _W_MASK = tl.constexpr((1 << _N.mantissa) - 1), tl.constexpr((1 << _W.mantissa) - 1)
_N_HALF, _W_HALF = tl.constexpr(_N.bias << (_N.mantissa - 1)), tl.constexpr(_W.bias << (_W.mantissa - 1))
_N_STEPS, _W_STEPS = tl.constexpr(_N.steps), tl.constexpr(_W.steps)
_MIDDLE, _TAIL, _FAR = (tl.constexpr(parts) for parts in _W.normal)
_N_MIDDLE, _N_TAIL = (tl.constexpr(parts) for parts in _N.normal)


@_inlined
def _horner(coefficients: tl.constexpr, terms: tl.constexpr, x):
    y = tl.full(x.shape, coefficients[0], x.dtype)
    for i in tl.static_range(1, terms):
        y = y * x + coefficients[i]
    return y


@_inlined
def _divide(x, y):
    """x / y rounded to nearest, which plain division is in float64 alone, and `tl.div_rn` has for float32 alone."""
    return x / y if y.dtype == tl.float64 else tl.div_rn(x, y)


@_inlined
def _integer(x):
    return x.to(tl.int64 if x.dtype == tl.float64 else tl.int32, bitcast=True)


@_inlined
def _exp(x):
    wide: tl.constexpr = x.dtype == tl.float64
    limit: tl.constexpr = _W_LIMIT if wide else _N_LIMIT
    ln2: tl.constexpr = _W_LN2 if wide else _N_LN2
    x = tl.where(x < -limit, -limit, x)
    x = tl.where(x > limit, limit, x)
    z = tl.floor(x * (_W_PER_LN2 if wide else _N_PER_LN2) + 0.5)
    r = x - z * ln2[0] - z * ln2[1]
    y = _horner(_W_EXP if wide else _N_EXP, _W_EXP_TERMS if wide else _N_EXP_TERMS, r) * r * r + r + 1.0
    power = (z.to(tl.int64 if wide else tl.int32) + (_W_BIAS if wide else _N_BIAS)) << (_W_BITS if wide else _N_BITS)
    return y * power.to(x.dtype, bitcast=True)


@_inlined
def _log(x):
    wide: tl.constexpr = x.dtype == tl.float64
    ln2: tl.constexpr = _W_LN2 if wide else _N_LN2
    shifted = _integer(x) + (_W_SHIFT if wide else _N_SHIFT)
    k = ((shifted >> (_W_BITS if wide else _N_BITS)) - (_W_BIAS if wide else _N_BIAS)).to(x.dtype)
    m = (shifted & (_W_MASK if wide else _N_MASK)) + (_W_ROOT if wide else _N_ROOT)
    f = m.to(x.dtype, bitcast=True) - 1.0
    s = _divide(f, f + 2.0)
    square = s * s
    half = f * 0.5 * f
    rest = s * (half + square * _horner(_W_LOG if wide else _N_LOG, _W_LOG_TERMS if wide else _N_LOG_TERMS, square))
    return k * ln2[0] - ((half - (rest + k * ln2[1])) - f)


@_inlined
def _sqrt(x):
    wide: tl.constexpr = x.dtype == tl.float64
    y = ((_integer(x) >> 1) + (_W_HALF if wide else _N_HALF)).to(x.dtype, bitcast=True)
    for _ in tl.static_range(_W_STEPS if wide else _N_STEPS):
        y = (y + _divide(x, y)) * 0.5
    return y


@_inlined
def _ratio(parts: tl.constexpr, x):
    top: tl.constexpr = parts[0]
    bottom: tl.constexpr = parts[1]
    return _divide(_horner(top, len(top), x), _horner(bottom, len(bottom), x))


@_inlined
def _ndtri(u):
    wide: tl.constexpr = u.dtype == tl.float64
    q = u - 0.5
    near = 0.180625 - q * q
    r = _sqrt(-_log(tl.where(u < 1.0 - u, u, 1.0 - u)))
    if wide:
        z = q * _ratio(_MIDDLE, near)
        far = tl.where(r <= 5.0, _ratio(_TAIL, r - 1.6), _ratio(_FAR, r - 5.0))
    else:
        z = q * _ratio(_N_MIDDLE, near)
        far = _ratio(_N_TAIL, r - 1.6)
    return tl.where(tl.abs(q) <= 0.425, z, tl.where(q < 0, -far, far))


@_inlined
def _both_sigmoids(x):
    """σ(x) and σ(-x), the second as e^-x σ(x)."""
    e = _exp(-x)
    p = _divide(tl.full(x.shape, 1.0, x.dtype), e + 1.0)
    return p, e * p


@_inlined
def _sigmoid(x):
    p, _q = _both_sigmoids(x)
    return p


# --- the kernels -------------------------------------------------------------------------------------------------------------
#
# `a` is `[row_count, units]`, `out` `[draws, row_count, units]`, both contiguous.


@_compiled
def _uniform(seed0, seed1, rows, stream, draws, row_count, units, out, ROWS: tl.constexpr, UNITS: tl.constexpr):
    k0, k1, unit, at, inside = _tile(seed0, seed1, rows, stream, row_count, units, ROWS, UNITS)
    for draw in range(draws):
        tl.store(out + at, _draw(k0, k1, unit, draw, out.dtype.element_ty), mask=inside)
        out += row_count.to(tl.int64) * units


@_compiled
def _binary(
    seed0,
    seed1,
    rows,
    stream,
    draws,
    row_count,
    units,
    out,
    a,
    LOW: tl.constexpr,
    HIGH: tl.constexpr,
    ROWS: tl.constexpr,
    UNITS: tl.constexpr,
):
    k0, k1, unit, at, inside = _tile(seed0, seed1, rows, stream, row_count, units, ROWS, UNITS)
    p = _sigmoid(tl.load(a + at, mask=inside, other=0))
    low, high = tl.full(p.shape, LOW, p.dtype), tl.full(p.shape, HIGH, p.dtype)
    for draw in range(draws):
        u = _draw(k0, k1, unit, draw, p.dtype)
        tl.store(out + at, tl.where(u < p, high, low).to(out.dtype.element_ty), mask=inside)
        out += row_count.to(tl.int64) * units


@_compiled
def _antithetic(
    seed0,
    seed1,
    rows,
    stream,
    points,
    row_count,
    units,
    out,
    a,
    LOW: tl.constexpr,
    HIGH: tl.constexpr,
    ROWS: tl.constexpr,
    UNITS: tl.constexpr,
):
    k0, k1, unit, at, inside = _tile(seed0, seed1, rows, stream, row_count, units, ROWS, UNITS)
    p = _sigmoid(tl.load(a + at, mask=inside, other=0))
    low, high = tl.full(p.shape, LOW, p.dtype), tl.full(p.shape, HIGH, p.dtype)
    count = row_count.to(tl.int64) * units
    for draw in range(points // 2):
        u = _draw(k0, k1, unit, draw, p.dtype)
        tl.store(out + at, tl.where(u < p, high, low), mask=inside)
        tl.store(out + points // 2 * count + at, tl.where(1.0 - u < p, high, low), mask=inside)
        out += count


@_compiled
def _gated(seed0, seed1, rows, stream, draws, row_count, units, out, a, ROWS: tl.constexpr, UNITS: tl.constexpr):
    k0, k1, unit, at, inside = _tile(seed0, seed1, rows, stream, row_count, units, ROWS, UNITS)
    r = _sqrt(_sigmoid(tl.load(a + at, mask=inside, other=0)))
    for draw in range(draws):
        u = _draw(k0, k1, unit, draw, r.dtype)
        tl.store(out + at, tl.where(u < r, r, 0), mask=inside)
        out += row_count.to(tl.int64) * units


@_compiled
def _rectified(seed0, seed1, rows, stream, draws, row_count, units, out, a, ROWS: tl.constexpr, UNITS: tl.constexpr):
    k0, k1, unit, at, inside = _tile(seed0, seed1, rows, stream, row_count, units, ROWS, UNITS)
    x = tl.load(a + at, mask=inside, other=0)
    for draw in range(draws):
        u = _draw(k0, k1, unit, draw, x.dtype)
        z = x + _log(_divide(u, 1.0 - u))
        tl.store(out + at, tl.where(z < 0, 0, z), mask=inside)
        out += row_count.to(tl.int64) * units


@_compiled
def _concrete(
    seed0,
    seed1,
    rows,
    stream,
    draws,
    row_count,
    units,
    out,
    a,
    PER_TEMPERATURE: tl.constexpr,
    LOWER: tl.constexpr,
    WIDTH: tl.constexpr,
    ROWS: tl.constexpr,
    UNITS: tl.constexpr,
):
    k0, k1, unit, at, inside = _tile(seed0, seed1, rows, stream, row_count, units, ROWS, UNITS)
    x = tl.load(a + at, mask=inside, other=0)
    for draw in range(draws):
        u = _draw(k0, k1, unit, draw, x.dtype)
        h = _sigmoid((x + _log(_divide(u, 1.0 - u))) * PER_TEMPERATURE) * WIDTH + LOWER
        h = tl.where(h < 0, 0, h)
        tl.store(out + at, tl.where(h > 1, 1, h), mask=inside)
        out += row_count.to(tl.int64) * units


@_compiled
def _normal(
    seed0,
    seed1,
    rows,
    stream,
    draws,
    row_count,
    units,
    out,
    a,
    STD: tl.constexpr,
    SHAPE: tl.constexpr,
    ROWS: tl.constexpr,
    UNITS: tl.constexpr,
):
    k0, k1, unit, at, inside = _tile(seed0, seed1, rows, stream, row_count, units, ROWS, UNITS)
    x = tl.load(a + at, mask=inside, other=0)
    for draw in range(draws):
        h = x + _ndtri(_draw(k0, k1, unit, draw, x.dtype)) * STD
        if SHAPE == 1:
            h = tl.where(h < 0, 0, h)
        if SHAPE == 2:
            h = _sigmoid(h)
        tl.store(out + at, h, mask=inside)
        out += row_count.to(tl.int64) * units


@_compiled
def _binomial(
    seed0, seed1, rows, stream, draws, row_count, units, out, a, trials, ROWS: tl.constexpr, UNITS: tl.constexpr
):
    k0, k1, unit, at, inside = _tile(seed0, seed1, rows, stream, row_count, units, ROWS, UNITS)
    x = tl.load(a + at, mask=inside, other=0)
    ratio = _exp(-tl.abs(x).to(tl.float64))
    base, power, n = ratio + 1.0, tl.full(x.shape, 1.0, tl.float64), trials
    while n > 1:
        power = tl.where(n % 2 == 1, power * base, power)
        base, n = base * base, n // 2
    least = 1.0 / (power * base)
    for draw in range(draws):
        u = _draw(k0, k1, unit, draw, x.dtype)
        u = tl.where(x > 0, 1.0 - u, u).to(tl.float64)
        term, below, count = least, tl.zeros_like(least), tl.zeros_like(least)
        left = trials.to(tl.float64)
        k = left * 0.0
        for _ in range(trials):
            below += term
            count += tl.where(u >= below, 1.0, 0.0)
            k += 1.0
            term *= ratio * (left / k)
            left -= 1.0
        h = tl.where(x > 0, trials.to(tl.float64) - count, count)
        tl.store(out + at, h.to(x.dtype), mask=inside)
        out += row_count.to(tl.int64) * units


@_compiled
def _poisson(seed0, seed1, rows, stream, draws, row_count, units, out, a, ROWS: tl.constexpr, UNITS: tl.constexpr):
    k0, k1, unit, at, inside = _tile(seed0, seed1, rows, stream, row_count, units, ROWS, UNITS)
    a_kind: tl.constexpr = a.dtype.element_ty
    x = tl.load(a + at, mask=inside, other=0).to(tl.float64)
    e = _exp(-tl.abs(x))
    rate = tl.where(x > 0, x, 0) + _log(e + 1.0)
    least = tl.where(x > 0, e, 1.0) / (e + 1.0)
    for draw in range(draws):
        u = _draw(k0, k1, unit, draw, a_kind).to(tl.float64)
        term, below, count = least, tl.zeros_like(least), tl.zeros_like(least)
        k, more = (tl.sum(tl.zeros((2,), tl.float64), 0), tl.sum(tl.full((2,), 1, tl.int32), 0))
        while more > 0:
            k += 1.0
            above = below + term
            counted = (u >= above) & (above > below)
            count += tl.where(counted, 1.0, 0.0)
            more = tl.sum(tl.sum(counted.to(tl.int32), 1), 0)
            below = above
            term *= rate * (1.0 / k)
        tl.store(out + at, count.to(a_kind), mask=inside)
        out += row_count.to(tl.int64) * units


@_compiled
def _repeated(draws, row_count, units, out, a, SHAPE: tl.constexpr, ROWS: tl.constexpr, UNITS: tl.constexpr):
    _row, _unit, at, inside = _places(row_count, units, ROWS, UNITS)
    x = tl.load(a + at, mask=inside, other=0)
    if SHAPE == 0:
        h = tl.where(x > 0, 1.0, 0.0).to(x.dtype)
    elif SHAPE == 1:
        h = tl.where(x < 0, 0, x)
    else:
        h = _sigmoid(x)
    for _ in range(draws):
        tl.store(out + at, h, mask=inside)
        out += row_count.to(tl.int64) * units


@_inlined
def _race(k0, k1, place, draw, wait, inside):
    """Arrival times `[GROUPS, CLASSES]`: the least is the class drawn."""
    return tl.where(inside, -_log(_draw(k0, k1, place, draw, wait.dtype)) * wait, float("inf"))


@_compiled
def _one_hot(
    seed0,
    seed1,
    rows,
    stream,
    draws,
    row_count,
    units,
    out,
    a,
    classes,
    GROUPS: tl.constexpr,
    CLASSES: tl.constexpr,
):
    """A tile is of groups, the units of several classes that make the `units` numbers of a row, and of their classes.

    More classes than a tile is wide are gone through tile by tile, for the largest `a`, for the first arrival, and to write.
    """
    group = tl.program_id(0).to(tl.int64) * GROUPS + tl.arange(0, GROUPS)
    row, start = group * classes // units, group * classes % units
    real = row < row_count
    k0, k1 = _row_keys(seed0, seed1, rows, stream, row, real)
    k0, k1, start, real = k0[:, None], k1[:, None], start[:, None], real[:, None]
    at = (group * classes)[:, None]
    largest = tl.full((GROUPS,), float("-inf"), a.dtype.element_ty)
    for first in range(0, classes, CLASSES):
        c = first + tl.arange(0, CLASSES)[None, :]
        x = tl.load(a + at + c, mask=real & (c < classes), other=float("-inf"))
        largest = tl.maximum(largest, tl.max(x, 1))
    for draw in range(draws):
        least, index = tl.full((GROUPS,), float("inf"), a.dtype.element_ty), tl.zeros((GROUPS,), tl.int32)
        for first in range(0, classes, CLASSES):
            c = first + tl.arange(0, CLASSES)[None, :]
            inside = real & (c < classes)
            wait = _exp(largest[:, None] - tl.load(a + at + c, mask=inside, other=0))
            arrivals = _race(k0, k1, (start + c).to(tl.uint32), draw, wait, inside)
            earliest, where = tl.min(arrivals, 1, return_indices=True)
            index = tl.where(earliest < least, first + where, index)
            least = tl.minimum(least, earliest)
        for first in range(0, classes, CLASSES):
            c = first + tl.arange(0, CLASSES)[None, :]
            h = (c == index[:, None]).to(a.dtype.element_ty)
            tl.store(out + at + c, h, mask=real & (c < classes))
        out += row_count.to(tl.int64) * units


@_inlined
def _fold(x, GROUPS: tl.constexpr, LANES: tl.constexpr, FOLDS: tl.constexpr):
    """The sum of each group's lanes, which are folded in half until one is left, as in `portable.last_sum`."""
    for i in tl.static_range(FOLDS):
        x = tl.sum(tl.reshape(x, (GROUPS, 2, LANES >> (i + 1))), 1)
    return x


@_inlined
def _logits(k0, k1, start, c, draw, a, at, inside, PER_TEMPERATURE: tl.constexpr):
    """(a + G) per_temperature of classes c."""
    u = _draw(k0, k1, (start + c).to(tl.uint32), draw, a.dtype.element_ty)
    return (tl.load(a + at + c, mask=inside, other=0) - _log(-_log(u))) * PER_TEMPERATURE


@_compiled
def _softmax(
    seed0,
    seed1,
    rows,
    stream,
    draws,
    row_count,
    units,
    out,
    a,
    classes,
    PER_TEMPERATURE: tl.constexpr,
    GROUPS: tl.constexpr,
    CLASSES: tl.constexpr,
    FOLDS: tl.constexpr,
):
    """Tiles as for `_one_hot`. They are gone through for the largest logit, for the sum, and to write."""
    group = tl.program_id(0).to(tl.int64) * GROUPS + tl.arange(0, GROUPS)
    row, start = group * classes // units, group * classes % units
    real = row < row_count
    k0, k1 = _row_keys(seed0, seed1, rows, stream, row, real)
    k0, k1, start, real = k0[:, None], k1[:, None], start[:, None], real[:, None]
    at = (group * classes)[:, None]
    for draw in range(draws):
        largest = tl.full((GROUPS,), float("-inf"), a.dtype.element_ty)
        for first in range(0, classes, CLASSES):
            c = first + tl.arange(0, CLASSES)[None, :]
            inside = real & (c < classes)
            x = _logits(k0, k1, start, c, draw, a, at, inside, PER_TEMPERATURE)
            largest = tl.maximum(largest, tl.max(tl.where(inside, x, float("-inf")), 1))
        lanes = tl.zeros((GROUPS, CLASSES), a.dtype.element_ty)
        for first in range(0, classes, CLASSES):
            c = first + tl.arange(0, CLASSES)[None, :]
            inside = real & (c < classes)
            x = _logits(k0, k1, start, c, draw, a, at, inside, PER_TEMPERATURE)
            lanes += tl.where(inside, _exp(tl.where(inside, x - largest[:, None], 0)), 0)
        total = tl.reshape(_fold(lanes, GROUPS, CLASSES, FOLDS), (GROUPS, 1))
        for first in range(0, classes, CLASSES):
            c = first + tl.arange(0, CLASSES)[None, :]
            inside = real & (c < classes)
            x = _logits(k0, k1, start, c, draw, a, at, inside, PER_TEMPERATURE)
            e = _exp(tl.where(inside, x - largest[:, None], 0))
            tl.store(out + at + c, _divide(e, tl.where(inside, total, 1)), mask=inside)
        out += row_count.to(tl.int64) * units


@_compiled
def _softmax_backward(
    groups,
    out,
    h,
    grad,
    classes,
    PER_TEMPERATURE: tl.constexpr,
    GROUPS: tl.constexpr,
    CLASSES: tl.constexpr,
    FOLDS: tl.constexpr,
):
    """Tiles as for `_one_hot`. They are gone through for the largest class, for the sum, and to write."""
    group = tl.program_id(0).to(tl.int64) * GROUPS + tl.arange(0, GROUPS)
    real, at = (group < groups)[:, None], (group * classes)[:, None]
    largest, index = tl.full((GROUPS,), float("-inf"), h.dtype.element_ty), tl.zeros((GROUPS,), tl.int32)
    for first in range(0, classes, CLASSES):
        c = first + tl.arange(0, CLASSES)[None, :]
        x = tl.load(h + at + c, mask=real & (c < classes), other=float("-inf"))
        here, where = tl.max(x, 1, return_indices=True)
        index = tl.where(here > largest, first + where, index)
        largest = tl.maximum(largest, here)
    from_here = tl.load(grad + at + index[:, None], mask=real, other=0)
    lanes = tl.zeros((GROUPS, CLASSES), h.dtype.element_ty)
    for first in range(0, classes, CLASSES):
        c = first + tl.arange(0, CLASSES)[None, :]
        inside = real & (c < classes)
        x, g = tl.load(h + at + c, mask=inside, other=0), tl.load(grad + at + c, mask=inside, other=0)
        lanes += tl.where(inside, x * (g - from_here), 0)
    total = tl.reshape(_fold(lanes, GROUPS, CLASSES, FOLDS), (GROUPS, 1))
    for first in range(0, classes, CLASSES):
        c = first + tl.arange(0, CLASSES)[None, :]
        inside = real & (c < classes)
        x, g = tl.load(h + at + c, mask=inside, other=0), tl.load(grad + at + c, mask=inside, other=0)
        tl.store(out + at + c, x * (g - from_here - total) * PER_TEMPERATURE, mask=inside)


@_compiled
def _concrete_pullback(
    seed0,
    seed1,
    rows,
    stream,
    draws,
    row_count,
    units,
    out,
    a,
    grad,
    PER_TEMPERATURE: tl.constexpr,
    HEIGHT: tl.constexpr,
    LOWER: tl.constexpr,
    WIDTH: tl.constexpr,
    ROWS: tl.constexpr,
    UNITS: tl.constexpr,
):
    k0, k1, unit, at, inside = _tile(seed0, seed1, rows, stream, row_count, units, ROWS, UNITS)
    x = tl.load(a + at, mask=inside, other=0)
    for draw in range(draws):
        u = _draw(k0, k1, unit, draw, x.dtype)
        p, q = _both_sigmoids((x + _log(_divide(u, 1.0 - u))) * PER_TEMPERATURE)
        y = tl.load(grad + at, mask=inside, other=0) * (p * q * HEIGHT)
        if WIDTH > 0:
            h = p * WIDTH + LOWER
            y = tl.where((h <= 0) | (h >= 1), 0, y)
        tl.store(out + at, y, mask=inside)
        grad += row_count.to(tl.int64) * units
        out += row_count.to(tl.int64) * units


@_compiled
def _normal_pullback(
    seed0,
    seed1,
    rows,
    stream,
    draws,
    row_count,
    units,
    out,
    a,
    grad,
    STD: tl.constexpr,
    ROWS: tl.constexpr,
    UNITS: tl.constexpr,
):
    k0, k1, unit, at, inside = _tile(seed0, seed1, rows, stream, row_count, units, ROWS, UNITS)
    x = tl.load(a + at, mask=inside, other=0)
    for draw in range(draws):
        p, q = _both_sigmoids(x + _ndtri(_draw(k0, k1, unit, draw, x.dtype)) * STD)
        tl.store(out + at, tl.load(grad + at, mask=inside, other=0) * (p * q), mask=inside)
        grad += row_count.to(tl.int64) * units
        out += row_count.to(tl.int64) * units


@_compiled
def _logistic_backward(
    draws,
    row_count,
    units,
    out,
    a,
    grad,
    SLOPE: tl.constexpr,
    HEIGHT: tl.constexpr,
    ROWS: tl.constexpr,
    UNITS: tl.constexpr,
):
    _row, _unit, at, inside = _places(row_count, units, ROWS, UNITS)
    p, q = _both_sigmoids(tl.load(a + at, mask=inside, other=0) * SLOPE)
    tl.store(out + at, tl.load(grad + at, mask=inside, other=0) * (p * q * HEIGHT), mask=inside)


@_compiled
def _surrogate_backward(
    draws,
    row_count,
    units,
    out,
    a,
    grad,
    SHAPE: tl.constexpr,
    SLOPE: tl.constexpr,
    HEIGHT: tl.constexpr,
    HALF_PI: tl.constexpr,
    ROWS: tl.constexpr,
    UNITS: tl.constexpr,
):
    _row, _unit, at, inside = _places(row_count, units, ROWS, UNITS)
    x = tl.load(a + at, mask=inside, other=0) * SLOPE
    if SHAPE == 0:
        y = tl.abs(x) + 1
        d = _divide(tl.full(y.shape, 0.5, y.dtype), y * y)
    elif SHAPE == 1:
        y = x * HALF_PI
        d = _divide(tl.full(y.shape, 0.5, y.dtype), y * y + 1)
    elif SHAPE == 2:
        y = 1 - tl.abs(x)
        d = tl.where(y < 0, 0, y)
    else:
        d = tl.where(tl.abs(x) <= 1, 0.5, 0.0).to(x.dtype)
    tl.store(out + at, tl.load(grad + at, mask=inside, other=0) * (d * HEIGHT), mask=inside)


@_compiled
def _logistic_score(
    draws, row_count, units, out, a, h, weights, HIGH: tl.constexpr, ROWS: tl.constexpr, UNITS: tl.constexpr
):
    row, _unit, at, inside = _places(row_count, units, ROWS, UNITS)
    p, q = _both_sigmoids(tl.load(a + at, mask=inside, other=0))
    total = tl.zeros_like(p)
    for _ in range(draws):
        weight = tl.load(weights + row, mask=row < row_count, other=0)[:, None]
        total += weight * tl.where(tl.load(h + at, mask=inside, other=0) == HIGH, q, -p)
        h += row_count.to(tl.int64) * units
        weights += row_count
    tl.store(out + at, total, mask=inside)


@_compiled
def _antithetic_score(
    draws, row_count, units, out, a, h, weights, HIGH: tl.constexpr, ROWS: tl.constexpr, UNITS: tl.constexpr
):
    row, _unit, at, inside = _places(row_count, units, ROWS, UNITS)
    p = _sigmoid(tl.abs(tl.load(a + at, mask=inside, other=0)))
    total, count = tl.zeros_like(p), row_count.to(tl.int64) * units
    for _ in range(draws):
        weight = tl.load(weights + row, mask=row < row_count, other=0)[:, None]
        first = (tl.load(h + at, mask=inside, other=0) == HIGH).to(p.dtype)
        second = (tl.load(h + draws * count + at, mask=inside, other=0) == HIGH).to(p.dtype)
        total += weight * (first - second)
        h += count
        weights += row_count
    tl.store(out + at, total * p, mask=inside)


@_compiled
def _gated_backward(draws, row_count, units, out, a, h, grad, ROWS: tl.constexpr, UNITS: tl.constexpr):
    _row, _unit, at, inside = _places(row_count, units, ROWS, UNITS)
    _p, q = _both_sigmoids(tl.load(a + at, mask=inside, other=0))
    for _ in range(draws):
        x, g = tl.load(h + at, mask=inside, other=0), tl.load(grad + at, mask=inside, other=0)
        tl.store(out + at, tl.where(x > 0, g * (x * 0.5 * q), 0), mask=inside)
        h += row_count.to(tl.int64) * units
        grad += row_count.to(tl.int64) * units
        out += row_count.to(tl.int64) * units


@_compiled
def _rectified_backward(draws, row_count, units, out, h, grad, ROWS: tl.constexpr, UNITS: tl.constexpr):
    _row, _unit, at, inside = _places(row_count, units, ROWS, UNITS)
    for _ in range(draws):
        x, g = tl.load(h + at, mask=inside, other=0), tl.load(grad + at, mask=inside, other=0)
        tl.store(out + at, tl.where(x > 0, g, 0), mask=inside)
        h += row_count.to(tl.int64) * units
        grad += row_count.to(tl.int64) * units
        out += row_count.to(tl.int64) * units


# --- their callers -----------------------------------------------------------------------------------------------------------


def uniform(seed: tuple[Word, Word], rows: Word, stream: int, draws: int, units: int, dtype: torch.dtype) -> Tensor:
    """As `cpu.uniform`."""
    seed, rows = reference.as_tensors(seed, rows)
    out = torch.empty(draws, len(rows), units, dtype=dtype, device=rows.device)
    return _by_tiles(_uniform, out, out.shape, words=_words(seed, rows, stream))


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
    """As `cpu.binary`."""
    out = torch.empty(draws, *a.shape, dtype=torch.uint8 if dtype else a.dtype, device=a.device)
    _by_tiles(_binary, out, out.shape, a, words=_words(seed, rows, stream), **_values(low, high, a.dtype))
    return out.view(dtype) if dtype else out


def antithetic(
    seed: tuple[Word, Word], rows: Word, stream: int, pairs: int, a: Tensor, low: float, high: float
) -> Tensor:
    """As `cpu.antithetic`."""
    return _sampled(_antithetic, seed, rows, stream, 2 * pairs, a, **_values(low, high, a.dtype))


def gated(seed: tuple[Word, Word], rows: Word, stream: int, draws: int, a: Tensor) -> Tensor:
    """As `cpu.gated`."""
    return _sampled(_gated, seed, rows, stream, draws, a)


def rectified(seed: tuple[Word, Word], rows: Word, stream: int, draws: int, a: Tensor) -> Tensor:
    """As `cpu.rectified`."""
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
    """As `cpu.concrete`."""
    options = {"PER_TEMPERATURE": per_temperature, "LOWER": lower, "WIDTH": width}
    return _sampled(_concrete, seed, rows, stream, draws, a, **options)


def normal(seed: tuple[Word, Word], rows: Word, stream: int, draws: int, a: Tensor, std: float, shape: int) -> Tensor:
    """As `cpu.normal`."""
    return _sampled(_normal, seed, rows, stream, draws, a, STD=std, SHAPE=shape)


def binomial(seed: tuple[Word, Word], rows: Word, stream: int, draws: int, a: Tensor, trials: int) -> Tensor:
    """As `cpu.binomial`."""
    return _sampled(_binomial, seed, rows, stream, draws, a, trials)


def poisson(seed: tuple[Word, Word], rows: Word, stream: int, draws: int, a: Tensor) -> Tensor:
    """As `cpu.poisson`."""
    return _sampled(_poisson, seed, rows, stream, draws, a)


def repeated(draws: int, a: Tensor, shape: int) -> Tensor:
    """As `cpu.repeated`."""
    out = torch.empty(draws, *a.shape, dtype=a.dtype, device=a.device)
    return _by_tiles(_repeated, out, (draws, 1, a.numel()), a, SHAPE=shape)


def one_hot(seed: tuple[Word, Word], rows: Word, stream: int, draws: int, a: Tensor, classes: int) -> Tensor:
    """As `cpu.one_hot`."""
    return _of_classes(_one_hot, seed, rows, stream, draws, a, classes)


def softmax(
    seed: tuple[Word, Word],
    rows: Word,
    stream: int,
    draws: int,
    a: Tensor,
    classes: int,
    per_temperature: float,
) -> Tensor:
    """As `cpu.softmax`."""
    options = {"PER_TEMPERATURE": per_temperature, "FOLDS": _folds(classes)}
    return _of_classes(_softmax, seed, rows, stream, draws, a, classes, **options)


def softmax_backward(h: Tensor, grad: Tensor, per_temperature: float) -> Tensor:
    """As `reference.softmax_backward`."""
    out, classes = torch.empty(h.shape, dtype=h.dtype, device=h.device), h.shape[-1]
    groups = h.numel() // max(1, classes)
    options = {"PER_TEMPERATURE": per_temperature, "FOLDS": _folds(classes)}
    return _by_classes(_softmax_backward, out, groups, classes, (groups, out, h, grad, classes), **options)


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
    options = {"PER_TEMPERATURE": per_temperature, "HEIGHT": height, "LOWER": lower, "WIDTH": width}
    return _sampled(_concrete_pullback, seed, rows, stream, draws, a, grad, **options)


def normal_pullback(
    seed: tuple[Word, Word], rows: Word, stream: int, draws: int, a: Tensor, grad: Tensor, std: float
) -> Tensor:
    """As `cpu.normal_pullback`."""
    return _sampled(_normal_pullback, seed, rows, stream, draws, a, grad, STD=std)


def logistic_backward(a: Tensor, grad: Tensor, slope: float | Tensor, height: float | Tensor) -> Tensor:
    """As `reference.logistic_backward`, which does it where slope or height is a tensor: to read it takes a while."""
    if isinstance(slope, Tensor) or isinstance(height, Tensor):
        return reference.logistic_backward(a, grad, slope, height)
    out = torch.empty(a.shape, dtype=a.dtype, device=a.device)
    return _by_tiles(_logistic_backward, out, (1, 1, a.numel()), a, grad, SLOPE=slope, HEIGHT=height)


def surrogate_backward(a: Tensor, grad: Tensor, shape: int, slope: float, height: float) -> Tensor:
    """As `reference.surrogate_backward`."""
    out = torch.empty(a.shape, dtype=a.dtype, device=a.device)
    options: dict[str, Any] = {"SHAPE": shape, "SLOPE": slope, "HEIGHT": height, "HALF_PI": 0.5 * math.pi}
    return _by_tiles(_surrogate_backward, out, (1, 1, a.numel()), a, grad, **options)


def logistic_score(a: Tensor, h: Tensor, weights: Tensor, high: float) -> Tensor:
    """As `reference.logistic_score`."""
    if len(weights) > reference.FEW:
        return reference.logistic_score(a, h, weights, high)
    return _scored(_logistic_score, a, h, weights, high)


def leave_one_out_score(a: Tensor, h: Tensor, loss: Tensor, high: float) -> Tensor:
    """As `reference.leave_one_out_score`."""
    return logistic_score(a, h, reference.leave_one_out(loss), high)


def antithetic_score(a: Tensor, h: Tensor, loss: Tensor, high: float) -> Tensor:
    """As `reference.antithetic_score`."""
    at, at_mirror = loss.chunk(2)
    if len(at) > reference.FEW:
        return reference.antithetic_score(a, h, loss, high)
    return _scored(_antithetic_score, a, h, (at - at_mirror) / len(h), high)


def gated_backward(a: Tensor, h: Tensor, grad: Tensor) -> Tensor:
    """As `reference.gated_backward`."""
    out = torch.empty(h.shape, dtype=h.dtype, device=h.device)
    return _by_tiles(_gated_backward, out, (len(h), 1, a.numel()), a, h, grad)


def rectified_backward(h: Tensor, grad: Tensor) -> Tensor:
    """As `reference.rectified_backward`."""
    out = torch.empty(h.shape, dtype=h.dtype, device=h.device)
    return _by_tiles(_rectified_backward, out, (1, 1, h.numel()), h, grad)


def _sampled(
    kernel: Any,
    seed: tuple[Word, Word],
    rows: Word,
    stream: int,
    draws: int,
    a: Tensor,
    *more: Tensor | int,
    **options: float,
) -> Tensor:
    out = torch.empty(draws, *a.shape, dtype=a.dtype, device=a.device)
    return _by_tiles(kernel, out, out.shape, a, *more, words=_words(seed, rows, stream), **options)


def _of_classes(
    kernel: Any,
    seed: tuple[Word, Word],
    rows: Word,
    stream: int,
    draws: int,
    a: Tensor,
    classes: int,
    **options: float,
) -> Tensor:
    out = torch.empty(draws, *a.shape, dtype=a.dtype, device=a.device)
    given = (*_words(seed, rows, stream), *out.shape, out, a, classes)
    return _by_classes(kernel, out, a.numel() // max(1, classes), classes, given, **options)


def _lanes(classes: int) -> int:
    lanes: int = min(triton.next_power_of_2(max(1, classes)), _TILE)
    return lanes


def _folds(classes: int) -> int:
    return _lanes(classes).bit_length() - 1


def _scored(kernel: Any, a: Tensor, h: Tensor, weights: Tensor, high: float) -> Tensor:
    out, units = torch.empty(a.shape, dtype=a.dtype, device=a.device), a.shape[-1]
    return _by_tiles(kernel, out, (len(weights), a.numel() // max(1, units), units), a, h, weights, HIGH=high)


def _words(seed: tuple[Word, Word], rows: Word, stream: int) -> _Words:
    seed, rows = reference.as_tensors(seed, rows)
    return *seed, rows, signed_word(stream)


def _values(low: float, high: float, dtype: torch.dtype) -> dict[str, float]:
    """The two values of a binary unit, as low + (high - low) · 1 rounds the second."""
    return {"LOW": low, "HIGH": float(torch.tensor(low, dtype=dtype) + torch.tensor(high - low, dtype=dtype))}


def _by_tiles(
    kernel: Any, out: Tensor, size: tuple[int, ...], *given: Tensor | int, words: _Words = (), **options: float
) -> Tensor:
    """Launches a kernel of tiles of rows and units; `size` is the number of draws, of rows, and of units."""
    _, row_count, units = size
    width = _width(units)
    height = _TILE // width
    programs = triton.cdiv(row_count, height) * triton.cdiv(units, width)
    return _launch(kernel, programs, out, (*words, *size, out, *given), **options, ROWS=height, UNITS=width)


def _by_classes(
    kernel: Any, out: Tensor, groups: int, classes: int, given: tuple[Tensor | int, ...], **options: float
) -> Tensor:
    """Launches a kernel of tiles of groups and their classes."""
    width = _lanes(classes)
    height = _TILE // width
    return _launch(kernel, triton.cdiv(groups, height), out, given, **options, GROUPS=height, CLASSES=width)


def _launch(kernel: Any, programs: int, out: Tensor, given: tuple[Tensor | int, ...], **options: float) -> Tensor:
    if out.numel():
        with torch.cuda.device_of(out):
            given = tuple(x.detach().contiguous() if isinstance(x, Tensor) else x for x in given)
            kernel[(programs,)](*given, **options, **IEEE)
    return out


def _width(units: int) -> int:
    """How many units a tile is wide: a power of two, of which an eighth at most is idle where that can be had."""
    width: int = min(triton.next_power_of_2(max(1, units)), _TILE)
    while width > _LEAST and -units % width > units // 8:
        width //= 2
    return width
