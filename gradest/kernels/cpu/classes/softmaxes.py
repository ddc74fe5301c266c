"""Units of several classes, one-hot and relaxed."""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import types, uint64
from numba.extending import overload
from torch import Tensor

from gradest.kernels.cpu.compilation.compiler import (
    BLOCK,
    compiled,
    compiled_for_short_loops,
    inlined,
)
from gradest.kernels.cpu.functions import exp, log
from gradest.kernels.cpu.noise import locate, noise_scratch, uniforms
from gradest.kernels.cpu.samplers import run_kernel
from gradest.kernels.cpu.tensors import NUMPY, check_size, empty, flat, in_threads
from gradest.kernels.portable import CONSTANTS, LANES
from gradest.kernels.reference.noise import Word

__all__ = [
    "last_sum",
    "one_hot",
    "scaled_softmax",
    "scaled_softmax_pullback",
    "softmax",
    "softmax_backward",
]


def _as_integers(x: Any) -> Any:
    """Return a view of `x` as integers, which have the same order as the numbers if these are positive."""
    raise NotImplementedError


@overload(_as_integers)
def _(x: Any) -> Any:
    kind = np.int32 if x.dtype == types.float32 else np.int64

    def view(x: Any) -> Any:
        return x.view(kind)

    return view


# A unit of a few classes takes less time than a slice or a call, so the loops over its classes count in the whole block; uint64
# keeps numba from testing whether an index is negative.


@inlined
def _largest(x: Any, first: Any, size: Any) -> Any:
    """Return the largest of `size` numbers from `first` on."""
    largest = x[uint64(first)]
    for i in range(first + 1, first + size):
        largest = max(largest, x[uint64(i)])
    return largest


@compiled
def _one_hot(
    words: Any,
    seed0: Any,
    seed1: Any,
    rows: Any,
    stream: Any,
    a: Any,
    out: Any,
    first: Any,
    last: Any,
    classes: Any,
) -> None:
    """Draw the units `first` to `last`, each of several classes, which all lie in one block."""
    block = max(1, BLOCK // classes) * classes
    noise = noise_scratch(block, a)
    w, u = np.empty(block, a.dtype), np.empty(block, a.dtype)
    zero, one = a.dtype.type(0), a.dtype.type(1)
    for at in range(first * classes, last * classes, block):
        size = min(block, last * classes - at)
        place = locate(words, seed0, seed1, stream, a.size // rows, at, at + size, noise)
        for unit in range(0, size, classes):
            largest = _largest(a, at + unit, classes)
            for i in range(unit, unit + classes):
                w[uint64(i)] = largest - a[uint64(at + i)]
        for i in range(size):
            w[i] = exp(w[i])
        for draw in range(len(out)):
            uniforms(noise, place, draw, u[:size])
            for i in range(size):
                u[i] = -log(u[i]) * w[i]
            h = out[draw, at : at + size]
            h[:] = zero
            integers = _as_integers(u)
            for unit in range(0, size, classes):
                least, chosen = integers[uint64(unit)], unit
                for i in range(unit + 1, unit + classes):
                    arrival = integers[uint64(i)]
                    chosen = i if arrival < least else chosen
                    least = min(arrival, least)
                h[uint64(chosen)] = one


@inlined
def last_sum(x: Any, first: Any, size: Any, lanes: Any) -> Any:
    """Compute the same as `portable.last_sum` for `size` numbers from `first` on; `lanes` is scratch."""
    width, half = min(size, LANES), 1
    for i in range(width):
        lanes[uint64(i)] = x[uint64(first + i)]
    for start in range(first + LANES, first + size, LANES):
        for i in range(min(LANES, first + size - start)):
            lanes[uint64(i)] += x[uint64(start + i)]
    while 2 * half < width:
        half *= 2
    while half > 0:
        for i in range(width - half):
            lanes[uint64(i)] += lanes[uint64(half + i)]
        width, half = min(width, half), half // 2
    return lanes[0]


@compiled
def _divide_by_sums(x: Any, classes: Any, total: Any, lanes: Any, out: Any) -> None:
    """Divide the numbers of each unit by their sum; `total`, as long as x, and `lanes` are scratch."""
    for unit in range(0, out.size, classes):
        found = last_sum(x, unit, classes, lanes)
        for i in range(unit, unit + classes):
            total[uint64(i)] = found
    for i in range(out.size):
        out[i] = x[i] / total[i]


@compiled
def _softmax(
    words: Any,
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
    """Draw the units `first` to `last`, as `_one_hot` does."""
    block = max(1, BLOCK // classes) * classes
    noise = noise_scratch(block, a)
    u, total, lanes = np.empty(block, a.dtype), np.empty(block, a.dtype), np.empty(LANES, a.dtype)
    for at in range(first * classes, last * classes, block):
        size = min(block, last * classes - at)
        place = locate(words, seed0, seed1, stream, a.size // rows, at, at + size, noise)
        x = a[at : at + size]
        for draw in range(len(out)):
            uniforms(noise, place, draw, u[:size])
            for i in range(size):
                u[i] = -log(u[i])
            for i in range(size):
                u[i] = (x[i] - log(u[i])) * per_temperature
            for unit in range(0, size, classes):
                largest = _largest(u, unit, classes)
                for i in range(unit, unit + classes):
                    u[uint64(i)] -= largest
            for i in range(size):
                u[i] = exp(u[i])
            _divide_by_sums(u, classes, total, lanes, out[draw, at : at + size])


@compiled
def _scale(a: Any, unit: Any, count: Any, classes: Any, most: Any, u: Any) -> None:
    """Replace the negative Gumbel noise u of `count` units by x = (m + noise)/τ, less the largest of a unit."""
    for j in range(count):
        given, here = (unit + j) * (classes + 1), j * classes
        steep = exp(-min(max(a[uint64(given + classes)], -most), most))
        for i in range(classes):
            u[uint64(here + i)] = a[uint64(given + i)] - u[uint64(here + i)]
        largest = _largest(u, here, classes)
        for i in range(here, here + classes):
            u[uint64(i)] = (u[uint64(i)] - largest) * steep


@compiled
def _scaled_softmax(
    words: Any,
    seed0: Any,
    seed1: Any,
    rows: Any,
    stream: Any,
    a: Any,
    out: Any,
    first: Any,
    last: Any,
    classes: Any,
    most: Any,
) -> None:
    """Draw the units `first` to `last`; in `a`, the logarithm of its temperature follows the logits of each."""
    units, parts = max(1, BLOCK // classes), classes + 1
    noise = noise_scratch(units * classes, a)
    u, total, lanes = np.empty(units * classes, a.dtype), np.empty(units * classes, a.dtype), np.empty(LANES, a.dtype)
    for unit in range(first, last, units):
        count = min(units, last - unit)
        at, size = unit * classes, count * classes
        place = locate(words, seed0, seed1, stream, a.size // (rows * parts) * classes, at, at + size, noise)
        for draw in range(len(out)):
            uniforms(noise, place, draw, u[:size])
            for i in range(size):
                u[i] = log(-log(u[i]))
            _scale(a, unit, count, classes, most, u)
            for i in range(size):
                u[i] = exp(u[i])
            _divide_by_sums(u, classes, total, lanes, out[draw, at : at + size])


@inlined
def _centre(h: Any, at: Any, grad: Any, at_grad: Any, classes: Any, g: Any, y: Any, lanes: Any) -> Any:
    """Write the gradients of a unit, less that of its largest class, to g; return their mean under h. y and lanes are scratch."""
    largest, chosen = h[uint64(at)], 0
    for i in range(1, classes):
        chosen = i if h[uint64(at + i)] > largest else chosen
        largest = max(h[uint64(at + i)], largest)
    grad_of_largest = grad[uint64(at_grad + chosen)]
    for i in range(classes):
        g[i] = grad[uint64(at_grad + i)] - grad_of_largest
        y[i] = h[uint64(at + i)] * g[i]
    return last_sum(y, 0, classes, lanes)


@compiled_for_short_loops
def _softmax_backward(h: Any, grad: Any, out: Any, first: Any, last: Any, classes: Any, per_temperature: Any) -> None:
    """Go back through the units `first` to `last`, each of several classes."""
    g, y, lanes = np.empty(classes, h.dtype), np.empty(classes, h.dtype), np.empty(LANES, h.dtype)
    for at in range(first * classes, last * classes, classes):
        total = _centre(h, at, grad, at, classes, g, y, lanes)
        for i in range(classes):
            out[uint64(at + i)] = h[uint64(at + i)] * (g[i] - total) * per_temperature


@compiled
def _scaled_softmax_pullback(
    words: Any,
    seed0: Any,
    seed1: Any,
    rows: Any,
    stream: Any,
    a: Any,
    grad: Any,
    out: Any,
    first: Any,
    last: Any,
    classes: Any,
    most: Any,
    limit: Any,
) -> None:
    """Draw the units `first` to `last` again, as `_scaled_softmax` does, and go back through them.

    limit: of |x|, beyond which `exp` is constant.
    """
    units, parts = max(1, BLOCK // classes), classes + 1
    block = units * classes
    noise = noise_scratch(block, a)
    x, h, total = np.empty(block, a.dtype), np.empty(block, a.dtype), np.empty(block, a.dtype)
    g, y, lanes = np.empty(classes, a.dtype), np.empty(classes, a.dtype), np.empty(LANES, a.dtype)
    zero = a.dtype.type(0)
    for unit in range(first, last, units):
        count = min(units, last - unit)
        at, size = unit * classes, count * classes
        place = locate(words, seed0, seed1, stream, a.size // (rows * parts) * classes, at, at + size, noise)
        for draw in range(len(out)):
            uniforms(noise, place, draw, x[:size])
            for i in range(size):
                x[i] = log(-log(x[i]))
            _scale(a, unit, count, classes, most, x)
            for i in range(size):
                h[i] = exp(x[i])
            _divide_by_sums(h, classes, total, lanes, h[:size])
            for i in range(size):
                h[i] = zero if x[i] <= -limit else h[i]
            given, found = grad[draw], out[draw]
            for j in range(count):
                here, there = j * classes, (unit + j) * parts
                steep = exp(-min(max(a[uint64(there + classes)], -most), most))
                centre = _centre(h, here, given, at + here, classes, g, y, lanes)
                for i in range(classes):
                    slope = h[uint64(here + i)] * (g[i] - centre)
                    found[uint64(there + i)] = slope * steep
                    y[i] = zero if x[uint64(here + i)] <= -limit else slope * x[uint64(here + i)]
                found[uint64(there + classes)] = -last_sum(y, 0, classes, lanes)


def one_hot(seed: tuple[Word, Word], rows: Word, stream: int, draws: int, a: Tensor, classes: int) -> Tensor:
    """Draw 1 at the class c of each unit whose arrival time -log(u_c) e^(max a - a_c) is least, else 0.

    a is `[rows, units * classes]`; the other arguments are as for `binary`.
    """
    return run_kernel(_one_hot, seed, rows, stream, draws, a, classes, size=classes)


def softmax(
    seed: tuple[Word, Word],
    rows: Word,
    stream: int,
    draws: int,
    a: Tensor,
    classes: int,
    per_temperature: float,
) -> Tensor:
    """Draw softmax((a - log(-log u)) per_temperature) of each unit, for `a` `[rows, units * classes]`; per_temperature is 1/τ."""
    return run_kernel(_softmax, seed, rows, stream, draws, a, classes, NUMPY[a.dtype](per_temperature), size=classes)


def scaled_softmax(
    seed: tuple[Word, Word], rows: Word, stream: int, draws: int, a: Tensor, classes: int, most: float
) -> Tensor:
    """Draw softmax((m - log(-log u)) e^-s) of each unit, with s between ±`most`, `[draws, rows, units * classes]`.

    a is `[rows, units * (classes + 1)]`: the m of each unit, and s. The other arguments are as for `binary`.
    """
    shape = (len(a), a.shape[1] // (classes + 1) * classes)
    options = classes, NUMPY[a.dtype](most)
    return run_kernel(_scaled_softmax, seed, rows, stream, draws, a, *options, size=classes + 1, shape=shape)


def scaled_softmax_pullback(
    seed: tuple[Word, Word], rows: Word, stream: int, draws: int, a: Tensor, grad: Tensor, classes: int, most: float
) -> Tensor:
    """Return h (grad - hᵀ grad) e^-s for the m of each unit, and the sum of -x h (grad - hᵀ grad) for s, `[draws, *a.shape]`.

    x is (m - log(-log u)) e^-s, less its largest, and h its softmax, in which a class counts as 0 if `exp` clamps its x. The
    arguments are as for `scaled_softmax` and `concrete_pullback`.
    """
    check_size(grad, draws * a.numel() // (classes + 1) * classes)
    options = classes, *map(NUMPY[a.dtype], (most, CONSTANTS[a.dtype].limit))
    pulled = (flat(grad, 1),)
    return run_kernel(_scaled_softmax_pullback, seed, rows, stream, draws, a, *options, size=classes + 1, more=pulled)


def softmax_backward(h: Tensor, grad: Tensor, per_temperature: float) -> Tensor:
    """Compute the same as `reference.softmax_backward`."""
    check_size(grad, h.numel())
    out, classes = empty(*h.shape, dtype=h.dtype), h.shape[-1]
    given, options = (flat(h), flat(grad), flat(out)), (classes, NUMPY[h.dtype](per_temperature))
    units = h.numel() // max(1, classes)
    in_threads(lambda first, last: _softmax_backward(*given, first, last, *options), units, classes)
    return out
