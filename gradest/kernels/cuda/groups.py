"""Units of a group that are drawn together: binary ones that are correlated."""

from __future__ import annotations

import triton.language as tl
from torch import Tensor

from gradest.kernels.cuda.compiler import compiled, float_bits, option
from gradest.kernels.cuda.functions import ndtri, sigmoid
from gradest.kernels.cuda.noise import locate, tile_numbers, uniform_numbers
from gradest.kernels.cuda.tiles import launch_sampler, tile_offsets
from gradest.kernels.reference.noise import Word

__all__ = ["correlated"]


@compiled
def _correlated(
    seed0,
    seed1,
    rows,
    stream,
    draws,
    row_count,
    units,
    out,
    a,
    items,
    factor_stream,
    shared,
    own,
    ROWS: tl.constexpr,
    UNITS: tl.constexpr,
):
    """Each unit of a group computes their common factor."""
    k0, k1, row, counter, at, inside = locate(seed0, seed1, rows, row_count, units, ROWS, UNITS)
    _row, unit, _at, _inside = tile_offsets(row_count, units, ROWS, UNITS)
    group = (unit // items).to(tl.uint32)[None, :]
    x = tl.load(a + at, mask=inside, other=0)
    shared, own = option(shared, x.dtype), option(own, x.dtype)
    quantile = ndtri(sigmoid(-tl.abs(x)))  # at most 0
    threshold = tl.where(x < 0, -quantile, quantile)
    for draw in range(draws):
        factor = ndtri(uniform_numbers(k0, k1, row, factor_stream, group, draw, x.dtype)) * shared
        z = factor + ndtri(tile_numbers(k0, k1, row, stream, counter, draw, x.dtype)) * own
        tl.store(out + at, (z > threshold).to(x.dtype), mask=inside)
        out += row_count.to(tl.int64) * units


def correlated(
    seed: tuple[Word, Word],
    rows: Word,
    stream: int,
    draws: int,
    a: Tensor,
    items: int,
    factor_stream: int,
    shared: float,
    own: float,
) -> Tensor:
    """Compute the same as `cpu.correlated`."""
    more = items, factor_stream, float_bits(shared), float_bits(own)
    return launch_sampler(_correlated, seed, rows, stream, draws, a, *more)
