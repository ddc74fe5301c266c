"""Sums of scores of binary units, weighted by losses."""

from __future__ import annotations

from typing import Any

import torch
import triton.language as tl
from torch import Tensor

from gradest.kernels import reference
from gradest.kernels.cuda.compiler import compiled
from gradest.kernels.cuda.functions import both_sigmoids, sigmoid
from gradest.kernels.cuda.tiles import launch_tiles, tile_offsets
from gradest.kernels.stable import SEQUENTIAL_TERMS, leave_one_out

__all__ = ["antithetic_score", "leave_one_out_score", "logistic_score"]


@compiled
def _logistic_score(
    draws, row_count, units, out, a, h, weights, HIGH: tl.constexpr, ROWS: tl.constexpr, UNITS: tl.constexpr
):
    row, _unit, at, inside = tile_offsets(row_count, units, ROWS, UNITS)
    p, q = both_sigmoids(tl.load(a + at, mask=inside, other=0))
    total = tl.zeros_like(p)
    for _ in range(draws):
        weight = tl.load(weights + row, mask=row < row_count, other=0)[:, None]
        total += weight * tl.where(tl.load(h + at, mask=inside, other=0) == HIGH, q, -p)
        h += row_count.to(tl.int64) * units
        weights += row_count
    tl.store(out + at, total, mask=inside)


@compiled
def _antithetic_score(
    draws, row_count, units, out, a, h, weights, HIGH: tl.constexpr, ROWS: tl.constexpr, UNITS: tl.constexpr
):
    row, _unit, at, inside = tile_offsets(row_count, units, ROWS, UNITS)
    p = sigmoid(tl.abs(tl.load(a + at, mask=inside, other=0)))
    total, count = tl.zeros_like(p), row_count.to(tl.int64) * units
    for _ in range(draws):
        weight = tl.load(weights + row, mask=row < row_count, other=0)[:, None]
        first = (tl.load(h + at, mask=inside, other=0) == HIGH).to(p.dtype)
        second = (tl.load(h + draws * count + at, mask=inside, other=0) == HIGH).to(p.dtype)
        total += weight * (first - second)
        h += count
        weights += row_count
    tl.store(out + at, total * p, mask=inside)


def logistic_score(a: Tensor, h: Tensor, weights: Tensor, high: float) -> Tensor:
    """Compute the same as `reference.logistic_score`."""
    if len(weights) > SEQUENTIAL_TERMS:
        return reference.logistic_score(a, h, weights, high)
    return _launch_score(_logistic_score, a, h, weights, high)


def leave_one_out_score(a: Tensor, h: Tensor, loss: Tensor, high: float) -> Tensor:
    """Compute the same as `reference.leave_one_out_score`."""
    return logistic_score(a, h, leave_one_out(loss), high)


def antithetic_score(a: Tensor, h: Tensor, loss: Tensor, high: float) -> Tensor:
    """Compute the same as `reference.antithetic_score`."""
    at, at_mirror = loss.chunk(2)
    if len(at) > SEQUENTIAL_TERMS:
        return reference.antithetic_score(a, h, loss, high)
    return _launch_score(_antithetic_score, a, h, (at - at_mirror) / len(h), high)


def _launch_score(kernel: Any, a: Tensor, h: Tensor, weights: Tensor, high: float) -> Tensor:
    out, units = torch.empty(a.shape, dtype=a.dtype, device=a.device), a.shape[-1]
    return launch_tiles(kernel, out, (len(weights), a.numel() // max(1, units), units), a, h, weights, HIGH=high)
