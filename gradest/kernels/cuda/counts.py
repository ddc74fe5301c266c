"""Units that count, by inversion of their distribution functions, in float64."""

from __future__ import annotations

import triton.language as tl
from torch import Tensor

from gradest.kernels.cuda.compiler import compiled
from gradest.kernels.cuda.functions import exp, log
from gradest.kernels.cuda.noise import locate, tile_numbers
from gradest.kernels.cuda.tiles import launch_sampler
from gradest.kernels.reference.noise import Word

__all__ = ["binomial", "poisson"]


@compiled
def _binomial(
    seed0, seed1, rows, stream, draws, row_count, units, out, a, trials, ROWS: tl.constexpr, UNITS: tl.constexpr
):
    k0, k1, row, counter, at, inside = locate(seed0, seed1, rows, row_count, units, ROWS, UNITS)
    x = tl.load(a + at, mask=inside, other=0)
    ratio = exp(-tl.abs(x).to(tl.float64))
    base, power, n = ratio + 1.0, tl.full(x.shape, 1.0, tl.float64), trials
    while n > 1:
        power = tl.where(n % 2 == 1, power * base, power)
        base, n = base * base, n // 2
    least = 1.0 / (power * base)
    for draw in range(draws):
        u = tile_numbers(k0, k1, row, stream, counter, draw, x.dtype)
        u = tl.where(x > 0, 1.0 - u, u).to(tl.float64)
        term, below, count = least, tl.zeros_like(least), tl.zeros_like(least)
        left = trials.to(tl.float64)
        k = left * 0.0
        for _ in range(trials):
            below += term
            count += tl.where(u >= below, 1.0, 0.0)
            k += 1.0
            term *= ratio * (left / k)
            left -= 1.0
        h = tl.where(x > 0, trials.to(tl.float64) - count, count)
        tl.store(out + at, h.to(x.dtype), mask=inside)
        out += row_count.to(tl.int64) * units


@compiled
def _poisson(seed0, seed1, rows, stream, draws, row_count, units, out, a, ROWS: tl.constexpr, UNITS: tl.constexpr):
    k0, k1, row, counter, at, inside = locate(seed0, seed1, rows, row_count, units, ROWS, UNITS)
    a_kind: tl.constexpr = a.dtype.element_ty
    x = tl.load(a + at, mask=inside, other=0).to(tl.float64)
    e = exp(-tl.abs(x))
    rate = tl.where(x > 0, x, 0) + log(e + 1.0)
    least = tl.where(x > 0, e, 1.0) / (e + 1.0)
    for draw in range(draws):
        u = tile_numbers(k0, k1, row, stream, counter, draw, a_kind).to(tl.float64)
        term, below, count = least, tl.zeros_like(least), tl.zeros_like(least)
        k, more = (tl.sum(tl.zeros((2,), tl.float64), 0), tl.sum(tl.full((2,), 1, tl.int32), 0))
        while more > 0:
            k += 1.0
            above = below + term
            counted = (u >= above) & (above > below)
            count += tl.where(counted, 1.0, 0.0)
            more = tl.sum(tl.sum(counted.to(tl.int32), 1), 0)
            below = above
            term *= rate * (1.0 / k)
        tl.store(out + at, count.to(a_kind), mask=inside)
        out += row_count.to(tl.int64) * units


def binomial(seed: tuple[Word, Word], rows: Word, stream: int, draws: int, a: Tensor, trials: int) -> Tensor:
    """Compute the same as `cpu.binomial`."""
    return launch_sampler(_binomial, seed, rows, stream, draws, a, trials)


def poisson(seed: tuple[Word, Word], rows: Word, stream: int, draws: int, a: Tensor) -> Tensor:
    """Compute the same as `cpu.poisson`."""
    return launch_sampler(_poisson, seed, rows, stream, draws, a)
