"""The elementary functions of `gradest.kernels.portable`, operation by operation."""

from __future__ import annotations

import torch
import triton.language as tl

from gradest.kernels.cuda.compiler import inlined
from gradest.kernels.portable import CONSTANTS

__all__ = ["both_sigmoids", "divide", "exp", "log", "ndtri", "sigmoid", "sqrt"]

_F32, _F64 = CONSTANTS[torch.float32], CONSTANTS[torch.float64]
_F32_EXP, _F64_EXP = tl.constexpr(_F32.exp), tl.constexpr(_F64.exp)
_F32_LOG, _F64_LOG = tl.constexpr(_F32.log), tl.constexpr(_F64.log)
_F32_EXP_TERMS, _F64_EXP_TERMS = tl.constexpr(len(_F32.exp)), tl.constexpr(len(_F64.exp))
_F32_LOG_TERMS, _F64_LOG_TERMS = tl.constexpr(len(_F32.log)), tl.constexpr(len(_F64.log))
_F32_LN2, _F64_LN2 = tl.constexpr(_F32.ln2), tl.constexpr(_F64.ln2)
_F32_PER_LN2, _F64_PER_LN2 = tl.constexpr(1 / sum(_F32.ln2)), tl.constexpr(1 / sum(_F64.ln2))
_F32_LIMIT, _F64_LIMIT = tl.constexpr(_F32.limit), tl.constexpr(_F64.limit)
_F32_BITS, _F64_BITS = tl.constexpr(_F32.mantissa), tl.constexpr(_F64.mantissa)
_F32_BIAS, _F64_BIAS = tl.constexpr(_F32.bias), tl.constexpr(_F64.bias)
_F32_ROOT, _F64_ROOT = tl.constexpr(_F32.root_half), tl.constexpr(_F64.root_half)
_F32_SHIFT = tl.constexpr((_F32.bias << _F32.mantissa) - _F32.root_half)
_F64_SHIFT = tl.constexpr((_F64.bias << _F64.mantissa) - _F64.root_half)
_F32_MASK, _F64_MASK = tl.constexpr((1 << _F32.mantissa) - 1), tl.constexpr((1 << _F64.mantissa) - 1)
_F32_HALF, _F64_HALF = tl.constexpr(_F32.bias << (_F32.mantissa - 1)), tl.constexpr(_F64.bias << (_F64.mantissa - 1))
_F32_STEPS, _F64_STEPS = tl.constexpr(_F32.steps), tl.constexpr(_F64.steps)
_F64_MIDDLE, _F64_TAIL, _F64_FAR = (tl.constexpr(parts) for parts in _F64.normal)
_F32_MIDDLE, _F32_TAIL = (tl.constexpr(parts) for parts in _F32.normal)


@inlined
def _horner(coefficients: tl.constexpr, terms: tl.constexpr, x):
    y = tl.full(x.shape, coefficients[0], x.dtype)
    for i in tl.static_range(1, terms):
        y = y * x + coefficients[i]
    return y


@inlined
def divide(x, y):
    """Return x / y rounded to nearest. Triton's `/` does that in float64 only, and `tl.div_rn` is for float32 only."""
    return x / y if y.dtype == tl.float64 else tl.div_rn(x, y)


@inlined
def _integer(x):
    return x.to(tl.int64 if x.dtype == tl.float64 else tl.int32, bitcast=True)


@inlined
def exp(x):
    """Compute the same as `portable.exp`."""
    wide: tl.constexpr = x.dtype == tl.float64
    limit: tl.constexpr = _F64_LIMIT if wide else _F32_LIMIT
    ln2: tl.constexpr = _F64_LN2 if wide else _F32_LN2
    x = tl.where(x < -limit, -limit, x)
    x = tl.where(x > limit, limit, x)
    z = tl.floor(x * (_F64_PER_LN2 if wide else _F32_PER_LN2) + 0.5)
    r = x - z * ln2[0] - z * ln2[1]
    y = _horner(_F64_EXP if wide else _F32_EXP, _F64_EXP_TERMS if wide else _F32_EXP_TERMS, r) * r * r + r + 1.0
    power = (z.to(tl.int64 if wide else tl.int32) + (_F64_BIAS if wide else _F32_BIAS)) << (
        _F64_BITS if wide else _F32_BITS
    )
    return y * power.to(x.dtype, bitcast=True)


@inlined
def log(x):
    """Compute the same as `portable.log`."""
    wide: tl.constexpr = x.dtype == tl.float64
    ln2: tl.constexpr = _F64_LN2 if wide else _F32_LN2
    shifted = _integer(x) + (_F64_SHIFT if wide else _F32_SHIFT)
    k = ((shifted >> (_F64_BITS if wide else _F32_BITS)) - (_F64_BIAS if wide else _F32_BIAS)).to(x.dtype)
    m = (shifted & (_F64_MASK if wide else _F32_MASK)) + (_F64_ROOT if wide else _F32_ROOT)
    f = m.to(x.dtype, bitcast=True) - 1.0
    s = divide(f, f + 2.0)
    square = s * s
    half = f * 0.5 * f
    rest = s * (
        half + square * _horner(_F64_LOG if wide else _F32_LOG, _F64_LOG_TERMS if wide else _F32_LOG_TERMS, square)
    )
    return k * ln2[0] - ((half - (rest + k * ln2[1])) - f)


@inlined
def sqrt(x):
    """Compute the same as `portable.sqrt`."""
    wide: tl.constexpr = x.dtype == tl.float64
    y = ((_integer(x) >> 1) + (_F64_HALF if wide else _F32_HALF)).to(x.dtype, bitcast=True)
    for _ in tl.static_range(_F64_STEPS if wide else _F32_STEPS):
        y = (y + divide(x, y)) * 0.5
    return y


@inlined
def _ratio(parts: tl.constexpr, x):
    top: tl.constexpr = parts[0]
    bottom: tl.constexpr = parts[1]
    return divide(_horner(top, len(top), x), _horner(bottom, len(bottom), x))


@inlined
def ndtri(u):
    """Compute the same as `portable.ndtri`."""
    wide: tl.constexpr = u.dtype == tl.float64
    q = u - 0.5
    near = 0.180625 - q * q
    r = sqrt(-log(tl.where(u < 1.0 - u, u, 1.0 - u)))
    if wide:
        z = q * _ratio(_F64_MIDDLE, near)
        far = tl.where(r <= 5.0, _ratio(_F64_TAIL, r - 1.6), _ratio(_F64_FAR, r - 5.0))
    else:
        z = q * _ratio(_F32_MIDDLE, near)
        far = _ratio(_F32_TAIL, r - 1.6)
    return tl.where(tl.abs(q) <= 0.425, z, tl.where(q < 0, -far, far))


@inlined
def both_sigmoids(x):
    """Compute the same as `portable.both_sigmoids`."""
    e = exp(-x)
    p = divide(tl.full(x.shape, 1.0, x.dtype), e + 1.0)
    return p, e * p


@inlined
def sigmoid(x):
    """Compute the same as `portable.sigmoid`."""
    p, _q = both_sigmoids(x)
    return p
