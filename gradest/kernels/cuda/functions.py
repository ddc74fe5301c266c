"""Elementary functions, operation by operation as in `gradest.kernels.portable`."""

from __future__ import annotations

import torch
import triton.language as tl

from gradest.kernels.cuda.compiler import inlined
from gradest.kernels.portable import CONSTANTS

__all__ = ["both_sigmoids", "divide", "exp", "log", "ndtri", "sigmoid", "sqrt"]

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


@inlined
def _horner(coefficients: tl.constexpr, terms: tl.constexpr, x):
    y = tl.full(x.shape, coefficients[0], x.dtype)
    for i in tl.static_range(1, terms):
        y = y * x + coefficients[i]
    return y


@inlined
def divide(x, y):
    """x / y rounded to nearest, which plain division is in float64 alone, and `tl.div_rn` has for float32 alone."""
    return x / y if y.dtype == tl.float64 else tl.div_rn(x, y)


@inlined
def _integer(x):
    return x.to(tl.int64 if x.dtype == tl.float64 else tl.int32, bitcast=True)


@inlined
def exp(x):
    """e^x."""
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


@inlined
def log(x):
    """ln x for normal x > 0."""
    wide: tl.constexpr = x.dtype == tl.float64
    ln2: tl.constexpr = _W_LN2 if wide else _N_LN2
    shifted = _integer(x) + (_W_SHIFT if wide else _N_SHIFT)
    k = ((shifted >> (_W_BITS if wide else _N_BITS)) - (_W_BIAS if wide else _N_BIAS)).to(x.dtype)
    m = (shifted & (_W_MASK if wide else _N_MASK)) + (_W_ROOT if wide else _N_ROOT)
    f = m.to(x.dtype, bitcast=True) - 1.0
    s = divide(f, f + 2.0)
    square = s * s
    half = f * 0.5 * f
    rest = s * (half + square * _horner(_W_LOG if wide else _N_LOG, _W_LOG_TERMS if wide else _N_LOG_TERMS, square))
    return k * ln2[0] - ((half - (rest + k * ln2[1])) - f)


@inlined
def sqrt(x):
    """√x for normal x > 0, by Newton's steps."""
    wide: tl.constexpr = x.dtype == tl.float64
    y = ((_integer(x) >> 1) + (_W_HALF if wide else _N_HALF)).to(x.dtype, bitcast=True)
    for _ in tl.static_range(_W_STEPS if wide else _N_STEPS):
        y = (y + divide(x, y)) * 0.5
    return y


@inlined
def _ratio(parts: tl.constexpr, x):
    top: tl.constexpr = parts[0]
    bottom: tl.constexpr = parts[1]
    return divide(_horner(top, len(top), x), _horner(bottom, len(bottom), x))


@inlined
def ndtri(u):
    """The inverse of the standard normal distribution function."""
    wide: tl.constexpr = u.dtype == tl.float64
    q = u - 0.5
    near = 0.180625 - q * q
    r = sqrt(-log(tl.where(u < 1.0 - u, u, 1.0 - u)))
    if wide:
        z = q * _ratio(_MIDDLE, near)
        far = tl.where(r <= 5.0, _ratio(_TAIL, r - 1.6), _ratio(_FAR, r - 5.0))
    else:
        z = q * _ratio(_N_MIDDLE, near)
        far = _ratio(_N_TAIL, r - 1.6)
    return tl.where(tl.abs(q) <= 0.425, z, tl.where(q < 0, -far, far))


@inlined
def both_sigmoids(x):
    """σ(x) and σ(-x), the second as e^-x σ(x)."""
    e = exp(-x)
    p = divide(tl.full(x.shape, 1.0, x.dtype), e + 1.0)
    return p, e * p


@inlined
def sigmoid(x):
    """σ(x)."""
    p, _q = both_sigmoids(x)
    return p
