"""Elementary functions whose bits are the same everywhere: on any device, in any kernel, at any place of a tensor.

They are made of additions, multiplications, divisions, roundings to integers and shifts of bits alone, each of which IEEE 754
defines to the last bit, never contracted. (A square root would be one more, but torch's on a CPU is not IEEE's.)
`gradest.kernels.cpu` has the same formulas, operation by operation, so that the choice of a kernel never shows in a sample.
Accuracy: exp, log and sqrt within 1 unit in the last place, sigmoid within 3.

The methods: exp by x = z log 2 + r, and the Taylor series of e^r at |r| <= log 2 / 2; log by x = 2^k m, and the series of
log m in (m - 1)/(m + 1), as in Sun's fdlibm; sqrt by Heron's rule, from half the exponent on.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from math import factorial
from typing import Any

import torch
from torch import Tensor

__all__ = ["CONSTANTS", "Constants", "exp", "log", "logit", "sigmoid", "sqrt"]


@dataclass(frozen=True)
class Constants:
    """What differs between the formats. `exp` is exact to rounding for -limit <= x <= limit, and held constant beyond."""

    integer: torch.dtype
    mantissa: int
    """Stored bits of the mantissa."""
    bias: int
    """Of the exponent."""
    limit: float
    ln2: tuple[float, float]
    """log 2 in two parts, the first so short that its product with an exponent is exact."""
    exp: tuple[float, ...]
    """Coefficients of (e^r - 1 - r) / r², the highest power first."""
    log: tuple[float, ...]
    """Coefficients of (log((1 + s)/(1 - s)) - 2s) / s³ in s², the highest power first."""
    root_half: int
    """The bits of √½, where mantissas begin in `log`."""
    steps: int
    """Of Heron's rule, which each double the digits of the 5 bits that the first guess has."""


def _taylor(degree: int) -> tuple[float, ...]:
    return tuple(1 / factorial(k) for k in range(degree, 1, -1))


CONSTANTS = {
    torch.float32: Constants(
        integer=torch.int32,
        mantissa=23,
        bias=127,
        limit=80.0,
        ln2=(0.693145751953125, 1.428606765330187e-06),
        exp=_taylor(7),
        log=(0.24279078841, 0.28498786688, 0.40000972152, 0.66666662693),
        root_half=0x3F3504F3,
        steps=3,
    ),
    torch.float64: Constants(
        integer=torch.int64,
        mantissa=52,
        bias=1023,
        limit=700.0,
        ln2=(6.93147180369123816490e-01, 1.90821492927058770002e-10),
        exp=_taylor(13),
        log=(
            1.479819860511658591e-01,
            1.531383769920937332e-01,
            1.818357216161805012e-01,
            2.222219843214978396e-01,
            2.857142874366239149e-01,
            3.999999999940941908e-01,
            6.666666666666735130e-01,
        ),
        root_half=0x3FE6A09E667F3BCD,
        steps=4,
    ),
}


def exp(x: Tensor) -> Tensor:
    """e^x, of x clamped to ±80 in float32 and ±700 in float64."""
    return _differentiable(_exp, exp, x)


def log(x: Tensor) -> Tensor:
    """log x, for x that is positive and not subnormal."""
    return _differentiable(_log, lambda x: 1 / x, x)


def sqrt(x: Tensor) -> Tensor:
    """√x, for x that is positive and not subnormal."""
    return _differentiable(_sqrt, lambda x: 0.5 / sqrt(x), x)


def logit(u: Tensor) -> Tensor:
    """log(u / (1 - u)), for u as `gradest.random` makes it: 1 - u is exact."""
    return log(u / (1 - u))


def sigmoid(x: Tensor) -> Tensor:
    """1 / (1 + e^-x)."""
    return _differentiable(lambda x: 1 / (_exp(-x) + 1), lambda x: sigmoid(x) * sigmoid(-x), x)


def _exp(x: Tensor) -> Tensor:
    c = CONSTANTS[x.dtype]
    x = x.clamp(-c.limit, c.limit)
    z = torch.floor(x * (1 / (c.ln2[0] + c.ln2[1])) + 0.5)
    r = x - z * c.ln2[0] - z * c.ln2[1]
    y = _horner(c.exp, r) * r * r + r + 1
    return y * ((z.to(c.integer) + c.bias) << c.mantissa).view(x.dtype)


def _log(x: Tensor) -> Tensor:
    c = CONSTANTS[x.dtype]
    shifted = x.view(c.integer) + ((c.bias << c.mantissa) - c.root_half)
    k = ((shifted >> c.mantissa) - c.bias).to(x.dtype)
    f = ((shifted & ((1 << c.mantissa) - 1)) + c.root_half).view(x.dtype) - 1
    s = f / (f + 2)
    square = s * s
    half = 0.5 * f * f
    rest = s * (half + square * _horner(c.log, square))
    return k * c.ln2[0] - ((half - (rest + k * c.ln2[1])) - f)


def _sqrt(x: Tensor) -> Tensor:
    c = CONSTANTS[x.dtype]
    y = ((x.view(c.integer) >> 1) + (c.bias << (c.mantissa - 1))).view(x.dtype)
    for _ in range(c.steps):
        y = 0.5 * (y + x / y)
    return y


def _horner(coefficients: tuple[float, ...], x: Tensor) -> Tensor:
    y = torch.full_like(x, coefficients[0])
    for coefficient in coefficients[1:]:
        y = y * x + coefficient
    return y


_Function = Callable[[Tensor], Tensor]


def _differentiable(value: _Function, slope: _Function, x: Tensor) -> Tensor:
    if not (x.requires_grad and torch.is_grad_enabled()):
        return value(x)
    y: Tensor = _Derivative.apply(x, value, slope)  # type: ignore[no-untyped-call]
    return y


class _Derivative(torch.autograd.Function):
    """The formulas take numbers apart bit by bit, which autograd cannot follow: this states their derivative."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, value: _Function, slope: _Function) -> Tensor:
        ctx.save_for_backward(x)
        ctx.slope = slope
        return value(x)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        (x,) = ctx.saved_tensors
        return grad * ctx.slope(x), None, None
