"""How work is divided: each program computes a tile of rows and units, and `launch` starts one program for each tile."""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from gradest.kernels.cuda.compiler import IEEE, inlined
from gradest.kernels.reference.noise import Word, as_tensors, signed_word

__all__ = ["TILE", "launch", "launch_sampler", "launch_tiles", "noise_words", "tile_offsets"]

_Words = tuple[Tensor | int, ...]

TILE = 1024
"""The number of elements of a tile: 8 for each thread of 4 warps, which share the work for a row."""

_LEAST_WIDTH = 32  # so that memory is read in whole sectors


@inlined
def tile_offsets(row_count, units, ROWS: tl.constexpr, UNITS: tl.constexpr):
    """Return this program's rows `[ROWS]` and units `[UNITS]`, and memory offsets `[ROWS, UNITS]` with their mask."""
    across = tl.cdiv(units, UNITS)
    program = tl.program_id(0).to(tl.int64)
    row = program // across * ROWS + tl.arange(0, ROWS)
    unit = program % across * UNITS + tl.arange(0, UNITS)
    inside = (row < row_count)[:, None] & (unit < units)[None, :]
    return row, unit, row[:, None] * units + unit[None, :], inside


def launch_sampler(
    kernel: Any,
    seed: tuple[Word, Word],
    rows: Word,
    stream: int,
    draws: int,
    a: Tensor,
    *more: Tensor | int,
    **options: float,
) -> Tensor:
    """Launch a kernel that draws `[draws, *a.shape]`."""
    out = torch.empty(draws, *a.shape, dtype=a.dtype, device=a.device)
    return launch_tiles(kernel, out, out.shape, a, *more, words=noise_words(seed, rows, stream), **options)


def noise_words(seed: tuple[Word, Word], rows: Word, stream: int) -> _Words:
    """Return the first arguments of a kernel that draws: the words of the seed, the row numbers, and the stream."""
    seed, rows = as_tensors(seed, rows)
    return *seed, rows, signed_word(stream)


def launch_tiles(
    kernel: Any, out: Tensor, size: tuple[int, ...], *given: Tensor | int, words: _Words = (), **options: float
) -> Tensor:
    """Launch a kernel whose tiles are rows and units; `size` is the number of draws, of rows, and of units."""
    _, row_count, units = size
    width = _width(units)
    height = TILE // width
    programs = triton.cdiv(row_count, height) * triton.cdiv(units, width)
    return launch(kernel, programs, out, (*words, *size, out, *given), **options, ROWS=height, UNITS=width)


def launch(kernel: Any, programs: int, out: Tensor, given: tuple[Tensor | int, ...], **options: float) -> Tensor:
    """Start so many programs on the device of `out`, or none if `out` is empty, and return `out`."""
    if out.numel():
        with torch.cuda.device_of(out):
            given = tuple(x.detach().contiguous() if isinstance(x, Tensor) else x for x in given)
            kernel[(programs,)](*given, **options, **IEEE)
    return out


def _width(units: int) -> int:
    """Return the width of a tile: a power of two of at least 4, which is how many units share a counter of the noise.

    If possible, the idle units are at most an eighth of all.
    """
    width: int = min(triton.next_power_of_2(max(4, units)), TILE)
    while width > _LEAST_WIDTH and -units % width > units // 8:
        width //= 2
    return width
