"""Units without noise, and derivatives that they share with other units."""

from __future__ import annotations

import math

import torch
import triton.language as tl
from torch import Tensor

from gradest.kernels import reference
from gradest.kernels.cuda.compiler import compiled, float_bits, option
from gradest.kernels.cuda.functions import both_sigmoids, divide, sigmoid
from gradest.kernels.cuda.tiles import launch_tiles, tile_offsets

__all__ = ["logistic_backward", "rectified_backward", "repeated", "surrogate_backward"]


@compiled
def _repeated(draws, row_count, units, out, a, ACTIVATION: tl.constexpr, ROWS: tl.constexpr, UNITS: tl.constexpr):
    _row, _unit, at, inside = tile_offsets(row_count, units, ROWS, UNITS)
    x = tl.load(a + at, mask=inside, other=0)
    if ACTIVATION == 0:
        h = tl.where(x > 0, 1.0, 0.0).to(x.dtype)
    elif ACTIVATION == 1:
        h = tl.where(x < 0, 0, x)
    else:
        h = sigmoid(x)
    for _ in range(draws):
        tl.store(out + at, h, mask=inside)
        out += row_count.to(tl.int64) * units


@compiled
def _rectified_backward(draws, row_count, units, out, h, grad, ROWS: tl.constexpr, UNITS: tl.constexpr):
    _row, _unit, at, inside = tile_offsets(row_count, units, ROWS, UNITS)
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
    slope,
    height,
    ROWS: tl.constexpr,
    UNITS: tl.constexpr,
):
    _row, _unit, at, inside = tile_offsets(row_count, units, ROWS, UNITS)
    x = tl.load(a + at, mask=inside, other=0)
    slope, height = option(slope, x.dtype), option(height, x.dtype)
    p, q = both_sigmoids(x * slope)
    tl.store(out + at, tl.load(grad + at, mask=inside, other=0) * (p * q * height), mask=inside)


@compiled
def _surrogate_backward(
    draws,
    row_count,
    units,
    out,
    a,
    grad,
    slope,
    height,
    DERIVATIVE: tl.constexpr,
    HALF_PI: tl.constexpr,
    ROWS: tl.constexpr,
    UNITS: tl.constexpr,
):
    _row, _unit, at, inside = tile_offsets(row_count, units, ROWS, UNITS)
    x = tl.load(a + at, mask=inside, other=0)
    slope, height = option(slope, x.dtype), option(height, x.dtype)
    x *= slope
    if DERIVATIVE == 0:
        y = tl.abs(x) + 1
        d = divide(tl.full(y.shape, 0.5, y.dtype), y * y)
    elif DERIVATIVE == 1:
        y = x * HALF_PI
        d = divide(tl.full(y.shape, 0.5, y.dtype), y * y + 1)
    elif DERIVATIVE == 2:
        y = 1 - tl.abs(x)
        d = tl.where(y < 0, 0, y)
    else:
        d = tl.where(tl.abs(x) <= 1, 0.5, 0.0).to(x.dtype)
    tl.store(out + at, tl.load(grad + at, mask=inside, other=0) * (d * height), mask=inside)


def repeated(draws: int, a: Tensor, activation: int) -> Tensor:
    """Compute the same as `cpu.repeated`."""
    out = torch.empty(draws, *a.shape, dtype=a.dtype, device=a.device)
    return launch_tiles(_repeated, out, (draws, 1, a.numel()), a, ACTIVATION=activation)


def rectified_backward(h: Tensor, grad: Tensor) -> Tensor:
    """Compute the same as `reference.rectified_backward`."""
    out = torch.empty(h.shape, dtype=h.dtype, device=h.device)
    return launch_tiles(_rectified_backward, out, (1, 1, h.numel()), h, grad)


def logistic_backward(a: Tensor, grad: Tensor, slope: float | Tensor, height: float | Tensor) -> Tensor:
    """Compute the same as `reference.logistic_backward`.

    If slope or height is a tensor, the reference itself is called, because reading a value would wait for the device.
    """
    if isinstance(slope, Tensor) or isinstance(height, Tensor):
        return reference.logistic_backward(a, grad, slope, height)
    out = torch.empty(a.shape, dtype=a.dtype, device=a.device)
    return launch_tiles(_logistic_backward, out, (1, 1, a.numel()), a, grad, float_bits(slope), float_bits(height))


def surrogate_backward(a: Tensor, grad: Tensor, derivative: int, slope: float, height: float) -> Tensor:
    """Compute the same as `reference.surrogate_backward`."""
    out = torch.empty(a.shape, dtype=a.dtype, device=a.device)
    given = a, grad, float_bits(slope), float_bits(height)
    return launch_tiles(
        _surrogate_backward, out, (1, 1, a.numel()), *given, DERIVATIVE=derivative, HALF_PI=0.5 * math.pi
    )
