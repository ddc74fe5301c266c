"""The random words, and the uniform numbers made from them: `gradest.kernels.reference.noise`, operation by operation."""

from __future__ import annotations

import torch
import triton.language as tl
from torch import Tensor

from gradest.kernels.cuda.compiler import compiled, inlined
from gradest.kernels.cuda.tiles import launch_tiles, noise_words, tile_offsets
from gradest.kernels.reference.noise import LOWER_WORDS, MULTIPLIERS, ROUNDS, WEYL, Word, as_tensors

__all__ = ["locate", "row_words", "tile_numbers", "uniform", "uniform_numbers"]

_M0, _M1 = map(tl.constexpr, MULTIPLIERS)
_W0, _W1 = map(tl.constexpr, WEYL)
_ROUNDS, _LOWER = tl.constexpr(ROUNDS), tl.constexpr(LOWER_WORDS)
_F32_STEP, _F64_STEP = tl.constexpr(2.0**-24), tl.constexpr(2.0**-53)


@inlined
def _philox(k0, k1, c0, c1, c2, c3):
    """Encrypt a counter by Philox-4x32, on uint32."""
    for _ in tl.static_range(_ROUNDS):
        p0, p1 = c0.to(tl.uint64) * _M0, c2.to(tl.uint64) * _M1
        c0, c2 = (p1 >> 32).to(tl.uint32) ^ c1 ^ k0, (p0 >> 32).to(tl.uint32) ^ c3 ^ k1
        c1, c3 = p1.to(tl.uint32), p0.to(tl.uint32)
        k0, k1 = k0 + _W0, k1 + _W1
    return c0, c1, c2, c3


@inlined
def row_words(seed0, seed1, rows, row, inside):
    """Return the words of the seeds of rows, and the numbers of these rows."""
    k0 = tl.load(seed0 + row, mask=inside, other=0).to(tl.uint32, bitcast=True)
    k1 = tl.load(seed1 + row, mask=inside, other=0).to(tl.uint32, bitcast=True)
    return k0, k1, tl.load(rows + row, mask=inside, other=0).to(tl.uint32, bitcast=True)


@inlined
def locate(seed0, seed1, rows, row_count, units, ROWS: tl.constexpr, UNITS: tl.constexpr):
    """Return this program's words of rows `[ROWS, 1]`, counters `[1, UNITS / 4]`, and offsets `[ROWS, UNITS]` with their mask."""
    row, _unit, at, inside = tile_offsets(row_count, units, ROWS, UNITS)
    k0, k1, number = row_words(seed0, seed1, rows, row, row < row_count)
    first = tl.program_id(0) % tl.cdiv(units, UNITS) * (UNITS // 4)
    counter = (first + tl.arange(0, UNITS // 4)).to(tl.uint32)
    return k0[:, None], k1[:, None], number[:, None], counter[None, :], at, inside


@inlined
def _number(word, rest, dtype: tl.constexpr):
    """Return the uniform numbers that words make, as `reference.noise.uniform_from_words` defines them."""
    word = (word.to(tl.uint64) << 21) | (rest >> 11) if dtype == tl.float64 else word >> 8
    return (word | 1).to(dtype) * (_F64_STEP if dtype == tl.float64 else _F32_STEP)


@inlined
def _tile_words(k0, k1, row, stream, counter, draw):
    """Return the four words of each counter side by side, `[ROWS, UNITS]`."""
    x0, x1, x2, x3 = _philox(k0, k1, counter, draw, row, stream)
    x = tl.join(tl.join(x0, x2), tl.join(x1, x3))
    return tl.reshape(x, (x0.shape[0], 4 * x0.shape[1]))


@inlined
def tile_numbers(k0, k1, row, stream, counter, draw, dtype: tl.constexpr):
    """Return the uniform numbers of a tile that `locate` has found, `[ROWS, UNITS]`, in one draw."""
    word = _tile_words(k0, k1, row, stream, counter, draw)
    rest = _tile_words(k0, k1, row, stream, counter + _LOWER, draw) if dtype == tl.float64 else word
    return _number(word, rest, dtype)


@inlined
def _words(k0, k1, row, stream, counter, place, draw):
    """Return the word of each counter that has this place among its four."""
    x0, x1, x2, x3 = _philox(k0, k1, counter, draw, row, stream)
    return tl.where(place < 2, tl.where(place == 0, x0, x1), tl.where(place == 2, x2, x3))


@inlined
def uniform_numbers(k0, k1, row, stream, unit, draw, dtype: tl.constexpr):
    """Return the uniform numbers of any units in one draw; a tile of rows has them cheaper, by `tile_numbers`."""
    counter, place = unit >> 2, unit & 3
    word = _words(k0, k1, row, stream, counter, place, draw)
    rest = _words(k0, k1, row, stream, counter + _LOWER, place, draw) if dtype == tl.float64 else word
    return _number(word, rest, dtype)


@compiled
def _uniform(seed0, seed1, rows, stream, draws, row_count, units, out, ROWS: tl.constexpr, UNITS: tl.constexpr):
    k0, k1, row, counter, at, inside = locate(seed0, seed1, rows, row_count, units, ROWS, UNITS)
    for draw in range(draws):
        tl.store(out + at, tile_numbers(k0, k1, row, stream, counter, draw, out.dtype.element_ty), mask=inside)
        out += row_count.to(tl.int64) * units


def uniform(seed: tuple[Word, Word], rows: Word, stream: int, draws: int, units: int, dtype: torch.dtype) -> Tensor:
    """Compute the same as `reference.uniform`."""
    seed, rows = as_tensors(seed, rows)
    out = torch.empty(draws, len(rows), units, dtype=dtype, device=rows.device)
    return launch_tiles(_uniform, out, out.shape, words=noise_words(seed, rows, stream))
