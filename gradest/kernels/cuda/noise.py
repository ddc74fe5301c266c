"""The random words, and uniform numbers of them."""

from __future__ import annotations

import torch
import triton.language as tl
from torch import Tensor

from gradest.kernels import reference
from gradest.kernels.cuda.compiler import compiled, inlined
from gradest.kernels.cuda.tiles import by_tiles, places, words
from gradest.kernels.reference import Word

__all__ = ["noisy_tile", "row_keys", "uniform", "uniform_numbers"]

_N_STEP, _W_STEP = tl.constexpr(2.0**-24), tl.constexpr(2.0**-53)


@inlined
def _four_rounds(x0, x1, a: tl.constexpr, b: tl.constexpr, c: tl.constexpr, d: tl.constexpr):
    x0 += x1
    x1 = ((x1 << a) | (x1 >> (32 - a))) ^ x0
    x0 += x1
    x1 = ((x1 << b) | (x1 >> (32 - b))) ^ x0
    x0 += x1
    x1 = ((x1 << c) | (x1 >> (32 - c))) ^ x0
    x0 += x1
    x1 = ((x1 << d) | (x1 >> (32 - d))) ^ x0
    return x0, x1


@inlined
def _threefry(k0, k1, c0, c1):
    """Threefry-2x32, 20 rounds, as in `gradest.kernels.reference.threefry`, on uint32."""
    k2 = k0 ^ k1 ^ 0x1BD11BDA
    x0, x1 = _four_rounds(c0 + k0, c1 + k1, 13, 15, 26, 6)
    x0, x1 = _four_rounds(x0 + k1, x1 + k2 + 1, 17, 29, 16, 24)
    x0, x1 = _four_rounds(x0 + k2, x1 + k0 + 2, 13, 15, 26, 6)
    x0, x1 = _four_rounds(x0 + k0, x1 + k1 + 3, 17, 29, 16, 24)
    x0, x1 = _four_rounds(x0 + k1, x1 + k2 + 4, 13, 15, 26, 6)
    return x0 + k2, x1 + k0 + 5


@inlined
def row_keys(seed0, seed1, rows, stream, row, inside):
    """The keys of rows, of their seeds, numbers and the stream."""
    k0 = tl.load(seed0 + row, mask=inside, other=0).to(tl.uint32, bitcast=True)
    k1 = tl.load(seed1 + row, mask=inside, other=0).to(tl.uint32, bitcast=True)
    number = tl.load(rows + row, mask=inside, other=0).to(tl.uint32, bitcast=True)
    return _threefry(k0, k1, number, stream)


@inlined
def noisy_tile(seed0, seed1, rows, stream, row_count, units, ROWS: tl.constexpr, UNITS: tl.constexpr):
    """This program's keys `[ROWS, 1]`, unit numbers `[1, UNITS]`, and places in memory `[ROWS, UNITS]` with their mask."""
    row, unit, at, inside = places(row_count, units, ROWS, UNITS)
    k0, k1 = row_keys(seed0, seed1, rows, stream, row, row < row_count)
    return k0[:, None], k1[:, None], unit.to(tl.uint32)[None, :], at, inside


@inlined
def uniform_numbers(k0, k1, unit, draw, dtype: tl.constexpr):
    """The uniform numbers of a tile in one draw, as `reference.uniform_from_words` makes them."""
    x0, x1 = _threefry(k0, k1, unit, draw)
    word = (x0.to(tl.uint64) << 21) | (x1 >> 11) if dtype == tl.float64 else x0 >> 8
    return (word | 1).to(dtype) * (_W_STEP if dtype == tl.float64 else _N_STEP)


@compiled
def _uniform(seed0, seed1, rows, stream, draws, row_count, units, out, ROWS: tl.constexpr, UNITS: tl.constexpr):
    k0, k1, unit, at, inside = noisy_tile(seed0, seed1, rows, stream, row_count, units, ROWS, UNITS)
    for draw in range(draws):
        tl.store(out + at, uniform_numbers(k0, k1, unit, draw, out.dtype.element_ty), mask=inside)
        out += row_count.to(tl.int64) * units


def uniform(seed: tuple[Word, Word], rows: Word, stream: int, draws: int, units: int, dtype: torch.dtype) -> Tensor:
    """As `cpu.uniform`."""
    seed, rows = reference.as_tensors(seed, rows)
    out = torch.empty(draws, len(rows), units, dtype=dtype, device=rows.device)
    return by_tiles(_uniform, out, out.shape, words=words(seed, rows, stream))
