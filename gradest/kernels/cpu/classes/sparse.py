"""Maps of units of several classes to the simplex that set most entries to 0."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numba import uint64
from torch import Tensor

from gradest.kernels import reference
from gradest.kernels.cpu.classes.softmaxes import last_sum
from gradest.kernels.cpu.compilation.compiler import array, compiled_for_short_loops, inlined
from gradest.kernels.cpu.functions import exp, log, sqrt
from gradest.kernels.cpu.tensors import LIKE, empty_as, in_threads, row_major
from gradest.kernels.portable import LANES
from gradest.kernels.reference.sparse import LEAST

__all__ = ["entmax", "top_softmax"]

_MOST_PLACES = 32  # of `top_softmax`: to insert a number among more takes longer than torch's sort


@compiled_for_short_loops
def _top_softmax(at_x: Any, at_out: Any, size: Any, like: Any, first: Any, last: Any, classes: Any, k: Any) -> None:
    """Keep the k largest numbers of a unit, in falling order, as its classes are looked at one after the other."""
    x, out = array(at_x, (size,), like), array(at_out, (size,), like)
    top, place, lanes = np.empty(k, x.dtype), np.empty(k, np.int64), np.empty(LANES, x.dtype)
    zero = x.dtype.type(0)
    for at in range(first * classes, last * classes, classes):
        for i in range(classes):
            here = x[uint64(at + i)]
            out[uint64(at + i)] = zero
            if i < k or here > top[uint64(k - 1)]:
                j = min(i, k - 1)
                while j > 0 and top[uint64(j - 1)] < here:
                    top[uint64(j)], place[uint64(j)] = top[uint64(j - 1)], place[uint64(j - 1)]
                    j -= 1
                top[uint64(j)], place[uint64(j)] = here, at + i
        largest = top[0]
        for j in range(k):
            top[j] = exp(top[j] - largest)
        total = last_sum(top, 0, k, lanes)
        for j in range(k):
            out[uint64(place[j])] = top[j] / total


@inlined
def _sort(x: Any, size: Any) -> None:
    """Sort the first numbers of x so that they fall, by Shell's method, in which those that are far apart change places first."""
    gap = 1
    while gap < size:
        gap = 3 * gap + 1
    while gap > 1:
        gap //= 3
        for i in range(gap, size):
            here, j = x[uint64(i)], i
            while j >= gap and x[uint64(j - gap)] < here:
                x[uint64(j)] = x[uint64(j - gap)]
                j -= gap
            x[uint64(j)] = here


@inlined
def _root(x: Any, size: Any, squared: Any, roots: Any) -> Any:
    """Compute the same as `reference.sparse._root` for the first numbers of x, which fall; those beyond are -1."""
    total, squares, last = 0.0, 0.0, -1
    for i in range(size):
        here, count = x[uint64(i)], np.float64(i + 1)
        total += here
        if squared:
            squares += here * here
            mean = total / count
            spread = 1.0 / count - (squares / count - mean * mean)
            root = mean - sqrt(max(spread, 1e-300)) if spread >= 0.0 else np.inf
        else:
            root = (total - 1.0) / count
        roots[uint64(i)] = root
        last += root < here
    return roots[uint64(max(last, 0))]


@compiled_for_short_loops
def _entmax(
    at_a: Any, at_out: Any, size: Any, like: Any, first: Any, last: Any, classes: Any, squared: Any, logs: Any
) -> None:
    a, out = array(at_a, (size,), like), array(at_out, (size,), like)
    x, near, roots = np.empty(classes, np.float64), np.empty(classes + 1, np.float64), np.empty(classes, np.float64)
    lanes, scale, least = np.empty(LANES, np.float64), 0.5 if squared else 1.0, a.dtype.type(LEAST)
    zero, none = a.dtype.type(0), a.dtype.type(-np.inf)
    for at in range(first * classes, last * classes, classes):
        largest = a[uint64(at)]
        for i in range(1, classes):
            largest = max(largest, a[uint64(at + i)])
        count = 0
        for i in range(classes):
            here = max(scale * (np.float64(a[uint64(at + i)]) - np.float64(largest)), -1.0)
            x[i], near[uint64(count)] = here, here
            count += here > -1.0
        _sort(near, count)
        root = _root(near, count, squared, roots)
        for i in range(classes):
            y = max(x[i] - root, 0.0)
            p = y * y if squared else y
            x[i] = p if p > LEAST else 0.0
        total, y = last_sum(x, 0, classes, lanes), out[at : at + classes]
        for i in range(classes):
            y[i] = a.dtype.type(x[i] / total)
        if logs:
            for i in range(classes):
                y[i] = log(max(y[i], least)) if y[i] > zero else none


def top_softmax(x: Tensor, k: int) -> Tensor:
    """Compute the same as `reference.top_softmax`."""
    classes = x.shape[-1]
    if not 0 < k <= min(classes, _MOST_PLACES):
        return reference.top_softmax(x, k)
    out, x = empty_as(x, *x.shape), row_major(x)
    given = x.data_ptr(), out.data_ptr(), x.numel(), LIKE[x.dtype]
    units = math.prod(x.shape[:-1])
    in_threads(lambda first, last: _top_softmax(*given, first, last, classes, k), units, classes)
    return out


def entmax(a: Tensor, squared: bool, logs: bool) -> Tensor:
    """Compute the same as `reference.entmax`."""
    classes = a.shape[-1]
    if not classes:
        return reference.entmax(a, squared, logs)
    out, a = empty_as(a, *a.shape), row_major(a)
    given = a.data_ptr(), out.data_ptr(), a.numel(), LIKE[a.dtype]
    units = math.prod(a.shape[:-1])
    in_threads(lambda first, last: _entmax(*given, first, last, classes, squared, logs), units, classes)
    return out
