"""Sums of scores of binary units, weighted by losses."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from torch import Tensor

from gradest.kernels import reference
from gradest.kernels.cpu.compilation.compiler import BLOCK, array, compiled, inlined
from gradest.kernels.cpu.functions import both_sigmoids, sigmoids
from gradest.kernels.cpu.tensors import NUMPY, empty_as, in_threads, row_major
from gradest.kernels.stable import SEQUENTIAL_TERMS

__all__ = ["antithetic_score", "leave_one_out_score", "logistic_score"]


@inlined
def _arrays(a: Any, h: Any, of_points: Any, out: Any, points: Any, rows: Any, size: Any, like: Any) -> Any:
    """Return `a` `[size]`, `h` `[points, size]`, `of_points` `[points, rows]` and `out` `[size]`, given their addresses."""
    return (
        array(a, (size,), like),
        array(h, (points, size), like),
        array(of_points, (points, rows), like),
        array(out, (size,), like),
    )


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
    magnitudes, p, power = np.empty(BLOCK, a.dtype), np.empty(BLOCK, a.dtype), np.empty(BLOCK, a.dtype)
    zero, one = a.dtype.type(0), a.dtype.type(1)
    units, pairs, count = a.size // loss.shape[1], len(loss) // 2, a.dtype.type(len(loss))
    at = first
    while at < last:
        row = at // units
        size = min(BLOCK, (row + 1) * units - at, last - at)
        x, total, magnitude = a[at : at + size], out[at : at + size], magnitudes[:size]
        for i in range(size):
            magnitude[i] = abs(x[i])
        sigmoids(magnitude, p, power)
        for k in range(pairs):
            weight = (loss[k, row] - loss[pairs + k, row]) / count
            point, mirror = h[k, at : at + size], h[pairs + k, at : at + size]
            if k == 0:
                for i in range(size):
                    total[i] = zero
            for i in range(size):
                total[i] += weight * ((one if point[i] == high else zero) - (one if mirror[i] == high else zero))
        for i in range(size):
            total[i] *= p[i]
        at += size


def logistic_score(a: Tensor, h: Tensor, weights: Tensor, high: float) -> Tensor:
    """Compute the same as `reference.logistic_score`."""
    if not 0 < h.shape[0] <= SEQUENTIAL_TERMS:
        return reference.logistic_score(a, h, weights, high)
    return _run_score(_logistic_score, a, h, weights, high)


def leave_one_out_score(a: Tensor, h: Tensor, loss: Tensor, high: float) -> Tensor:
    """Compute the same as `reference.leave_one_out_score`."""
    if h.shape[0] > SEQUENTIAL_TERMS:
        return reference.leave_one_out_score(a, h, loss, high)
    return _run_score(_leave_one_out_score, a, h, loss, high)


def antithetic_score(a: Tensor, h: Tensor, loss: Tensor, high: float) -> Tensor:
    """Compute the same as `reference.antithetic_score`."""
    if not 0 < h.shape[0] <= 2 * SEQUENTIAL_TERMS:
        return reference.antithetic_score(a, h, loss, high)
    return _run_score(_antithetic_score, a, h, loss, high)


def _run_score(kernel: Callable[..., None], a: Tensor, h: Tensor, of_points: Tensor, high: float) -> Tensor:
    out, size = empty_as(a, *a.shape), a.numel()
    points = h.shape[0]
    if size:
        a, h, of_points = row_major(a), row_major(h), row_major(of_points)
        rows, value = of_points.numel() // points, NUMPY[a.dtype](high)
        given = a.data_ptr(), h.data_ptr(), of_points.data_ptr(), out.data_ptr(), points, rows
        in_threads(lambda first, last: kernel(*given, first, last, size, value), size, points)
    return out
