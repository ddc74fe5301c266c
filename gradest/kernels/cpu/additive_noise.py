"""Units whose noise is added to their pre-activation, logistic or normal, forward and back."""

from __future__ import annotations

from typing import Any

import numpy as np
from torch import Tensor

from gradest.kernels.cpu.compiler import BLOCK, compiled
from gradest.kernels.cpu.functions import both_sigmoids, log, ndtri, sigmoids
from gradest.kernels.cpu.noise import prepare, row_count, uniforms
from gradest.kernels.cpu.tensors import NUMPY, flat, sampled
from gradest.kernels.reference import Word

__all__ = ["concrete", "concrete_pullback", "normal", "normal_pullback", "rectified"]


@compiled
def _rectified(seed0: Any, seed1: Any, rows: Any, stream: Any, a: Any, out: Any, first: Any, last: Any) -> None:
    keys, where = np.empty((2, BLOCK + 1), np.uint32), np.empty((5, BLOCK), np.uint32)
    zero, one = a.dtype.type(0), a.dtype.type(1)
    u = np.empty(BLOCK, a.dtype)
    for at in range(first, last, BLOCK):
        size = min(BLOCK, last - at)
        by_row = prepare(seed0, seed1, rows, stream, a.size // row_count(rows), at, at + size, keys, where)
        x = a[at : at + size]
        for draw in range(len(out)):
            uniforms(where, by_row, draw, u[:size])
            h = out[draw, at : at + size]
            for i in range(size):
                z = x[i] + log(u[i] / (one - u[i]))
                h[i] = zero if z < zero else z


@compiled
def _normal(
    seed0: Any, seed1: Any, rows: Any, stream: Any, a: Any, out: Any, first: Any, last: Any, std: Any, shape: Any
) -> None:
    keys, where = np.empty((2, BLOCK + 1), np.uint32), np.empty((5, BLOCK), np.uint32)
    zero = a.dtype.type(0)
    u, power = np.empty(BLOCK, a.dtype), np.empty(BLOCK, a.dtype)
    for at in range(first, last, BLOCK):
        size = min(BLOCK, last - at)
        by_row = prepare(seed0, seed1, rows, stream, a.size // row_count(rows), at, at + size, keys, where)
        x = a[at : at + size]
        for draw in range(len(out)):
            uniforms(where, by_row, draw, u[:size])
            h = out[draw, at : at + size]
            for i in range(size):
                u[i] = x[i] + std * ndtri(u[i])
            if shape == 2:
                sigmoids(u[:size], h, power)
            else:
                for i in range(size):
                    h[i] = zero if shape == 1 and u[i] < zero else u[i]


@compiled
def _concrete(
    seed0: Any,
    seed1: Any,
    rows: Any,
    stream: Any,
    a: Any,
    out: Any,
    first: Any,
    last: Any,
    per_temperature: Any,
    lower: Any,
    width: Any,
) -> None:
    keys, where = np.empty((2, BLOCK + 1), np.uint32), np.empty((5, BLOCK), np.uint32)
    zero, one = a.dtype.type(0), a.dtype.type(1)
    u, s, power = np.empty(BLOCK, a.dtype), np.empty(BLOCK, a.dtype), np.empty(BLOCK, a.dtype)
    for at in range(first, last, BLOCK):
        size = min(BLOCK, last - at)
        by_row = prepare(seed0, seed1, rows, stream, a.size // row_count(rows), at, at + size, keys, where)
        x = a[at : at + size]
        for draw in range(len(out)):
            uniforms(where, by_row, draw, u[:size])
            for i in range(size):
                u[i] = (x[i] + log(u[i] / (one - u[i]))) * per_temperature
            sigmoids(u[:size], s, power)
            h = out[draw, at : at + size]
            for i in range(size):
                h[i] = min(max(lower + width * s[i], zero), one)


@compiled
def _normal_pullback(
    seed0: Any, seed1: Any, rows: Any, stream: Any, a: Any, grad: Any, out: Any, first: Any, last: Any, std: Any
) -> None:
    keys, where = np.empty((2, BLOCK + 1), np.uint32), np.empty((5, BLOCK), np.uint32)
    u, p = np.empty(BLOCK, a.dtype), np.empty(BLOCK, a.dtype)
    q, power = np.empty(BLOCK, a.dtype), np.empty(BLOCK, a.dtype)
    for at in range(first, last, BLOCK):
        size = min(BLOCK, last - at)
        by_row = prepare(seed0, seed1, rows, stream, a.size // row_count(rows), at, at + size, keys, where)
        x = a[at : at + size]
        for draw in range(len(out)):
            uniforms(where, by_row, draw, u[:size])
            for i in range(size):
                u[i] = x[i] + std * ndtri(u[i])
            both_sigmoids(u[:size], p, q, power)
            g, y = grad[draw, at : at + size], out[draw, at : at + size]
            for i in range(size):
                y[i] = g[i] * (p[i] * q[i])


@compiled
def _concrete_pullback(
    seed0: Any,
    seed1: Any,
    rows: Any,
    stream: Any,
    a: Any,
    grad: Any,
    out: Any,
    first: Any,
    last: Any,
    per_temperature: Any,
    height: Any,
    lower: Any,
    width: Any,
) -> None:
    keys, where = np.empty((2, BLOCK + 1), np.uint32), np.empty((5, BLOCK), np.uint32)
    zero, one = a.dtype.type(0), a.dtype.type(1)
    u, p = np.empty(BLOCK, a.dtype), np.empty(BLOCK, a.dtype)
    q, power = np.empty(BLOCK, a.dtype), np.empty(BLOCK, a.dtype)
    for at in range(first, last, BLOCK):
        size = min(BLOCK, last - at)
        by_row = prepare(seed0, seed1, rows, stream, a.size // row_count(rows), at, at + size, keys, where)
        x = a[at : at + size]
        for draw in range(len(out)):
            uniforms(where, by_row, draw, u[:size])
            for i in range(size):
                u[i] = (x[i] + log(u[i] / (one - u[i]))) * per_temperature
            both_sigmoids(u[:size], p, q, power)
            g, y = grad[draw, at : at + size], out[draw, at : at + size]
            for i in range(size):
                y[i] = g[i] * (height * (p[i] * q[i]))
            if width > zero:
                for i in range(size):
                    h = lower + width * p[i]
                    y[i] = zero if h <= zero or h >= one else y[i]


def rectified(seed: tuple[Word, Word], rows: Word, stream: int, draws: int, a: Tensor) -> Tensor:
    """max(0, a + log(u / (1 - u))); arguments as for `binary`."""
    return sampled(_rectified, seed, rows, stream, draws, a)


def normal(seed: tuple[Word, Word], rows: Word, stream: int, draws: int, a: Tensor, std: float, shape: int) -> Tensor:
    """f(a + std Φ⁻¹(u)), f the identity for shape 0, max(0, ·) for 1, σ for 2; arguments as for `binary`."""
    return sampled(_normal, seed, rows, stream, draws, a, NUMPY[a.dtype](std), shape)


def concrete(
    seed: tuple[Word, Word],
    rows: Word,
    stream: int,
    draws: int,
    a: Tensor,
    per_temperature: float,
    lower: float,
    width: float,
) -> Tensor:
    """min(1, max(0, lower + width σ((a + log(u / (1 - u))) per_temperature))); arguments as for `binary`."""
    kind = NUMPY[a.dtype]
    return sampled(_concrete, seed, rows, stream, draws, a, kind(per_temperature), kind(lower), kind(width))


def normal_pullback(
    seed: tuple[Word, Word], rows: Word, stream: int, draws: int, a: Tensor, grad: Tensor, std: float
) -> Tensor:
    """grad · σ(x) σ(-x), x = a + std Φ⁻¹(u); arguments as for `concrete_pullback`."""
    return sampled(_normal_pullback, seed, rows, stream, draws, a, NUMPY[a.dtype](std), more=(flat(grad, 1),))


def concrete_pullback(
    seed: tuple[Word, Word],
    rows: Word,
    stream: int,
    draws: int,
    a: Tensor,
    grad: Tensor,
    per_temperature: float,
    height: float,
    lower: float = 0.0,
    width: float = 0.0,
) -> Tensor:
    """As `reference.concrete_backward` at x = (a + log(u / (1 - u))) per_temperature; without a width, nothing is clipped.

    grad is of `draws` times the numbers of `a`, the other arguments as for `binary`.
    """
    options = map(NUMPY[a.dtype], (per_temperature, height, lower, width))
    return sampled(_concrete_pullback, seed, rows, stream, draws, a, *options, more=(flat(grad, 1),))
