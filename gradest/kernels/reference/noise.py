"""The counter-based generator: Threefry-2x32 (Salmon et al., 2011) on int32 tensors, and uniform numbers from its words."""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["Word", "as_tensors", "signed_word", "threefry", "uniform", "uniform_from_words"]

Word = Tensor | int
"""One 32-bit word for each row: an int32 tensor `[rows]`, or an int.

As a word of the seed an int holds for all rows. As row numbers an int n stands for n rows that count up from 0.
"""

_MASK32 = 0xFFFFFFFF
_ROTATIONS = ((13, 15, 26, 6), (17, 29, 16, 24))


def _rotate_left(x: Tensor, by: int) -> Tensor:
    # >> on a signed word copies the sign bit, hence the mask
    return (x << by) | ((x >> (32 - by)) & ((1 << by) - 1))


def signed_word(value: int) -> int:
    """Convert a 32-bit pattern to the signed integer with these bits, which is how torch stores it."""
    value &= _MASK32
    return value - (1 << 32) if value >> 31 else value


def threefry(key: tuple[Tensor, Tensor], counter: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
    """Encrypt counters by Threefry-2x32 with 20 rounds, on int32 tensors that hold 32-bit patterns and broadcast together."""
    schedule = (key[0], key[1], key[0] ^ key[1] ^ signed_word(0x1BD11BDA))
    x0 = counter[0] + schedule[0]
    x1 = counter[1] + schedule[1]
    for block in range(5):
        for by in _ROTATIONS[block % 2]:
            x0 = x0 + x1
            x1 = _rotate_left(x1, by) ^ x0
        x0 = x0 + schedule[(block + 1) % 3]
        x1 = x1 + (schedule[(block + 2) % 3] + (block + 1))
    return x0, x1


def as_tensors(
    seed: tuple[Word, Word], rows: Word, device: torch.device | str = "cpu"
) -> tuple[tuple[Tensor, Tensor], Tensor]:
    """Expand the two words of the seed and the row numbers to int32 tensors `[rows]`."""
    if isinstance(rows, int):
        rows = torch.arange(rows, dtype=torch.int32, device=device)
    first, second = (torch.full_like(rows, signed_word(word)) if isinstance(word, int) else word for word in seed)
    return (first, second), rows


def uniform(seed: tuple[Word, Word], rows: Word, stream: int, draws: int, units: int, dtype: torch.dtype) -> Tensor:
    """Draw uniform numbers `[draws, rows, units]` on (0, 1), float32 or float64.

    A row's key is Threefry(seed, (row, stream)); the two words of a number are Threefry(key, (unit, draw)).
    """
    seed, rows = as_tensors(seed, rows)
    word = torch.tensor(signed_word(stream), dtype=torch.int32, device=rows.device)
    key0, key1 = (key[:, None] for key in threefry(seed, (rows, word)))
    unit = torch.arange(units, dtype=torch.int32, device=rows.device)
    draw = torch.arange(draws, dtype=torch.int32, device=rows.device)[:, None, None]
    return uniform_from_words(*threefry((key0, key1), (unit, draw)), dtype)


def uniform_from_words(x0: Tensor, x1: Tensor, dtype: torch.dtype) -> Tensor:
    """Convert two random int32 words to a uniform number in the open interval (0, 1).

    float32 takes the upper 24 bits of x0; float64 takes 53 bits, 32 of x0 and 21 of x1. The lowest bit that is kept is always
    set, so the numbers are odd multiples of 2**-24 or 2**-53: exactly representable and never 0 or 1, and 1 - u is exact and as
    likely as u.
    """
    if dtype == torch.float64:
        upper, lower = x0.to(torch.int64) & _MASK32, (x1 >> 11) & 0x1FFFFF
        return (((upper << 21) | lower) | 1).to(torch.float64) * 2.0**-53
    return (((x0 >> 8) & 0xFFFFFF) | 1).to(torch.float32) * 2.0**-24
