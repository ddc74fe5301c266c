"""Checks and moments of whole tensors."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from gradest.kernels import reference
from gradest.kernels.cpu.compilation.compiler import BLOCK, compiled
from gradest.kernels.cpu.tensors import NUMPY, flat, in_threads
from gradest.kernels.portable import CONSTANTS

__all__ = ["all_finite", "moments"]

_INFINITY = {dtype: (c.integer, (2 * c.bias + 1) << c.mantissa) for dtype, c in CONSTANTS.items()}
_INFINITY |= {torch.bfloat16: (torch.int16, 0x7F80), torch.float16: (torch.int16, 0x7C00)}
"""The dtype of the bits of each format, and those of its infinity."""


@compiled
def _largest_bits(bits: Any, first: Any, last: Any, mask: Any) -> Any:
    """Return the largest of `bits`, each combined with `mask`."""
    largest = bits.dtype.type(0)
    x = bits[first:last]
    for i in range(x.size):
        largest = max(largest, x[i] & mask)
    return largest


@compiled
def _add_rows(values: Any, total: Any, first: Any, last: Any) -> None:
    """Add the rows of `[n, elements]` to `total`, one after the other."""
    for at in range(first, last, BLOCK):
        end = min(last, at + BLOCK)
        y = total[at:end]
        for row in range(len(values)):
            x = values[row, at:end]
            for i in range(y.size):
                y[i] += np.float64(x[i])


@compiled
def _add_squares(values: Any, mean: Any, total: Any, first: Any, last: Any) -> None:
    """Add the squared distances of the rows from `mean` to `total`, one after the other."""
    for at in range(first, last, BLOCK):
        end = min(last, at + BLOCK)
        m, y = mean[at:end], total[at:end]
        for row in range(len(values)):
            x = values[row, at:end]
            for i in range(y.size):
                distance = np.float64(x[i]) - m[i]
                y[i] += distance * distance


def all_finite(x: Tensor) -> bool:
    """Tell as `reference.all_finite` whether no entry is infinite or NaN, but exactly."""
    if x.dtype not in _INFINITY:
        return reference.all_finite(x)
    # as integers without the sign, infinity and NaN are larger than all finite numbers, for they have the largest exponent
    integer, infinity = _INFINITY[x.dtype]
    bits = flat(x.detach().view(integer))
    kind = bits.dtype.type
    mask, largest = kind(torch.iinfo(integer).max), []

    def search(first: int, last: int) -> None:
        largest.append(int(_largest_bits(bits, first, last, mask)))

    in_threads(search, bits.size, 1)
    return max(largest) < infinity


def moments(parts: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
    """Compute the same as `reference.moments`."""
    if parts[0].dtype not in NUMPY:
        parts = [part.double() for part in parts]
    values, count = [flat(part, 1) for part in parts], sum(map(len, parts))
    mean, squares = (torch.zeros(parts[0].shape[1:], dtype=torch.float64, device="cpu") for _ in range(2))
    total, around = flat(mean), flat(squares)

    def work(first: int, last: int) -> None:
        for part in values:
            _add_rows(part, total, first, last)
        total[first:last] /= count
        for part in values:
            _add_squares(part, total, around, first, last)

    in_threads(work, total.size, count)
    return mean, squares
