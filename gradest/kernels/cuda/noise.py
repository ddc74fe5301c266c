"""The random words, and the uniform numbers made from them: `gradest.kernels.reference.noise`, operation by operation."""

from __future__ import annotations

import torch
import triton.language as tl
from torch import Tensor

from gradest.kernels.cuda.compiler import compiled, inlined
from gradest.kernels.cuda.tiles import launch_tiles, noise_words, tile_offsets
from gradest.kernels.reference.noise import Word, as_tensors

__all__ = ["locate", "row_keys", "uniform", "uniform_numbers"]

_F32_STEP, _F64_STEP = tl.constexpr(2.0**-24), tl.constexpr(2.0**-53)


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
    """Encrypt a counter by Threefry-2x32 with 20 rounds, on uint32."""
    k2 = k0 ^ k1 ^ 0x1BD11BDA
    x0, x1 = _four_rounds(c0 + k0, c1 + k1, 13, 15, 26, 6)
    x0, x1 = _four_rounds(x0 + k1, x1 + k2 + 1, 17, 29, 16, 24)
    x0, x1 = _four_rounds(x0 + k2, x1 + k0 + 2, 13, 15, 26, 6)
    x0, x1 = _four_rounds(x0 + k0, x1 + k1 + 3, 17, 29, 16, 24)
    x0, x1 = _four_rounds(x0 + k1, x1 + k2 + 4, 13, 15, 26, 6)
    return x0 + k2, x1 + k0 + 5


@inlined
def row_keys(seed0, seed1, rows, stream, row, inside):
    """Return the keys of rows, made from their seeds, their numbers and the stream."""
    k0 = tl.load(seed0 + row, mask=inside, other=0).to(tl.uint32, bitcast=True)
    k1 = tl.load(seed1 + row, mask=inside, other=0).to(tl.uint32, bitcast=True)
    number = tl.load(rows + row, mask=inside, other=0).to(tl.uint32, bitcast=True)
    return _threefry(k0, k1, number, stream)


@inlined
def locate(seed0, seed1, rows, stream, row_count, units, ROWS: tl.constexpr, UNITS: tl.constexpr):
    """Return this program's keys `[ROWS, 1]`, unit numbers `[1, UNITS]`, and memory offsets `[ROWS, UNITS]` with their mask."""
    row, unit, at, inside = tile_offsets(row_count, units, ROWS, UNITS)
    k0, k1 = row_keys(seed0, seed1, rows, stream, row, row < row_count)
    return k0[:, None], k1[:, None], unit.to(tl.uint32)[None, :], at, inside


@inlined
def uniform_numbers(k0, k1, unit, draw, dtype: tl.constexpr):
    """Return the uniform numbers of a tile in one draw, as `reference.noise.uniform_from_words` defines them."""
    x0, x1 = _threefry(k0, k1, unit, draw)
    word = (x0.to(tl.uint64) << 21) | (x1 >> 11) if dtype == tl.float64 else x0 >> 8
    return (word | 1).to(dtype) * (_F64_STEP if dtype == tl.float64 else _F32_STEP)


@compiled
def _uniform(seed0, seed1, rows, stream, draws, row_count, units, out, ROWS: tl.constexpr, UNITS: tl.constexpr):
    k0, k1, unit, at, inside = locate(seed0, seed1, rows, stream, row_count, units, ROWS, UNITS)
    for draw in range(draws):
        tl.store(out + at, uniform_numbers(k0, k1, unit, draw, out.dtype.element_ty), mask=inside)
        out += row_count.to(tl.int64) * units


def uniform(seed: tuple[Word, Word], rows: Word, stream: int, draws: int, units: int, dtype: torch.dtype) -> Tensor:
    """Compute the same as `reference.uniform`."""
    seed, rows = as_tensors(seed, rows)
    out = torch.empty(draws, len(rows), units, dtype=dtype, device=rows.device)
    return launch_tiles(_uniform, out, out.shape, words=noise_words(seed, rows, stream))
