"""Elementary functions, operation by operation as in `gradest.kernels.portable`."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numba import types
from numba.extending import overload

from gradest.kernels.cpu.compiler import compiled, inlined
from gradest.kernels.portable import CONSTANTS

__all__ = ["both_sigmoids", "exp", "log", "ndtri", "sigmoids", "sqrt"]


def _polynomial(coefficients: tuple[float, ...], kind: Any) -> Any:
    """Horner's scheme, unrolled: a compiled function of x."""
    last = kind(coefficients[-1])
    if len(coefficients) == 1:
        return inlined(lambda x: last)
    before = _polynomial(coefficients[:-1], kind)
    return inlined(lambda x: before(x) * x + last)


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


@inlined
def exp(x: Any) -> Any:
    """As `portable.exp`."""
    z, r = _reduced(x)
    return _small_exp(r) * _power_of_two(z)


def log(x: Any) -> Any:
    """As `portable.log`."""
    raise NotImplementedError


@overload(log, inline="always")
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


def sqrt(x: Any) -> Any:
    """As `portable.sqrt`."""
    raise NotImplementedError


@overload(sqrt, inline="always")
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


def ndtri(u: Any) -> Any:
    """As `portable.ndtri`."""
    raise NotImplementedError


@overload(ndtri, inline="always")
def _(u: Any) -> Any:
    def narrow(u: Any) -> Any:
        q = u - np.float32(0.5)
        r = np.float32(0.180625) - q * q
        z = q * (_N_MIDDLE(r) / _N_MIDDLE_BY(r))
        r = sqrt(-log(min(u, np.float32(1) - u))) - np.float32(1.6)
        far = _N_TAIL(r) / _N_TAIL_BY(r)
        return z if abs(q) <= np.float32(0.425) else (-far if q < np.float32(0) else far)

    def wide(u: Any) -> Any:
        q = u - 0.5
        r = 0.180625 - q * q
        z = q * (_W_MIDDLE(r) / _W_MIDDLE_BY(r))
        r = sqrt(-log(min(u, 1.0 - u)))
        near, beyond = r - 1.6, r - 5.0
        far = _W_TAIL(near) / _W_TAIL_BY(near) if r <= 5.0 else _W_FAR(beyond) / _W_FAR_BY(beyond)
        return z if abs(q) <= 0.425 else (-far if q < 0.0 else far)

    return narrow if u == types.float32 else wide


@compiled
def sigmoids(x: Any, out: Any, power: Any) -> None:
    """σ(x) of each; `power` is scratch."""
    one = x.dtype.type(1)
    for i in range(x.size):
        power[i], out[i] = _reduced(-x[i])
    for i in range(x.size):
        out[i] = _small_exp(out[i])
    for i in range(x.size):
        out[i] = one / (out[i] * _power_of_two(power[i]) + one)


@compiled
def both_sigmoids(x: Any, p: Any, q: Any, power: Any) -> None:
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
