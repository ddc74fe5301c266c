"""Units that add noise to their pre-activation, logistic or normal: their outputs, and the pullbacks of gradients.

Scaled ones have two pre-activations each, a place and the logarithm of a scale: `a` is `[row_count, 2 * units]`.
"""

from __future__ import annotations

from typing import Any

import torch
import triton.language as tl
from torch import Tensor

from gradest.kernels.cuda.compiler import compiled, float_bits, inlined, option
from gradest.kernels.cuda.functions import both_sigmoids, divide, exp, log, ndtri, sigmoid
from gradest.kernels.cuda.noise import locate, tile_numbers
from gradest.kernels.cuda.tiles import launch_sampler, launch_tiles, noise_words
from gradest.kernels.portable import NEARLY_ONE
from gradest.kernels.reference.noise import Word

__all__ = [
    "concrete",
    "concrete_pullback",
    "normal",
    "normal_pullback",
    "rectified",
    "scaled_concrete",
    "scaled_concrete_pullback",
    "scaled_normal",
    "scaled_normal_pullback",
]

_NEARLY_ONE = tl.constexpr(NEARLY_ONE)
_STEEPEST = tl.constexpr(200.0)  # of |x|, as for `tempered_binary_concrete`


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
        slope = p * tl.where(p <= _NEARLY_ONE, 1.0 - p, q)
        tl.store(out + at, tl.load(grad + at, mask=inside, other=0) * slope, mask=inside)
        grad += row_count.to(tl.int64) * units
        out += row_count.to(tl.int64) * units


@inlined
def _scale(s, LEAST: tl.constexpr):
    """Return e^s for s of at least LEAST."""
    return exp(tl.where(s < LEAST, LEAST, s))


@inlined
def _steepness(s, MOST: tl.constexpr):
    """Return e^-s for s between ±MOST."""
    s = tl.where(s < -MOST, -MOST, s)
    return exp(-tl.where(s > MOST, MOST, s))


@compiled
def _scaled_normal(
    seed0,
    seed1,
    rows,
    stream,
    draws,
    row_count,
    units,
    out,
    a,
    LEAST: tl.constexpr,
    ROWS: tl.constexpr,
    UNITS: tl.constexpr,
):
    k0, k1, row, counter, at, inside = locate(seed0, seed1, rows, row_count, units, ROWS, UNITS)
    m = tl.load(a + 2 * at, mask=inside, other=0)
    scale = _scale(tl.load(a + 2 * at + 1, mask=inside, other=0), LEAST)
    for draw in range(draws):
        h = m + scale * ndtri(tile_numbers(k0, k1, row, stream, counter, draw, m.dtype))
        tl.store(out + at, h, mask=inside)
        out += row_count.to(tl.int64) * units


@compiled
def _scaled_normal_pullback(
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
    LEAST: tl.constexpr,
    ROWS: tl.constexpr,
    UNITS: tl.constexpr,
):
    k0, k1, row, counter, at, inside = locate(seed0, seed1, rows, row_count, units, ROWS, UNITS)
    scale = _scale(tl.load(a + 2 * at + 1, mask=inside, other=0), LEAST)
    for draw in range(draws):
        g = tl.load(grad + at, mask=inside, other=0)
        tl.store(out + 2 * at, g, mask=inside)
        z = ndtri(tile_numbers(k0, k1, row, stream, counter, draw, scale.dtype))
        tl.store(out + 2 * at + 1, g * scale * z, mask=inside)
        grad += row_count.to(tl.int64) * units
        out += row_count.to(tl.int64) * units * 2


@compiled
def _scaled_concrete(
    seed0,
    seed1,
    rows,
    stream,
    draws,
    row_count,
    units,
    out,
    a,
    MOST: tl.constexpr,
    ROWS: tl.constexpr,
    UNITS: tl.constexpr,
):
    k0, k1, row, counter, at, inside = locate(seed0, seed1, rows, row_count, units, ROWS, UNITS)
    m = tl.load(a + 2 * at, mask=inside, other=0)
    steep = _steepness(tl.load(a + 2 * at + 1, mask=inside, other=0), MOST)
    for draw in range(draws):
        u = tile_numbers(k0, k1, row, stream, counter, draw, m.dtype)
        tl.store(out + at, sigmoid((m + log(divide(u, 1.0 - u))) * steep), mask=inside)
        out += row_count.to(tl.int64) * units


@compiled
def _scaled_concrete_pullback(
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
    MOST: tl.constexpr,
    ROWS: tl.constexpr,
    UNITS: tl.constexpr,
):
    k0, k1, row, counter, at, inside = locate(seed0, seed1, rows, row_count, units, ROWS, UNITS)
    m = tl.load(a + 2 * at, mask=inside, other=0)
    steep = _steepness(tl.load(a + 2 * at + 1, mask=inside, other=0), MOST)
    for draw in range(draws):
        u = tile_numbers(k0, k1, row, stream, counter, draw, m.dtype)
        x = (m + log(divide(u, 1.0 - u))) * steep
        x = tl.where(x < -_STEEPEST, -_STEEPEST, x)
        x = tl.where(x > _STEEPEST, _STEEPEST, x)
        p, q = both_sigmoids(x)
        slope = tl.load(grad + at, mask=inside, other=0) * (p * q)
        tl.store(out + 2 * at, steep * slope, mask=inside)
        tl.store(out + 2 * at + 1, -x * slope, mask=inside)
        grad += row_count.to(tl.int64) * units
        out += row_count.to(tl.int64) * units * 2


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
    seed: tuple[Word, Word],
    rows: Word,
    stream: int,
    draws: int,
    a: Tensor,
    grad: Tensor,
    h: Tensor | None,
    std: float,
) -> Tensor:
    """Compute the same as `cpu.normal_pullback`, from the noise alone, which a GPU draws faster than it reads h."""
    return launch_sampler(_normal_pullback, seed, rows, stream, draws, a, grad, float_bits(std))


def scaled_normal(seed: tuple[Word, Word], rows: Word, stream: int, draws: int, a: Tensor, least: float) -> Tensor:
    """Compute the same as `cpu.scaled_normal`."""
    return _launch_scaled(_scaled_normal, seed, rows, stream, draws, a, LEAST=least)


def scaled_normal_pullback(
    seed: tuple[Word, Word], rows: Word, stream: int, draws: int, a: Tensor, grad: Tensor, least: float
) -> Tensor:
    """Compute the same as `cpu.scaled_normal_pullback`."""
    return _launch_scaled(_scaled_normal_pullback, seed, rows, stream, draws, a, grad, LEAST=least)


def scaled_concrete(seed: tuple[Word, Word], rows: Word, stream: int, draws: int, a: Tensor, most: float) -> Tensor:
    """Compute the same as `cpu.scaled_concrete`."""
    return _launch_scaled(_scaled_concrete, seed, rows, stream, draws, a, MOST=most)


def scaled_concrete_pullback(
    seed: tuple[Word, Word], rows: Word, stream: int, draws: int, a: Tensor, grad: Tensor, most: float
) -> Tensor:
    """Compute the same as `cpu.scaled_concrete_pullback`."""
    return _launch_scaled(_scaled_concrete_pullback, seed, rows, stream, draws, a, grad, MOST=most)


def _launch_scaled(
    kernel: Any,
    seed: tuple[Word, Word],
    rows: Word,
    stream: int,
    draws: int,
    a: Tensor,
    *grad: Tensor,
    **options: float,
) -> Tensor:
    """Launch a kernel that draws `[draws, rows, units]`, or for a grad of that shape `[draws, *a.shape]`."""
    size = (draws, len(a), a.shape[1] // 2)
    out = torch.empty(*((draws, *a.shape) if grad else size), dtype=a.dtype, device=a.device)
    return launch_tiles(kernel, out, size, a, *grad, words=noise_words(seed, rows, stream), **options)
