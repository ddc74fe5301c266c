"""Units with two values: binary units, binary units at mirrored noise, and the stochastic times smooth unit."""

from __future__ import annotations

import torch
import triton.language as tl
from torch import Tensor

from gradest.kernels.cuda.compiler import compiled
from gradest.kernels.cuda.functions import both_sigmoids, sigmoid, sqrt
from gradest.kernels.cuda.noise import locate, tile_numbers
from gradest.kernels.cuda.tiles import launch_sampler, launch_tiles, noise_words, tile_offsets
from gradest.kernels.reference.noise import Word

__all__ = ["antithetic", "binary", "times_smooth", "times_smooth_backward"]


@compiled
def _binary(
    seed0,
    seed1,
    rows,
    stream,
    draws,
    row_count,
    units,
    out,
    a,
    LOW: tl.constexpr,
    HIGH: tl.constexpr,
    ROWS: tl.constexpr,
    UNITS: tl.constexpr,
):
    k0, k1, row, counter, at, inside = locate(seed0, seed1, rows, row_count, units, ROWS, UNITS)
    p = sigmoid(tl.load(a + at, mask=inside, other=0))
    low, high = tl.full(p.shape, LOW, p.dtype), tl.full(p.shape, HIGH, p.dtype)
    for draw in range(draws):
        u = tile_numbers(k0, k1, row, stream, counter, draw, p.dtype)
        tl.store(out + at, tl.where(u < p, high, low).to(out.dtype.element_ty), mask=inside)
        out += row_count.to(tl.int64) * units


@compiled
def _antithetic(
    seed0,
    seed1,
    rows,
    stream,
    points,
    row_count,
    units,
    out,
    a,
    LOW: tl.constexpr,
    HIGH: tl.constexpr,
    ROWS: tl.constexpr,
    UNITS: tl.constexpr,
):
    k0, k1, row, counter, at, inside = locate(seed0, seed1, rows, row_count, units, ROWS, UNITS)
    p = sigmoid(tl.load(a + at, mask=inside, other=0))
    low, high = tl.full(p.shape, LOW, p.dtype), tl.full(p.shape, HIGH, p.dtype)
    count = row_count.to(tl.int64) * units
    for draw in range(points // 2):
        u = tile_numbers(k0, k1, row, stream, counter, draw, p.dtype)
        tl.store(out + at, tl.where(u < p, high, low), mask=inside)
        tl.store(out + points // 2 * count + at, tl.where(1.0 - u < p, high, low), mask=inside)
        out += count


@compiled
def _times_smooth(seed0, seed1, rows, stream, draws, row_count, units, out, a, ROWS: tl.constexpr, UNITS: tl.constexpr):
    k0, k1, row, counter, at, inside = locate(seed0, seed1, rows, row_count, units, ROWS, UNITS)
    r = sqrt(sigmoid(tl.load(a + at, mask=inside, other=0)))
    for draw in range(draws):
        u = tile_numbers(k0, k1, row, stream, counter, draw, r.dtype)
        tl.store(out + at, tl.where(u < r, r, 0), mask=inside)
        out += row_count.to(tl.int64) * units


@compiled
def _times_smooth_backward(draws, row_count, units, out, a, h, grad, ROWS: tl.constexpr, UNITS: tl.constexpr):
    _row, _unit, at, inside = tile_offsets(row_count, units, ROWS, UNITS)
    _p, q = both_sigmoids(tl.load(a + at, mask=inside, other=0))
    for _ in range(draws):
        x, g = tl.load(h + at, mask=inside, other=0), tl.load(grad + at, mask=inside, other=0)
        tl.store(out + at, tl.where(x > 0, g * (x * 0.5 * q), 0), mask=inside)
        h += row_count.to(tl.int64) * units
        grad += row_count.to(tl.int64) * units
        out += row_count.to(tl.int64) * units


def binary(
    seed: tuple[Word, Word],
    rows: Word,
    stream: int,
    draws: int,
    a: Tensor,
    low: float,
    high: float,
    dtype: torch.dtype | None = None,
) -> Tensor:
    """Compute the same as `cpu.binary`."""
    out = torch.empty(draws, *a.shape, dtype=torch.uint8 if dtype else a.dtype, device=a.device)
    launch_tiles(_binary, out, out.shape, a, words=noise_words(seed, rows, stream), **_values(low, high, a.dtype))
    return out.view(dtype) if dtype else out


def antithetic(
    seed: tuple[Word, Word], rows: Word, stream: int, pairs: int, a: Tensor, low: float, high: float
) -> Tensor:
    """Compute the same as `cpu.antithetic`."""
    return launch_sampler(_antithetic, seed, rows, stream, 2 * pairs, a, **_values(low, high, a.dtype))


def times_smooth(seed: tuple[Word, Word], rows: Word, stream: int, draws: int, a: Tensor) -> Tensor:
    """Compute the same as `cpu.times_smooth`."""
    return launch_sampler(_times_smooth, seed, rows, stream, draws, a)


def times_smooth_backward(a: Tensor, h: Tensor, grad: Tensor) -> Tensor:
    """Compute the same as `reference.times_smooth_backward`."""
    out = torch.empty(h.shape, dtype=h.dtype, device=h.device)
    return launch_tiles(_times_smooth_backward, out, (len(h), 1, a.numel()), a, h, grad)


def _values(low: float, high: float, dtype: torch.dtype) -> dict[str, float]:
    """Return the two values of a binary unit; the second is low + (high - low), rounded as the reference rounds it."""
    return {"LOW": low, "HIGH": float(torch.tensor(low, dtype=dtype) + torch.tensor(high - low, dtype=dtype))}
