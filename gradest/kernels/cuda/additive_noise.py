"""Units that add noise to their pre-activation, logistic or normal: their outputs, and the pullbacks of gradients."""

from __future__ import annotations

import triton.language as tl
from torch import Tensor

from gradest.kernels.cuda.compiler import compiled, float_bits, option
from gradest.kernels.cuda.functions import both_sigmoids, divide, log, ndtri, sigmoid
from gradest.kernels.cuda.noise import locate, tile_numbers
from gradest.kernels.cuda.tiles import launch_sampler
from gradest.kernels.reference.noise import Word

__all__ = ["concrete", "concrete_pullback", "normal", "normal_pullback", "rectified"]


@compiled
def _rectified(seed0, seed1, rows, stream, draws, row_count, units, out, a, ROWS: tl.constexpr, UNITS: tl.constexpr):
    k0, k1, row, counter, at, inside = locate(seed0, seed1, rows, row_count, units, ROWS, UNITS)
    x = tl.load(a + at, mask=inside, other=0)
    for draw in range(draws):
        u = tile_numbers(k0, k1, row, stream, counter, draw, x.dtype)
        z = x + log(divide(u, 1.0 - u))
        tl.store(out + at, tl.where(z < 0, 0, z), mask=inside)
        out += row_count.to(tl.int64) * units


@compiled
def _concrete(
    seed0,
    seed1,
    rows,
    stream,
    draws,
    row_count,
    units,
    out,
    a,
    per_temperature,
    LOWER: tl.constexpr,
    WIDTH: tl.constexpr,
    ROWS: tl.constexpr,
    UNITS: tl.constexpr,
):
    k0, k1, row, counter, at, inside = locate(seed0, seed1, rows, row_count, units, ROWS, UNITS)
    x = tl.load(a + at, mask=inside, other=0)
    per_temperature = option(per_temperature, x.dtype)
    for draw in range(draws):
        u = tile_numbers(k0, k1, row, stream, counter, draw, x.dtype)
        h = sigmoid((x + log(divide(u, 1.0 - u))) * per_temperature) * WIDTH + LOWER
        h = tl.where(h < 0, 0, h)
        tl.store(out + at, tl.where(h > 1, 1, h), mask=inside)
        out += row_count.to(tl.int64) * units


@compiled
def _concrete_pullback(
    seed0,
    seed1,
    rows,
    stream,
    draws,
    row_count,
    units,
    out,
    a,
    grad,
    per_temperature,
    height,
    LOWER: tl.constexpr,
    WIDTH: tl.constexpr,
    ROWS: tl.constexpr,
    UNITS: tl.constexpr,
):
    k0, k1, row, counter, at, inside = locate(seed0, seed1, rows, row_count, units, ROWS, UNITS)
    x = tl.load(a + at, mask=inside, other=0)
    per_temperature, height = option(per_temperature, x.dtype), option(height, x.dtype)
    for draw in range(draws):
        u = tile_numbers(k0, k1, row, stream, counter, draw, x.dtype)
        p, q = both_sigmoids((x + log(divide(u, 1.0 - u))) * per_temperature)
        y = tl.load(grad + at, mask=inside, other=0) * (p * q * height)
        if WIDTH > 0:
            h = p * WIDTH + LOWER
            y = tl.where((h <= 0) | (h >= 1), 0, y)
        tl.store(out + at, y, mask=inside)
        grad += row_count.to(tl.int64) * units
        out += row_count.to(tl.int64) * units


@compiled
def _normal(
    seed0,
    seed1,
    rows,
    stream,
    draws,
    row_count,
    units,
    out,
    a,
    std,
    ACTIVATION: tl.constexpr,
    ROWS: tl.constexpr,
    UNITS: tl.constexpr,
):
    k0, k1, row, counter, at, inside = locate(seed0, seed1, rows, row_count, units, ROWS, UNITS)
    x = tl.load(a + at, mask=inside, other=0)
    std = option(std, x.dtype)
    for draw in range(draws):
        h = x + ndtri(tile_numbers(k0, k1, row, stream, counter, draw, x.dtype)) * std
        if ACTIVATION == 1:
            h = tl.where(h < 0, 0, h)
        if ACTIVATION == 2:
            h = sigmoid(h)
        tl.store(out + at, h, mask=inside)
        out += row_count.to(tl.int64) * units


@compiled
def _normal_pullback(
    seed0,
    seed1,
    rows,
    stream,
    draws,
    row_count,
    units,
    out,
    a,
    grad,
    std,
    ROWS: tl.constexpr,
    UNITS: tl.constexpr,
):
    k0, k1, row, counter, at, inside = locate(seed0, seed1, rows, row_count, units, ROWS, UNITS)
    x = tl.load(a + at, mask=inside, other=0)
    std = option(std, x.dtype)
    for draw in range(draws):
        p, q = both_sigmoids(x + ndtri(tile_numbers(k0, k1, row, stream, counter, draw, x.dtype)) * std)
        tl.store(out + at, tl.load(grad + at, mask=inside, other=0) * (p * q), mask=inside)
        grad += row_count.to(tl.int64) * units
        out += row_count.to(tl.int64) * units


def rectified(seed: tuple[Word, Word], rows: Word, stream: int, draws: int, a: Tensor) -> Tensor:
    """Compute the same as `cpu.rectified`."""
    return launch_sampler(_rectified, seed, rows, stream, draws, a)


def concrete(
    seed: tuple[Word, Word],
    rows: Word,
    stream: int,
    draws: int,
    a: Tensor,
    per_temperature: float,
    lower: float,
    width: float,
) -> Tensor:
    """Compute the same as `cpu.concrete`."""
    more = (float_bits(per_temperature),)
    return launch_sampler(_concrete, seed, rows, stream, draws, a, *more, LOWER=lower, WIDTH=width)


def concrete_pullback(
    seed: tuple[Word, Word],
    rows: Word,
    stream: int,
    draws: int,
    a: Tensor,
    grad: Tensor,
    per_temperature: float,
    height: float,
    lower: float = 0.0,
    width: float = 0.0,
) -> Tensor:
    """Compute the same as `cpu.concrete_pullback`."""
    more = grad, float_bits(per_temperature), float_bits(height)
    return launch_sampler(_concrete_pullback, seed, rows, stream, draws, a, *more, LOWER=lower, WIDTH=width)


def normal(
    seed: tuple[Word, Word], rows: Word, stream: int, draws: int, a: Tensor, std: float, activation: int
) -> Tensor:
    """Compute the same as `cpu.normal`."""
    return launch_sampler(_normal, seed, rows, stream, draws, a, float_bits(std), ACTIVATION=activation)


def normal_pullback(
    seed: tuple[Word, Word], rows: Word, stream: int, draws: int, a: Tensor, grad: Tensor, std: float
) -> Tensor:
    """Compute the same as `cpu.normal_pullback`."""
    return launch_sampler(_normal_pullback, seed, rows, stream, draws, a, grad, float_bits(std))
