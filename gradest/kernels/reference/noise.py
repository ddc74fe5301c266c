"""The counter-based generator: Philox-4x32 (Salmon et al., 2011) on int64 tensors, and uniform numbers from its words."""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = [
    "LOWER_WORDS",
    "MULTIPLIERS",
    "ROUNDS",
    "WEYL",
    "Word",
    "as_tensors",
    "philox",
    "signed_word",
    "uniform",
    "uniform_from_words",
]

Word = Tensor | int
"""One 32-bit word for each row: an int32 tensor `[rows]`, or an int.

As a word of the seed an int holds for all rows. As row numbers an int n stands for n rows that count up from 0.
"""

ROUNDS = 7
"""How often Philox mixes a counter."""

MULTIPLIERS = 0xD2511F53, 0xCD9E8D57
"""Philox's multipliers of the first and third word of a counter."""

WEYL = 0x9E3779B9, 0xBB67AE85
"""What Philox adds to the words of the key after each round."""

LOWER_WORDS = 1 << 31
"""What is added to the number of a counter for the words with which float64 numbers end."""

_MASK32 = 0xFFFFFFFF


def signed_word(value: int) -> int:
    """Convert a 32-bit pattern to the signed integer with these bits, which is how torch stores it."""
    value &= _MASK32
    return value - (1 << 32) if value >> 31 else value


def philox(
    key: tuple[Tensor, Tensor], counter: tuple[Tensor, Tensor, Tensor, Tensor], rounds: int = ROUNDS
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Encrypt counters by Philox-4x32 under keys, on int64 tensors of 32-bit words that broadcast together."""
    (k0, k1), (c0, c1, c2, c3) = key, counter
    for turn in range(rounds):
        p0, p1 = c0 * MULTIPLIERS[0], c2 * MULTIPLIERS[1]  # all 64 bits, because torch's int64 wraps around
        upper0, upper1 = (p0 >> 32) & _MASK32, (p1 >> 32) & _MASK32
        c0 = upper1 ^ c1 ^ ((k0 + turn * WEYL[0]) & _MASK32)
        c2 = upper0 ^ c3 ^ ((k1 + turn * WEYL[1]) & _MASK32)
        c1, c3 = p1 & _MASK32, p0 & _MASK32
    return c0, c1, c2, c3


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

    The words of units 4 i to 4 i + 3 are Philox(seed, (i, draw, row, stream)), one for each; for float64 each of these units has
    a second word, from Philox(seed, (i + 2**31, draw, row, stream)).
    """
    seed, rows = as_tensors(seed, rows)
    k0, k1, row = (word.to(torch.int64)[:, None] & _MASK32 for word in (*seed, rows))
    counters = torch.arange((units + 3) // 4, device=rows.device)
    draw = torch.arange(draws, device=rows.device)[:, None, None]
    last = torch.full_like(row, stream)

    def words(first: int) -> Tensor:
        x = torch.stack(philox((k0, k1), (counters + first, draw, row, last)), -1)
        return x.flatten(-2)[..., :units]

    return uniform_from_words(words(0), words(LOWER_WORDS) if dtype == torch.float64 else None)


def uniform_from_words(word: Tensor, rest: Tensor | None = None) -> Tensor:
    """Convert random 32-bit words to uniform numbers in the open interval (0, 1): float32, or float64 if `rest` is given.

    float32 takes the upper 24 bits of a word; float64 takes 53 bits, the 32 of `word` and 21 of `rest`. The lowest bit that is
    kept is always set, so the numbers are odd multiples of 2**-24 or 2**-53: exactly representable and never 0 or 1, and 1 - u is
    exact and as likely as u.
    """
    if rest is not None:
        return (((word << 21) | (rest >> 11)) | 1).to(torch.float64) * 2.0**-53
    return ((word >> 8) | 1).to(torch.float32) * 2.0**-24
