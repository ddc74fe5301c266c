"""Checks and moments of whole tensors."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import reduce
from operator import add

import torch
from torch import Tensor

from gradest.kernels.stable import NARROW_DTYPES

__all__ = ["all_finite", "moments"]


def all_finite(x: Tensor) -> bool:
    """Tell whether no entry is infinite or NaN. The answer may be False for finite entries near the largest of the format.

    The sum is finite only if all its terms are, and takes a tenth of the time of testing each entry.
    """
    return math.isfinite(x.sum(dtype=torch.float32 if x.dtype in NARROW_DTYPES else None).item())


def moments(parts: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
    """Return the mean of all rows of parts `[n, ...]`, and the sum of squared distances from it, in float64.

    Rows are added one after the other, so the bits do not depend on how the rows are divided into parts.
    """
    rows = [row.double() for part in parts for row in part.unbind()]
    mean = reduce(add, rows) / len(rows)
    return mean, reduce(add, ((row - mean) * (row - mean) for row in rows))
