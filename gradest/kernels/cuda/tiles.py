"""How work is dealt out: a program has a tile of rows and units, and `launch` starts as many as there are tiles."""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from gradest.kernels import reference
from gradest.kernels.cuda.compiler import IEEE, inlined
from gradest.kernels.reference import Word, signed_word

__all__ = ["TILE", "by_tiles", "launch", "places", "sampled", "words"]

_Words = tuple[Tensor | int, ...]
TILE = 1024  # numbers that a program draws at a time; with 4 warps, 8 a thread, which share the work for a row
_LEAST = 32  # neighbours that a tile is wide, so that memory is read in whole sectors


@inlined
def places(row_count, units, ROWS: tl.constexpr, UNITS: tl.constexpr):
    """This program's rows `[ROWS]` and units `[UNITS]`, and places in memory `[ROWS, UNITS]` with their mask."""
    across = tl.cdiv(units, UNITS)
    program = tl.program_id(0).to(tl.int64)
    row = program // across * ROWS + tl.arange(0, ROWS)
    unit = program % across * UNITS + tl.arange(0, UNITS)
    inside = (row < row_count)[:, None] & (unit < units)[None, :]
    return row, unit, row[:, None] * units + unit[None, :], inside


def sampled(
    kernel: Any,
    seed: tuple[Word, Word],
    rows: Word,
    stream: int,
    draws: int,
    a: Tensor,
    *more: Tensor | int,
    **options: float,
) -> Tensor:
    """Launches a kernel that draws `[draws, *a.shape]`."""
    out = torch.empty(draws, *a.shape, dtype=a.dtype, device=a.device)
    return by_tiles(kernel, out, out.shape, a, *more, words=words(seed, rows, stream), **options)


def words(seed: tuple[Word, Word], rows: Word, stream: int) -> _Words:
    """Seeds and row numbers as tensors, and the stream as a signed word: what a kernel that draws is given first."""
    seed, rows = reference.as_tensors(seed, rows)
    return *seed, rows, signed_word(stream)


def by_tiles(
    kernel: Any, out: Tensor, size: tuple[int, ...], *given: Tensor | int, words: _Words = (), **options: float
) -> Tensor:
    """Launches a kernel of tiles of rows and units; `size` is the number of draws, of rows, and of units."""
    _, row_count, units = size
    width = _width(units)
    height = TILE // width
    programs = triton.cdiv(row_count, height) * triton.cdiv(units, width)
    return launch(kernel, programs, out, (*words, *size, out, *given), **options, ROWS=height, UNITS=width)


def launch(kernel: Any, programs: int, out: Tensor, given: tuple[Tensor | int, ...], **options: float) -> Tensor:
    """Starts so many programs on the device of `out`, which it gives back; none where there is nothing to write."""
    if out.numel():
        with torch.cuda.device_of(out):
            given = tuple(x.detach().contiguous() if isinstance(x, Tensor) else x for x in given)
            kernel[(programs,)](*given, **options, **IEEE)
    return out


def _width(units: int) -> int:
    """How many units a tile is wide: a power of two, of which an eighth at most is idle where that can be had."""
    width: int = min(triton.next_power_of_2(max(1, units)), TILE)
    while width > _LEAST and -units % width > units // 8:
        width //= 2
    return width
