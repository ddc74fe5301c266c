"""Units of several classes, one-hot and relaxed."""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import types
from numba.extending import overload
from torch import Tensor

from gradest.kernels.cpu.compiler import BLOCK, compiled, inlined
from gradest.kernels.cpu.functions import exp, log
from gradest.kernels.cpu.noise import prepare, row_count, uniforms
from gradest.kernels.cpu.tensors import NUMPY, empty, flat, in_threads, sampled
from gradest.kernels.portable import LANES
from gradest.kernels.reference import Word

__all__ = ["one_hot", "softmax", "softmax_backward"]


def _order(x: Any) -> Any:
    """A view of `x` as integers, in which positive numbers have the same order."""
    raise NotImplementedError


@overload(_order)
def _(x: Any) -> Any:
    kind = np.int32 if x.dtype == types.float32 else np.int64

    def view(x: Any) -> Any:
        return x.view(kind)

    return view


@compiled
def _one_hot(
    seed0: Any, seed1: Any, rows: Any, stream: Any, a: Any, out: Any, first: Any, last: Any, classes: Any
) -> None:
    """`first` and `last` count units of several classes, which are in one block all of them."""
    block = max(1, BLOCK // classes) * classes
    keys, where = np.empty((2, block + 1), np.uint32), np.empty((5, block), np.uint32)
    w, u = np.empty(block, a.dtype), np.empty(block, a.dtype)
    zero, one = a.dtype.type(0), a.dtype.type(1)
    for at in range(first * classes, last * classes, block):
        size = min(block, last * classes - at)
        by_row = prepare(seed0, seed1, rows, stream, a.size // row_count(rows), at, at + size, keys, where)
        for unit in range(0, size, classes):
            x, y = a[at + unit : at + unit + classes], w[unit : unit + classes]
            largest = x.max()
            for i in range(classes):
                y[i] = exp(largest - x[i])
        for draw in range(len(out)):
            uniforms(where, by_row, draw, u[:size])
            for i in range(size):
                u[i] = -log(u[i]) * w[i]
            h = out[draw, at : at + size]
            h[:] = zero
            order = _order(u)
            for unit in range(0, size, classes):
                # the least, and then where it is: each is a loop that vectorises, which looking for both at once is not
                arrivals = order[unit : unit + classes]
                least = arrivals[0]
                for i in range(classes):
                    least = min(least, arrivals[i])
                index = np.int32(classes)
                for i in range(classes):
                    index = min(index, np.int32(i) if arrivals[i] == least else np.int32(classes))
                h[unit + index] = one


@inlined
def _last_sum(x: Any, lanes: Any) -> Any:
    """As `portable.last_sum`; `lanes` is scratch."""
    width = min(x.size, LANES)
    lane = lanes[:width]
    for i in range(width):
        lane[i] = x[i]
    for start in range(LANES, x.size, LANES):
        more = x[start : start + LANES]
        for i in range(more.size):
            lane[i] += more[i]
    half = LANES
    while half > 1:
        half //= 2
        upper = lanes[half:width] if half < width else lanes[:0]
        for i in range(upper.size):
            lane[i] += upper[i]
        width = min(width, half)
    return lanes[0]


@compiled
def _softmax(
    seed0: Any,
    seed1: Any,
    rows: Any,
    stream: Any,
    a: Any,
    out: Any,
    first: Any,
    last: Any,
    classes: Any,
    per_temperature: Any,
) -> None:
    """As for `_one_hot`."""
    block = max(1, BLOCK // classes) * classes
    keys, where = np.empty((2, block + 1), np.uint32), np.empty((5, block), np.uint32)
    u, lanes = np.empty(block, a.dtype), np.empty(LANES, a.dtype)
    for at in range(first * classes, last * classes, block):
        size = min(block, last * classes - at)
        by_row = prepare(seed0, seed1, rows, stream, a.size // row_count(rows), at, at + size, keys, where)
        x = a[at : at + size]
        for draw in range(len(out)):
            uniforms(where, by_row, draw, u[:size])
            for i in range(size):
                u[i] = -log(u[i])
            for i in range(size):
                u[i] = (x[i] - log(u[i])) * per_temperature
            for unit in range(0, size, classes):
                y = u[unit : unit + classes]
                largest = y.max()
                for i in range(classes):
                    y[i] -= largest
            for i in range(size):
                u[i] = exp(u[i])
            h = out[draw, at : at + size]
            for unit in range(0, size, classes):
                y, z = u[unit : unit + classes], h[unit : unit + classes]
                total = _last_sum(y, lanes)
                for i in range(classes):
                    z[i] = y[i] / total


@compiled
def _softmax_backward(h: Any, grad: Any, out: Any, first: Any, last: Any, classes: Any, per_temperature: Any) -> None:
    """`first` and `last` count units of several classes."""
    g, y, lanes = np.empty(classes, h.dtype), np.empty(classes, h.dtype), np.empty(LANES, h.dtype)
    for at in range(first * classes, last * classes, classes):
        x, z = h[at : at + classes], out[at : at + classes]
        from_here = grad[at + x.argmax()]
        for i in range(classes):
            g[i] = grad[at + i] - from_here
            y[i] = x[i] * g[i]
        total = _last_sum(y, lanes)
        for i in range(classes):
            z[i] = x[i] * (g[i] - total) * per_temperature


def one_hot(seed: tuple[Word, Word], rows: Word, stream: int, draws: int, a: Tensor, classes: int) -> Tensor:
    """One at the class c of each unit where -log(u_c) e^(max a - a_c) is least, else 0, for `a` `[rows, units * classes]`."""
    return sampled(_one_hot, seed, rows, stream, draws, a, classes, size=classes)


def softmax(
    seed: tuple[Word, Word],
    rows: Word,
    stream: int,
    draws: int,
    a: Tensor,
    classes: int,
    per_temperature: float,
) -> Tensor:
    """softmax((a - log(-log u)) per_temperature) of each unit, for `a` `[rows, units * classes]`."""
    return sampled(_softmax, seed, rows, stream, draws, a, classes, NUMPY[a.dtype](per_temperature), size=classes)


def softmax_backward(h: Tensor, grad: Tensor, per_temperature: float) -> Tensor:
    """As `reference.softmax_backward`."""
    out, classes = empty(*h.shape, dtype=h.dtype), h.shape[-1]
    given, options = (flat(h), flat(grad), flat(out)), (classes, NUMPY[h.dtype](per_temperature))
    units = h.numel() // max(1, classes)
    in_threads(lambda first, last: _softmax_backward(*given, first, last, *options), units, classes)
    return out
