"""Writes random words to standard output, until nobody reads them: `python -m tests.kernels.words ORDER | dieharder -g 200 -a`.

ORDER is the coordinate of the noise that changes from one word to the next. A number after it is how many rounds Philox has, for
"counters" alone.
"""

from __future__ import annotations

import itertools
import sys
from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from gradest.kernels.reference.noise import ROUNDS, philox
from gradest.random import Key

__all__ = ["ORDERS"]

SIDE = 1 << 10  # of the blocks, squares of numbers


def units(block: int) -> Tensor:
    return Key(1, torch.tensor(block)).uniform((), (SIDE * SIDE,), dtype=torch.float64)


def rows(block: int) -> Tensor:
    return Key(3, counted(block)).uniform((SIDE,), (SIDE,), dtype=torch.float64)[0].T


def draws(block: int) -> Tensor:
    return Key(4, torch.tensor(block)).uniform((), (SIDE,), SIDE, dtype=torch.float64).T


def streams(block: int) -> Tensor:
    keys = [Key(5, stream=int(stream)) for stream in counted(block)]
    return torch.stack([key.uniform((), (SIDE,), dtype=torch.float64)[0] for key in keys], -1)


def seeds(block: int) -> Tensor:
    return Key(counted(block), torch.zeros(SIDE, dtype=torch.int64)).uniform((SIDE,), (SIDE,), dtype=torch.float64)[0].T


def counted(block: int) -> Tensor:
    return torch.arange(block * SIDE, (block + 1) * SIDE)


def first_bits(numbers: Callable[[int], Tensor]) -> Callable[[int], Tensor]:
    """The 32 bits with which numbers begin."""
    return lambda block: (numbers(block) * 2.0**32).to(torch.int64)


def last_bits(block: int) -> Tensor:
    """16 of the 20 bits after those, with which a float64 number ends; two make a word."""
    half = (units(block).flatten() * 2.0**32 % 1 * 2.0**16).to(torch.int64)
    return half[::2] << 16 | half[1::2]


def counters(block: int, rounds: int = ROUNDS) -> Tensor:
    """The four words of counters that count up in the unit."""
    zero = torch.zeros((), dtype=torch.int64)
    first = torch.arange(block * SIDE * SIDE // 4, (block + 1) * SIDE * SIDE // 4)
    return torch.stack(torch.broadcast_tensors(*philox((zero, zero), (first, zero, zero, zero), rounds)), -1)


ORDERS = {f.__name__: first_bits(f) for f in (units, rows, draws, streams, seeds)} | {
    "last_bits": last_bits,
    "counters": counters,
}


def main(order: str, *rounds: str) -> Iterator[bytes]:
    for block in itertools.count():
        yield ORDERS[order](block, *map(int, rounds)).to(torch.uint32).numpy().tobytes()


if __name__ == "__main__":
    try:
        for words in main(*sys.argv[1:]):
            sys.stdout.buffer.write(words)
    except BrokenPipeError:
        sys.stderr.close()  # else the interpreter would complain once more at its end
