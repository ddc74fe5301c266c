"""Units without noise, and derivatives that they share with other units."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from torch import Tensor

from gradest.kernels.cpu.compilation.compiler import BLOCK, compiled
from gradest.kernels.cpu.functions import both_sigmoids, sigmoids
from gradest.kernels.cpu.tensors import NUMPY, check_size, empty_as, flat, in_threads

__all__ = ["logistic_backward", "rectified_backward", "repeated", "surrogate_backward"]


@compiled
def _repeated(a: Any, out: Any, first: Any, last: Any, activation: Any) -> None:
    zero, one = a.dtype.type(0), a.dtype.type(1)
    power = np.empty(BLOCK, a.dtype)
    for at in range(first, last, BLOCK):
        size = min(BLOCK, last - at)
        x = a[at : at + size]
        for draw in range(len(out)):
            h = out[draw, at : at + size]
            if draw > 0:
                h[:] = out[0, at : at + size]
            elif activation == 2:
                sigmoids(x, h, power)
            elif activation == 1:
                for i in range(size):
                    h[i] = zero if x[i] < zero else x[i]
            else:
                for i in range(size):
                    h[i] = one if x[i] > zero else zero


@compiled
def _rectified_backward(h: Any, grad: Any, out: Any, first: Any, last: Any) -> None:
    zero = h.dtype.type(0)
    x, g, y = h[first:last], grad[first:last], out[first:last]
    for i in range(x.size):
        y[i] = g[i] if x[i] > zero else zero


@compiled
def _logistic_backward(a: Any, grad: Any, out: Any, first: Any, last: Any, slope: Any, height: Any) -> None:
    x, p, q, power = (
        np.empty(BLOCK, a.dtype),
        np.empty(BLOCK, a.dtype),
        np.empty(BLOCK, a.dtype),
        np.empty(BLOCK, a.dtype),
    )
    for at in range(first, last, BLOCK):
        size = min(BLOCK, last - at)
        given, g, y = a[at : at + size], grad[at : at + size], out[at : at + size]
        for i in range(size):
            x[i] = slope * given[i]
        both_sigmoids(x[:size], p, q, power)
        for i in range(size):
            y[i] = g[i] * (height * (p[i] * q[i]))


@compiled
def _surrogate_backward(
    a: Any, grad: Any, out: Any, first: Any, last: Any, derivative: Any, slope: Any, height: Any, half_pi: Any
) -> None:
    zero, half, one = a.dtype.type(0), a.dtype.type(0.5), a.dtype.type(1)
    x, g, y = a[first:last], grad[first:last], out[first:last]
    if derivative == 0:
        for i in range(x.size):
            z = one + abs(slope * x[i])
            y[i] = g[i] * (height * (half / (z * z)))
    elif derivative == 1:
        for i in range(x.size):
            z = half_pi * (slope * x[i])
            y[i] = g[i] * (height * (half / (one + z * z)))
    elif derivative == 2:
        for i in range(x.size):
            z = one - abs(slope * x[i])
            y[i] = g[i] * (height * (zero if z < zero else z))
    else:
        for i in range(x.size):
            y[i] = g[i] * (height * (half if abs(slope * x[i]) <= one else zero))


def repeated(draws: int, a: Tensor, activation: int) -> Tensor:
    """Return `draws` copies of f(a), `[draws, *a.shape]`.

    activation: 0 for f(a) = 1[a > 0], 1 for max(0, a), 2 for σ(a).
    """
    out = empty_as(a, draws, *a.shape)
    given = flat(a), flat(out, 1)
    in_threads(lambda first, last: _repeated(*given, first, last, activation), a.numel(), draws)
    return out


def rectified_backward(h: Tensor, grad: Tensor) -> Tensor:
    """Compute the same as `reference.rectified_backward`."""
    check_size(grad, h.numel())
    out = empty_as(h, *h.shape)
    given = flat(h), flat(grad), flat(out)
    in_threads(lambda first, last: _rectified_backward(*given, first, last), h.numel(), 1)
    return out


def logistic_backward(a: Tensor, grad: Tensor, slope: float | Tensor, height: float | Tensor) -> Tensor:
    """Compute the same as `reference.logistic_backward`."""
    kind, out = NUMPY[a.dtype], empty_as(a, *a.shape)
    given = flat(a), flat(grad), flat(out)
    options = kind(slope), kind(height)
    in_threads(lambda first, last: _logistic_backward(*given, first, last, *options), a.numel(), 1)
    return out


def surrogate_backward(a: Tensor, grad: Tensor, derivative: int, slope: float, height: float) -> Tensor:
    """Compute the same as `reference.surrogate_backward`."""
    kind, out = NUMPY[a.dtype], empty_as(a, *a.shape)
    given = flat(a), flat(grad), flat(out)
    options = derivative, kind(slope), kind(height), kind(0.5 * math.pi)
    in_threads(lambda first, last: _surrogate_backward(*given, first, last, *options), a.numel(), 1)
    return out
