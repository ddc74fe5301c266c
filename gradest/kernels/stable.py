"""Row-stable arithmetic: torch operations whose result at one place of a tensor never depends on the other places.

torch evaluates the tail of a tensor, and every non-contiguous tensor, with other instructions than the bulk. For `torch.sigmoid`,
`torch.logit`, `softplus`, `sinh`, `cosh`, `hypot`, `logaddexp` and sums over a leading dimension the two differ in the last bit
on some processors, so that a row alone gives other bits than the same row in a batch. `exp`, `log`, `log1p`, `expm1`,
`logsigmoid`, `asinh`, `erfinv` and sums over a contiguous last dimension do not have this problem (tests/kernels/test_portable.py
holds that), and the functions here are built from those alone.
"""

from __future__ import annotations

import math
from functools import reduce
from operator import add

import torch
from torch import Tensor

__all__ = [
    "NARROW_DTYPES",
    "SEQUENTIAL_TERMS",
    "cast",
    "computable",
    "drop_impossible",
    "leading_mean",
    "leading_sum",
    "leave_one_out",
    "logit",
    "normal_cdf",
    "sigmoid",
    "sinh_cosh",
    "softplus",
    "widen",
]

NARROW_DTYPES = (torch.float16, torch.bfloat16)
"""The dtypes on which all arithmetic is done in float32."""

SEQUENTIAL_TERMS = 8
"""The largest number of terms that `leading_sum` adds one after the other, as the fused kernels do."""

_TERMS_PER_PART = 1 << 14


def widen(x: Tensor) -> Tensor:
    """Convert float16 and bfloat16 to float32, in which all arithmetic on them is done; return other dtypes unchanged."""
    return x.float() if x.dtype in NARROW_DTYPES else x


def cast(x: Tensor, dtype: torch.dtype) -> Tensor:
    """Return x.to(dtype), without calling torch where x already has that dtype, because even that call takes time."""
    return x if x.dtype == dtype else x.to(dtype)


def computable(grad: Tensor, a: Tensor) -> Tensor:
    """Return a gradient of outputs as kernels take it: in the dtype of `a`, or in the one in which that is computed."""
    return grad if grad.dtype == a.dtype else grad.to(torch.promote_types(a.dtype, torch.float32))


def sigmoid(x: Tensor) -> Tensor:
    """Return σ(x) = 1 / (1 + exp(-x)), to a few units in the last place. For an accurate 1 - σ(x), call it with -x.

    x is clamped from below, to where exp(-x) does not overflow, so that value and derivative are finite for every x.
    """
    x = widen(x)
    return (1 + torch.exp(-x.clamp_min(-80.0 if x.dtype == torch.float32 else -700.0))).reciprocal()


def sinh_cosh(x: Tensor) -> tuple[Tensor, Tensor]:
    """Return sinh(x) and cosh(x), to a few units in the last place of exp(|x|)."""
    grown = torch.exp(x)
    shrunk = 1 / grown
    return (grown - shrunk) / 2, (grown + shrunk) / 2


def softplus(x: Tensor) -> Tensor:
    """Return log(1 + exp(x)), accurate in both tails and differentiable at 0."""
    return -torch.nn.functional.logsigmoid(-widen(x))


def normal_cdf(x: Tensor) -> Tensor:
    """Return Φ(x) with full relative accuracy in the lower tail, where `torch.special.ndtr` underflows to 0 below x = -9."""
    return 0.5 * torch.erfc(-math.sqrt(0.5) * widen(x))


def logit(u: Tensor) -> Tensor:
    """Return log(u / (1 - u)) for u in the open unit interval."""
    return torch.log(u) - torch.log1p(-u)


def leading_sum(x: Tensor) -> Tensor:
    """Sum over the first dimension, with an order of additions that the rest of the tensor does not change.

    Up to SEQUENTIAL_TERMS terms are added one after the other; more are summed as a contiguous last dimension, 2^14 at a time,
    because torch splits a single row of 2^15 or more into as many parts as it has threads. The sum of one term is that term
    itself, not a copy.
    """
    terms = x.shape[0]
    if terms == 1:
        return x[0]
    if 1 < terms <= SEQUENTIAL_TERMS:
        return reduce(add, x.unbind())
    if x.shape[0] > _TERMS_PER_PART:
        x = torch.stack([leading_sum(part) for part in torch.split(x, _TERMS_PER_PART)])
    return x.movedim(0, -1).contiguous().sum(-1)


def leading_mean(x: Tensor) -> Tensor:
    """Average over the first dimension, with the order of additions of `leading_sum`."""
    return x[0] if x.shape[0] == 1 else leading_sum(x) / x.shape[0]


def drop_impossible(loss: Tensor, probability: Tensor) -> Tensor:
    """Return losses `[K, ...]` with 0 in place of those whose output has probability 0, which are no part of an expectation.

    An infinite loss there, such as that of a class that is masked with -inf or of a saturated unit, would otherwise give
    0 · inf = NaN. Where a probability is 0 to the precision of its type, so is its derivative, and autograd gives 0 for both.
    """
    return loss.masked_fill(probability == 0, 0)


def leave_one_out(loss: Tensor) -> Tensor:
    """Return (L_k - mean L) / (K - 1) for losses `[K, *batch]`, K > 1.

    This is (L_k - mean of the other losses) / K: each loss with the leave-one-out baseline subtracted, divided by K.
    """
    return (loss - leading_mean(loss)) / (len(loss) - 1)
