"""Units without noise, and the derivatives that they share with others."""

from __future__ import annotations

import math
from typing import Any

import torch
import triton.language as tl
from torch import Tensor

from gradest.kernels import reference
from gradest.kernels.cuda.compiler import compiled
from gradest.kernels.cuda.functions import both_sigmoids, divide, sigmoid
from gradest.kernels.cuda.tiles import by_tiles, places

__all__ = ["logistic_backward", "rectified_backward", "repeated", "surrogate_backward"]


@compiled
def _repeated(draws, row_count, units, out, a, SHAPE: tl.constexpr, ROWS: tl.constexpr, UNITS: tl.constexpr):
    _row, _unit, at, inside = places(row_count, units, ROWS, UNITS)
    x = tl.load(a + at, mask=inside, other=0)
    if SHAPE == 0:
        h = tl.where(x > 0, 1.0, 0.0).to(x.dtype)
    elif SHAPE == 1:
        h = tl.where(x < 0, 0, x)
    else:
        h = sigmoid(x)
    for _ in range(draws):
        tl.store(out + at, h, mask=inside)
        out += row_count.to(tl.int64) * units


@compiled
def _rectified_backward(draws, row_count, units, out, h, grad, ROWS: tl.constexpr, UNITS: tl.constexpr):
    _row, _unit, at, inside = places(row_count, units, ROWS, UNITS)
    for _ in range(draws):
        x, g = tl.load(h + at, mask=inside, other=0), tl.load(grad + at, mask=inside, other=0)
        tl.store(out + at, tl.where(x > 0, g, 0), mask=inside)
        h += row_count.to(tl.int64) * units
        grad += row_count.to(tl.int64) * units
        out += row_count.to(tl.int64) * units


@compiled
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
    _row, _unit, at, inside = places(row_count, units, ROWS, UNITS)
    p, q = both_sigmoids(tl.load(a + at, mask=inside, other=0) * SLOPE)
    tl.store(out + at, tl.load(grad + at, mask=inside, other=0) * (p * q * HEIGHT), mask=inside)


@compiled
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
    _row, _unit, at, inside = places(row_count, units, ROWS, UNITS)
    x = tl.load(a + at, mask=inside, other=0) * SLOPE
    if SHAPE == 0:
        y = tl.abs(x) + 1
        d = divide(tl.full(y.shape, 0.5, y.dtype), y * y)
    elif SHAPE == 1:
        y = x * HALF_PI
        d = divide(tl.full(y.shape, 0.5, y.dtype), y * y + 1)
    elif SHAPE == 2:
        y = 1 - tl.abs(x)
        d = tl.where(y < 0, 0, y)
    else:
        d = tl.where(tl.abs(x) <= 1, 0.5, 0.0).to(x.dtype)
    tl.store(out + at, tl.load(grad + at, mask=inside, other=0) * (d * HEIGHT), mask=inside)


def repeated(draws: int, a: Tensor, shape: int) -> Tensor:
    """As `cpu.repeated`."""
    out = torch.empty(draws, *a.shape, dtype=a.dtype, device=a.device)
    return by_tiles(_repeated, out, (draws, 1, a.numel()), a, SHAPE=shape)


def rectified_backward(h: Tensor, grad: Tensor) -> Tensor:
    """As `reference.rectified_backward`."""
    out = torch.empty(h.shape, dtype=h.dtype, device=h.device)
    return by_tiles(_rectified_backward, out, (1, 1, h.numel()), h, grad)


def logistic_backward(a: Tensor, grad: Tensor, slope: float | Tensor, height: float | Tensor) -> Tensor:
    """As `reference.logistic_backward`, which does it where slope or height is a tensor: to read it takes a while."""
    if isinstance(slope, Tensor) or isinstance(height, Tensor):
        return reference.logistic_backward(a, grad, slope, height)
    out = torch.empty(a.shape, dtype=a.dtype, device=a.device)
    return by_tiles(_logistic_backward, out, (1, 1, a.numel()), a, grad, SLOPE=slope, HEIGHT=height)


def surrogate_backward(a: Tensor, grad: Tensor, shape: int, slope: float, height: float) -> Tensor:
    """As `reference.surrogate_backward`."""
    out = torch.empty(a.shape, dtype=a.dtype, device=a.device)
    options: dict[str, Any] = {"SHAPE": shape, "SLOPE": slope, "HEIGHT": height, "HALF_PI": 0.5 * math.pi}
    return by_tiles(_surrogate_backward, out, (1, 1, a.numel()), a, grad, **options)
