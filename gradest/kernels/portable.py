"""Elementary functions that give the same bits everywhere: on any device, in any kernel, at any place of a tensor.

They consist only of additions, multiplications, divisions, roundings to integers and bit shifts, each of which IEEE 754 defines
to the last bit, and which are never contracted. (IEEE 754 defines the square root too, but torch's on a CPU does not follow
it.) `gradest.kernels.cpu` and `gradest.kernels.cuda` repeat these formulas operation by operation, so that the choice of a
backend never shows in a sample. Accuracy: exp, log and sqrt are within 1 unit in the last place, sigmoid is within 3.

Methods: exp writes x = z log 2 + r and takes the Taylor series of e^r for |r| <= log 2 / 2. log writes x = 2^k m and takes the
series of log m in (m - 1)/(m + 1), as Sun's fdlibm does. sqrt starts from half the exponent and applies Heron's rule. The normal
quantile is Wichura (1988), "Algorithm AS 241", which has one set of coefficients for 7 digits and one for 16.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import reduce
from math import factorial
from operator import add
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import pad

__all__ = [
    "CONSTANTS",
    "LANES",
    "LOGIT_OF_NORMAL",
    "NEARLY_ONE",
    "Constants",
    "both_sigmoids",
    "exp",
    "last_sum",
    "log",
    "logit",
    "logit_of_normal",
    "ndtri",
    "power",
    "sigmoid",
    "sigmoid_slope",
    "softmax",
    "sqrt",
]

LANES = 1024
"""The largest number of partial sums that `last_sum` starts with."""

LOGIT_OF_NORMAL = (
    (
        *(1.36886854e-4, 3.96638963e-4, 2.47793552e-3, 1.16752908e-2),
        *(1.61418449e-2, 2.08391398e-1, -1.28995642e-1, 1.59576905),
    ),
    (2.74649065e-4, 7.34757807e-4, 3.66250984e-3, 1.37065127e-2, 8.50736126e-2, -8.0838412e-2, 1.0),
)
"""Numerator and denominator, highest power first, of logit Φ(t) / t for t from 0 to 11, to 4e-8."""

NEARLY_ONE = 1 - 2.0**-10
"""The largest σ(x) from which `sigmoid_slope` takes the difference to 1, which then has lost at most 10 binary digits."""


@dataclass(frozen=True)
class Constants:
    """The constants of the formulas in one floating-point format."""

    integer: torch.dtype
    mantissa: int
    """Number of stored bits of the mantissa."""
    bias: int
    """Bias of the exponent."""
    limit: float
    """`exp` clamps its argument to -limit <= x <= limit."""
    ln2: tuple[float, float]
    """log 2 as the sum of two numbers, the first with so few bits that its product with an exponent is exact."""
    exp: tuple[float, ...]
    """Coefficients of (e^r - 1 - r) / r², highest power first."""
    log: tuple[float, ...]
    """Coefficients of (log((1 + s)/(1 - s)) - 2s) / s³ in s², highest power first."""
    root_half: int
    """The bits of √½, the smallest mantissa that `log` uses."""
    steps: int
    """Number of steps of Heron's rule. Each doubles the number of correct bits; the first guess has 5."""
    normal: tuple[tuple[tuple[float, ...], tuple[float, ...]], ...]
    """Numerators and denominators, highest power first, of Wichura's approximations in the middle, the tail and the far tail."""


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
        normal=(  # without the far tail, which no uniform number of 24 bits reaches
            (
                (5.9109374720e01, 1.5929113202e02, 5.0434271938e01, 3.3871327179e00),
                (6.7187563600e01, 7.8757757664e01, 1.7895169469e01, 1.0),
            ),
            (
                (1.7023821103e-01, 1.3067284816e00, 2.7568153900e00, 1.4234372777e00),
                (1.2021132975e-01, 7.3700164250e-01, 1.0),
            ),
        ),
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
        normal=(
            (
                (
                    *(
                        2.5090809287301226727e3,
                        3.3430575583588128105e4,
                        6.7265770927008700853e4,
                        4.5921953931549871457e4,
                    ),
                    *(
                        1.3731693765509461125e4,
                        1.9715909503065514427e3,
                        1.3314166789178437745e2,
                        3.3871328727963666080e0,
                    ),
                ),
                (
                    *(
                        5.2264952788528545610e3,
                        2.8729085735721942674e4,
                        3.9307895800092710610e4,
                        2.1213794301586595867e4,
                    ),
                    *(5.3941960214247511077e3, 6.8718700749205790830e2, 4.2313330701600911252e1, 1.0),
                ),
            ),
            (
                (
                    *(
                        7.74545014278341407640e-4,
                        2.27238449892691845833e-2,
                        2.41780725177450611770e-1,
                        1.27045825245236838258e0,
                    ),
                    *(
                        3.64784832476320460504e0,
                        5.76949722146069140550e0,
                        4.63033784615654529590e0,
                        1.42343711074968357734e0,
                    ),
                ),
                (
                    *(
                        1.05075007164441684324e-9,
                        5.47593808499534494600e-4,
                        1.51986665636164571966e-2,
                        1.48103976427480074590e-1,
                    ),
                    *(6.89767334985100004550e-1, 1.67638483018380384940e0, 2.05319162663775882187e0, 1.0),
                ),
            ),
            (
                (
                    *(
                        2.01033439929228813265e-7,
                        2.71155556874348757815e-5,
                        1.24266094738807843860e-3,
                        2.65321895265761230930e-2,
                    ),
                    *(
                        2.96560571828504891230e-1,
                        1.78482653991729133580e0,
                        5.46378491116411436990e0,
                        6.65790464350110377720e0,
                    ),
                ),
                (
                    *(
                        2.0442631033899397856e-15,
                        1.42151175831644588870e-7,
                        1.84631831751005468180e-5,
                        7.86869131145613259100e-4,
                    ),
                    *(1.48753612908506148525e-2, 1.36929880922735805310e-1, 5.99832206555887937690e-1, 1.0),
                ),
            ),
        ),
    ),
}


def exp(x: Tensor) -> Tensor:
    """Return e^x, with x clamped to ±80 in float32 and ±700 in float64."""
    return _differentiable(_exp, exp, x)


def log(x: Tensor) -> Tensor:
    """Return log x, for x that is positive and not subnormal."""
    return _differentiable(_log, lambda x: 1 / x, x)


def sqrt(x: Tensor) -> Tensor:
    """Return √x, for x that is positive and not subnormal."""
    return _differentiable(_sqrt, lambda x: 0.5 / sqrt(x), x)


def logit(u: Tensor) -> Tensor:
    """Return log(u / (1 - u)) for uniform noise u of `gradest.random`, for which 1 - u is exact."""
    return log(u / (1 - u))


def logit_of_normal(z: Tensor) -> Tensor:
    """Return logit Φ(z) for float32 |z| <= 11, with a relative error of 5e-7, also where Φ(z) is near ½. It has no derivative."""
    return z * _ratio(LOGIT_OF_NORMAL, z.abs())


def ndtri(u: Tensor) -> Tensor:
    """Return the standard normal quantile of uniform noise u of `gradest.random`. It has no derivative; noise needs none."""
    middle, *tails = CONSTANTS[u.dtype].normal
    q = u - 0.5
    r = 0.180625 - q * q
    z = q * _ratio(middle, r)
    r = _sqrt(-_log(torch.minimum(u, 1 - u)))
    far = _ratio(tails[0], r - 1.6)
    if len(tails) > 1:
        far = torch.where(r <= 5, far, _ratio(tails[1], r - 5))
    return torch.where(q.abs() <= 0.425, z, torch.where(q < 0, -far, far))


def sigmoid(x: Tensor) -> Tensor:
    """Return 1 / (1 + e^-x)."""
    return _differentiable(lambda x: 1 / (_exp(-x) + 1), lambda x: sigmoid(x) * sigmoid(-x), x)


def both_sigmoids(x: Tensor) -> tuple[Tensor, Tensor]:
    """Return σ(x) and σ(-x), the second as e^-x σ(x)."""
    e = exp(-x)
    p = 1 / (e + 1)
    return p, e * p


def sigmoid_slope(x: Tensor) -> Tensor:
    """Return σ(x) σ(-x), where a kernel that has kept σ(x) needs no x unless σ(x) > `NEARLY_ONE`.

    Up to there it is σ(x) (1 - σ(x)), with a relative error of at most 2e-4 in float32 and 4e-13 in float64. Beyond, where the
    difference to 1 has few digits or none, σ(-x) is computed by itself.
    """
    p, q = both_sigmoids(x)
    return p * torch.where(p <= NEARLY_ONE, 1 - p, q)


def power(x: Tensor, n: int) -> Tensor:
    """Return x^n for n > 0, by repeated squaring from the lowest bit of n on; accurate to about n units in the last place."""
    y = x if n % 2 else None
    while n := n // 2:
        x = x * x
        if n % 2:
            y = x if y is None else y * x
    assert y is not None
    return y


def softmax(x: Tensor) -> Tensor:
    """Return the softmax over the last dim. No entry is less than e^-limit times the largest (see `Constants.limit`)."""
    e = exp(x - x.detach().amax(-1, keepdim=True))
    return e / last_sum(e)[..., None]


def last_sum(x: Tensor) -> Tensor:
    """Sum over the last dim in a fixed order, which vectorised kernels can follow.

    Lane l adds up x[l], x[l + lanes], ...; then the upper half of the lanes is added to the lower half until one lane is left.
    The number of lanes is the size of the dim rounded up to a power of two, at most LANES.
    """
    size = x.shape[-1]
    lanes = min(LANES, 1 << max(0, size - 1).bit_length())
    terms_per_lane = -(-size // lanes)
    x = reduce(add, pad(x, (0, -size % lanes)).reshape(*x.shape[:-1], terms_per_lane, lanes).unbind(-2))
    while lanes > 1:
        lanes //= 2
        x = x[..., :lanes] + x[..., lanes:]
    return x[..., 0]


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


def _ratio(coefficients: tuple[tuple[float, ...], tuple[float, ...]], x: Tensor) -> Tensor:
    return _horner(coefficients[0], x) / _horner(coefficients[1], x)


_Function = Callable[[Tensor], Tensor]


def _differentiable(value: _Function, slope: _Function, x: Tensor) -> Tensor:
    if not (x.requires_grad and torch.is_grad_enabled()):
        return value(x)
    y: Tensor = _Derivative.apply(x, value, slope)  # type: ignore[no-untyped-call]
    return y


class _Derivative(torch.autograd.Function):
    """Autograd for formulas that work on the bits of numbers, which autograd cannot differentiate: states their derivative."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, value: _Function, slope: _Function) -> Tensor:
        ctx.save_for_backward(x)
        ctx.slope = slope
        return value(x)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        (x,) = ctx.saved_tensors
        return grad * ctx.slope(x), None, None
