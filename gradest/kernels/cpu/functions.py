"""The elementary functions of `gradest.kernels.portable`, operation by operation."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numba import types, uint64
from numba.extending import intrinsic, overload

from gradest.kernels.cpu.compilation.compiler import INLINED_BY_LLVM, compiled, inlined_by_llvm
from gradest.kernels.cpu.vectors.packing import PACKED, pack, packs
from gradest.kernels.portable import CONSTANTS, LOGIT_OF_NORMAL

__all__ = ["CLOSE", "both_sigmoids", "exp", "log", "logit_of_normal", "ndtris", "rough_reciprocals", "sigmoids", "sqrt"]


def _polynomial(coefficients: tuple[float, ...], kind: Any) -> Any:
    """Make a function of x, for kernels, that evaluates the polynomial by Horner's rule, unrolled.

    It writes the products and sums for LLVM itself, since numba would take as long for each polynomial as for a small kernel.
    """
    number = types.float32 if kind is np.float32 else types.float64

    def horner(context: Any, x: Any) -> Any:
        def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
            first, *others = (context.get_constant(number, kind(one)) for one in coefficients)
            for coefficient in others:
                first = builder.fadd(builder.fmul(first, arguments[0]), coefficient)
            return first

        return number(number), generate

    return intrinsic(horner)


_F32, _F64 = CONSTANTS[torch.float32], CONSTANTS[torch.float64]
_F32_EXP, _F64_EXP = _polynomial(_F32.exp, np.float32), _polynomial(_F64.exp, np.float64)
_F32_LOG, _F64_LOG = _polynomial(_F32.log, np.float32), _polynomial(_F64.log, np.float64)
_F32_LIMIT, _F32_LN2, _F32_PER_LN2 = (
    np.float32(_F32.limit),
    tuple(map(np.float32, _F32.ln2)),
    np.float32(1 / sum(_F32.ln2)),
)
_F64_LIMIT, _F64_LN2, _F64_PER_LN2 = _F64.limit, _F64.ln2, 1 / sum(_F64.ln2)
_F32_ROOT, _F32_SHIFT = np.int32(_F32.root_half), np.int32((_F32.bias << _F32.mantissa) - _F32.root_half)
_F64_ROOT, _F64_SHIFT = np.int64(_F64.root_half), np.int64((_F64.bias << _F64.mantissa) - _F64.root_half)
_F32_HALF, _F64_HALF = np.int32(_F32.bias << (_F32.mantissa - 1)), np.int64(_F64.bias << (_F64.mantissa - 1))
(_F32_MIDDLE, _F32_MIDDLE_BY), (_F32_TAIL, _F32_TAIL_BY) = (
    (_polynomial(top, np.float32), _polynomial(bottom, np.float32)) for top, bottom in _F32.normal
)
(_F64_MIDDLE, _F64_MIDDLE_BY), (_F64_TAIL, _F64_TAIL_BY), (_F64_FAR, _F64_FAR_BY) = (
    (_polynomial(top, np.float64), _polynomial(bottom, np.float64)) for top, bottom in _F64.normal
)
_LOGIT, _LOGIT_BY = (_polynomial(one, np.float32) for one in LOGIT_OF_NORMAL)
_F32_STEPS, _F64_STEPS = _F32.steps, _F64.steps
_F32_MASK, _F64_MASK = np.int32((1 << _F32.mantissa) - 1), np.int64((1 << _F64.mantissa) - 1)

_ROUGH = (
    0.00966636852,
    0.0559219758,
    0.24022349,
    0.693121045,
    1.0,
)  # of 2^f for |f| <= ½, with a relative error of 3.5e-6
_F32_ROUGH, _F64_ROUGH, _ROUGH_LIMIT = _polynomial(_ROUGH, np.float32), _polynomial(_ROUGH, np.float64), np.float32(100)

CLOSE = 2.0**-16
"""How near to 1 the product of uniform noise with a number of `rough_reciprocals` says nothing."""


def _reduced(x: Any) -> Any:
    """Return a whole number z, and r, with x = z log 2 + r."""
    raise NotImplementedError


@overload(_reduced, jit_options=INLINED_BY_LLVM)
def _(x: Any) -> Any:
    def narrow(x: Any) -> Any:
        x = min(max(x, -_F32_LIMIT), _F32_LIMIT)
        z = np.floor(x * _F32_PER_LN2 + np.float32(0.5))
        return z, x - z * _F32_LN2[0] - z * _F32_LN2[1]

    def wide(x: Any) -> Any:
        x = min(max(x, -_F64_LIMIT), _F64_LIMIT)
        z = np.floor(x * _F64_PER_LN2 + 0.5)
        return z, x - z * _F64_LN2[0] - z * _F64_LN2[1]

    return narrow if x == types.float32 else wide


def _small_exp(r: Any) -> Any:
    """Return e^r for |r| <= log 2 / 2."""
    raise NotImplementedError


@overload(_small_exp, jit_options=INLINED_BY_LLVM)
def _(r: Any) -> Any:
    def narrow(r: Any) -> Any:
        return _F32_EXP(r) * r * r + r + np.float32(1)

    def wide(r: Any) -> Any:
        return _F64_EXP(r) * r * r + r + 1.0

    return narrow if r == types.float32 else wide


def _power_of_two(z: Any) -> Any:
    """Return 2^z for a whole number z."""
    raise NotImplementedError


@overload(_power_of_two, jit_options=INLINED_BY_LLVM)
def _(z: Any) -> Any:
    def narrow(z: Any) -> Any:
        return np.int32((np.int32(z) + np.int32(127)) << np.int32(23)).view(np.float32)

    def wide(z: Any) -> Any:
        return np.int64(np.int64(np.int32(z) + np.int32(1023)) << np.int64(52)).view(np.float64)

    return narrow if z == types.float32 else wide


@inlined_by_llvm
def exp(x: Any) -> Any:
    """Compute the same as `portable.exp`."""
    z, r = _reduced(x)
    return _small_exp(r) * _power_of_two(z)


def log(x: Any) -> Any:
    """Compute the same as `portable.log`."""
    raise NotImplementedError


@overload(log, jit_options=INLINED_BY_LLVM)
def _(x: Any) -> Any:
    def narrow(x: Any) -> Any:
        shifted = np.int32(np.float32(x).view(np.int32) + _F32_SHIFT)
        k = np.float32(np.int32((shifted >> np.int32(23)) - np.int32(127)))
        f = np.int32((shifted & _F32_MASK) + _F32_ROOT).view(np.float32) - np.float32(1)
        s = f / (f + np.float32(2))
        square = s * s
        half = np.float32(0.5) * f * f
        rest = s * (half + square * _F32_LOG(square))
        return k * _F32_LN2[0] - ((half - (rest + k * _F32_LN2[1])) - f)

    def wide(x: Any) -> Any:
        shifted = np.int64(np.float64(x).view(np.int64) + _F64_SHIFT)
        k = np.float64(np.int32((shifted >> np.int64(52)) - np.int64(1023)))
        f = np.int64((shifted & _F64_MASK) + _F64_ROOT).view(np.float64) - 1.0
        s = f / (f + 2.0)
        square = s * s
        half = 0.5 * f * f
        rest = s * (half + square * _F64_LOG(square))
        return k * _F64_LN2[0] - ((half - (rest + k * _F64_LN2[1])) - f)

    return narrow if x == types.float32 else wide


def sqrt(x: Any) -> Any:
    """Compute the same as `portable.sqrt`."""
    raise NotImplementedError


@overload(sqrt, jit_options=INLINED_BY_LLVM)
def _(x: Any) -> Any:
    def narrow(x: Any) -> Any:
        y = np.int32((np.float32(x).view(np.int32) >> np.int32(1)) + _F32_HALF).view(np.float32)
        for _ in range(_F32_STEPS):
            y = np.float32(0.5) * (y + x / y)
        return y

    def wide(x: Any) -> Any:
        y = np.int64((np.float64(x).view(np.int64) >> np.int64(1)) + _F64_HALF).view(np.float64)
        for _ in range(_F64_STEPS):
            y = 0.5 * (y + x / y)
        return y

    return narrow if x == types.float32 else wide


@inlined_by_llvm
def logit_of_normal(z: Any) -> Any:
    """Compute the same as `portable.logit_of_normal`."""
    return z * (_LOGIT(abs(z)) / _LOGIT_BY(abs(z)))


def _middle_ndtri(u: Any) -> Any:
    """Return Φ⁻¹(u) for |u - 1/2| <= 0.425."""
    raise NotImplementedError


@overload(_middle_ndtri, jit_options=INLINED_BY_LLVM)
def _(u: Any) -> Any:
    def narrow(u: Any) -> Any:
        q = u - np.float32(0.5)
        r = np.float32(0.180625) - q * q
        return q * (_F32_MIDDLE(r) / _F32_MIDDLE_BY(r))

    def wide(u: Any) -> Any:
        q = u - 0.5
        r = 0.180625 - q * q
        return q * (_F64_MIDDLE(r) / _F64_MIDDLE_BY(r))

    return narrow if u == types.float32 else wide


def _outer_ndtri(u: Any) -> Any:
    """Return Φ⁻¹(u) for |u - 1/2| > 0.425."""
    raise NotImplementedError


@overload(_outer_ndtri, jit_options=INLINED_BY_LLVM)
def _(u: Any) -> Any:
    def narrow(u: Any) -> Any:
        r = sqrt(-log(min(u, np.float32(1) - u))) - np.float32(1.6)
        far = _F32_TAIL(r) / _F32_TAIL_BY(r)
        return -far if u - np.float32(0.5) < np.float32(0) else far

    def wide(u: Any) -> Any:
        r = sqrt(-log(min(u, 1.0 - u)))
        near, beyond = r - 1.6, r - 5.0
        far = _F64_TAIL(near) / _F64_TAIL_BY(near) if r <= 5.0 else _F64_FAR(beyond) / _F64_FAR_BY(beyond)
        return -far if u - 0.5 < 0.0 else far

    return narrow if u == types.float32 else wide


@compiled
def beyond(x: Any, middle: Any, edge: Any, place: Any) -> Any:
    """Write to `place` the indices, in order, of the numbers that are farther than `edge` from `middle`; return how many.

    NaN is among them, as in the reference. `place` is int32, and as long as x.
    """
    count, packed = 0, 0
    if packs():
        packed = x.size - x.size % PACKED
        for i in range(0, packed, PACKED):
            count += pack(x, i, middle, edge, place, count)
    for i in range(packed, x.size):
        place[count] = i
        count += not abs(x[i] - middle) <= edge
    return count


@compiled
def ndtris(u: Any, outer: Any, place: Any) -> None:
    """Replace each u by Φ⁻¹(u), as `portable.ndtri` computes it; the others are scratch.

    A number of seven is in the outer parts of the law, whose formula takes several times as long. These are gathered first.
    """
    count = beyond(u, u.dtype.type(0.5), u.dtype.type(0.425), place)
    for k in range(count):
        outer[k] = u[uint64(place[k])]
    for i in range(u.size):
        u[i] = _middle_ndtri(u[i])
    for k in range(count):
        outer[k] = _outer_ndtri(outer[k])
    for k in range(count):
        u[uint64(place[k])] = outer[k]


@compiled
def sigmoids(x: Any, out: Any, power: Any) -> None:
    """Write σ(x) of each x to `out`; `power` is scratch."""
    one = x.dtype.type(1)
    for i in range(x.size):
        power[i], out[i] = _reduced(-x[i])
    for i in range(x.size):
        out[i] = _small_exp(out[i])
    for i in range(x.size):
        out[i] = one / (out[i] * _power_of_two(power[i]) + one)


def _rough_reciprocal(x: Any) -> Any:
    """Return 1/σ(x) = 1 + 2^-(x / log 2) with a relative error below 2^-17 unless it is beyond 2^25; NaN stays NaN."""
    raise NotImplementedError


@overload(_rough_reciprocal, jit_options=INLINED_BY_LLVM)
def _(x: Any) -> Any:
    # a number added to the magic one is rounded to a whole number, whose bits are then the lowest ones of the sum
    def narrow(x: Any) -> Any:
        t = min(max(x * -_F32_PER_LN2, -_ROUGH_LIMIT), _ROUGH_LIMIT)
        shifted = t + np.float32(1.5 * 2**23)
        y = _F32_ROUGH(t - (shifted - np.float32(1.5 * 2**23)))
        exponent = np.float32(shifted).view(np.int32) << np.int32(23)
        e = np.int32(np.float32(y).view(np.int32) + exponent).view(np.float32)
        return e + np.float32(1) if x == x else x  # noqa: PLR0124

    def wide(x: Any) -> Any:
        t = min(max(x * -_F64_PER_LN2, -100.0), 100.0)
        shifted = t + 1.5 * 2.0**52
        y = _F64_ROUGH(t - (shifted - 1.5 * 2.0**52))
        exponent = np.float64(shifted).view(np.int64) << np.int64(52)
        e = np.int64(np.float64(y).view(np.int64) + exponent).view(np.float64)
        return e + 1.0 if x == x else x  # noqa: PLR0124

    return narrow if x == types.float32 else wide


@compiled
def rough_reciprocals(x: Any, out: Any) -> None:
    """Write r to `out`, roughly 1/σ(x): for uniform noise u, u < σ(x) if u r < 1, unless u r is nearer to 1 than `CLOSE`."""
    for i in range(x.size):
        out[i] = _rough_reciprocal(x[i])


@compiled
def both_sigmoids(x: Any, p: Any, q: Any, power: Any) -> None:
    """Write σ(x) and σ(-x) of each x to p and q; `power` is scratch."""
    one = x.dtype.type(1)
    for i in range(x.size):
        power[i], q[i] = _reduced(-x[i])
    for i in range(x.size):
        q[i] = _small_exp(q[i])
    for i in range(x.size):
        e = q[i] * _power_of_two(power[i])
        p[i] = one / (e + one)
        q[i] = e * p[i]
