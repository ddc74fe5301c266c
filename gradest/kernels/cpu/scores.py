"""Sums of scores of binary units, weighted by losses."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from torch import Tensor

from gradest.kernels import reference
from gradest.kernels.cpu.compiler import BLOCK, array, compiled, inlined
from gradest.kernels.cpu.functions import both_sigmoids, sigmoids
from gradest.kernels.cpu.tensors import NUMPY, empty, in_threads, row_major

__all__ = ["antithetic_score", "leave_one_out_score", "logistic_score"]


@inlined
def _arrays(a: Any, h: Any, of_points: Any, out: Any, points: Any, rows: Any, size: Any, kind: Any) -> Any:
    """`a` `[size]`, `h` `[points, size]`, `of_points` `[points, rows]` and `out` `[size]`, which come as addresses."""
    many, few = (points, size), (points, rows)
    return array(a, (size,), kind), array(h, many, kind), array(of_points, few, kind), array(out, (size,), kind)


@compiled
def _add_scores(a: Any, h: Any, weights: Any, out: Any, first: Any, last: Any, high: Any) -> None:
    p, q, power = np.empty(BLOCK, a.dtype), np.empty(BLOCK, a.dtype), np.empty(BLOCK, a.dtype)
    units = a.size // weights.shape[1]
    at = first
    while at < last:
        row = at // units
        size = min(BLOCK, (row + 1) * units - at, last - at)
        both_sigmoids(a[at : at + size], p, q, power)
        total = out[at : at + size]
        for k in range(len(h)):
            weight, x = weights[k, row], h[k, at : at + size]
            if k == 0:
                for i in range(size):
                    total[i] = weight * (q[i] if x[i] == high else -p[i])
            else:
                for i in range(size):
                    total[i] += weight * (q[i] if x[i] == high else -p[i])
        at += size


@compiled
def _logistic_score(
    at_a: Any,
    at_h: Any,
    at_weights: Any,
    at_out: Any,
    points: Any,
    rows: Any,
    first: Any,
    last: Any,
    size: Any,
    high: Any,
) -> None:
    a, h, weights, out = _arrays(at_a, at_h, at_weights, at_out, points, rows, size, high)
    _add_scores(a, h, weights, out, first, last, high)


@compiled
def _leave_one_out_score(
    at_a: Any, at_h: Any, at_loss: Any, at_out: Any, points: Any, rows: Any, first: Any, last: Any, size: Any, high: Any
) -> None:
    a, h, loss, out = _arrays(at_a, at_h, at_loss, at_out, points, rows, size, high)
    count, units, weights = a.dtype.type(len(loss)), a.size // loss.shape[1], np.empty_like(loss)
    for row in range(first // units, (last - 1) // units + 1):
        mean = loss[0, row]
        for k in range(1, len(loss)):
            mean += loss[k, row]
        mean /= count
        for k in range(len(loss)):
            weights[k, row] = (loss[k, row] - mean) / (count - a.dtype.type(1))
    _add_scores(a, h, weights, out, first, last, high)


@compiled
def _antithetic_score(
    at_a: Any, at_h: Any, at_loss: Any, at_out: Any, points: Any, rows: Any, first: Any, last: Any, size: Any, high: Any
) -> None:
    a, h, loss, out = _arrays(at_a, at_h, at_loss, at_out, points, rows, size, high)
    size_of, p, power = np.empty(BLOCK, a.dtype), np.empty(BLOCK, a.dtype), np.empty(BLOCK, a.dtype)
    zero, one = a.dtype.type(0), a.dtype.type(1)
    units, pairs, count = a.size // loss.shape[1], len(loss) // 2, a.dtype.type(len(loss))
    at = first
    while at < last:
        row = at // units
        size = min(BLOCK, (row + 1) * units - at, last - at)
        x, total, magnitude = a[at : at + size], out[at : at + size], size_of[:size]
        for i in range(size):
            magnitude[i] = abs(x[i])
        sigmoids(magnitude, p, power)
        for k in range(pairs):
            weight = (loss[k, row] - loss[pairs + k, row]) / count
            one_of, other = h[k, at : at + size], h[pairs + k, at : at + size]
            if k == 0:
                for i in range(size):
                    total[i] = zero
            for i in range(size):
                total[i] += weight * ((one if one_of[i] == high else zero) - (one if other[i] == high else zero))
        for i in range(size):
            total[i] *= p[i]
        at += size


def logistic_score(a: Tensor, h: Tensor, weights: Tensor, high: float) -> Tensor:
    """As `reference.logistic_score`."""
    if len(h) > reference.FEW or not len(h):
        return reference.logistic_score(a, h, weights, high)
    return _scored(_logistic_score, a, h, weights, high)


def leave_one_out_score(a: Tensor, h: Tensor, loss: Tensor, high: float) -> Tensor:
    """As `reference.leave_one_out_score`."""
    if len(h) > reference.FEW:
        return reference.leave_one_out_score(a, h, loss, high)
    return _scored(_leave_one_out_score, a, h, loss, high)


def antithetic_score(a: Tensor, h: Tensor, loss: Tensor, high: float) -> Tensor:
    """As `reference.antithetic_score`."""
    if len(h) > 2 * reference.FEW or not len(h):
        return reference.antithetic_score(a, h, loss, high)
    return _scored(_antithetic_score, a, h, loss, high)


def _scored(kernel: Callable[..., None], a: Tensor, h: Tensor, of_points: Tensor, high: float) -> Tensor:
    out, size = empty(*a.shape, dtype=a.dtype), a.numel()
    tensors = row_major(a), row_major(h), row_major(of_points), out
    if size:
        rows, value = of_points.numel() // len(h), NUMPY[a.dtype](high)
        given = *(x.data_ptr() for x in tensors), len(h), rows
        in_threads(lambda first, last: kernel(*given, first, last, size, value), size, len(h))
    return out
