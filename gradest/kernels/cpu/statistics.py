"""What is found out about whole tensors: whether they are finite, and moments of their rows."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from gradest.kernels import reference
from gradest.kernels.cpu.compiler import BLOCK, compiled
from gradest.kernels.cpu.tensors import NUMPY, flat, in_threads
from gradest.kernels.portable import CONSTANTS

__all__ = ["all_finite", "moments"]


@compiled
def _largest_bits(bits: Any, first: Any, last: Any, mask: Any) -> Any:
    """The largest of `bits` under `mask`."""
    largest = bits.dtype.type(0)
    x = bits[first:last]
    for i in range(x.size):
        largest = max(largest, x[i] & mask)
    return largest


@compiled
def _add_rows(values: Any, total: Any, first: Any, last: Any) -> None:
    """Adds the rows of `[n, elements]` to `total`, one after the other."""
    for at in range(first, last, BLOCK):
        end = min(last, at + BLOCK)
        y = total[at:end]
        for row in range(len(values)):
            x = values[row, at:end]
            for i in range(y.size):
                y[i] += np.float64(x[i])


@compiled
def _add_squares(values: Any, mean: Any, total: Any, first: Any, last: Any) -> None:
    """Adds the squared distances of the rows from `mean` to `total`, one after the other."""
    for at in range(first, last, BLOCK):
        end = min(last, at + BLOCK)
        m, y = mean[at:end], total[at:end]
        for row in range(len(values)):
            x = values[row, at:end]
            for i in range(y.size):
                apart = np.float64(x[i]) - m[i]
                y[i] += apart * apart


def all_finite(x: Tensor) -> bool:
    """As `reference.all_finite`, but never False where all are finite."""
    if x.dtype not in NUMPY:
        return reference.all_finite(x)
    # the exponents of infinity and NaN are larger than all others
    constants = CONSTANTS[x.dtype]
    bits = flat(x.detach().view(constants.integer))
    kind = bits.dtype.type
    mask, found = kind(torch.iinfo(constants.integer).max), []

    def look(first: int, last: int) -> None:
        found.append(int(_largest_bits(bits, first, last, mask)))

    in_threads(look, bits.size, 1)
    return max(found) < (2 * constants.bias + 1) << constants.mantissa


def moments(parts: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
    """As `reference.moments`."""
    if parts[0].dtype not in NUMPY:
        parts = [part.double() for part in parts]
    values, count = [flat(part, 1) for part in parts], sum(map(len, parts))
    mean, squares = (torch.zeros(parts[0].shape[1:], dtype=torch.float64) for _ in range(2))
    total, around = flat(mean), flat(squares)

    def work(first: int, last: int) -> None:
        for part in values:
            _add_rows(part, total, first, last)
        total[first:last] /= count
        for part in values:
            _add_squares(part, total, around, first, last)

    in_threads(work, total.size, count)
    return mean, squares
