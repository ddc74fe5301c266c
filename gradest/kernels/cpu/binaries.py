"""Units that are off, or at one level: binary ones, these at mirrored noise, and gated ones."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from gradest.kernels.cpu.compiler import BLOCK, compiled
from gradest.kernels.cpu.functions import both_sigmoids, sigmoids, sqrt
from gradest.kernels.cpu.noise import prepare, row_count, uniforms
from gradest.kernels.cpu.tensors import NUMPY, empty, flat, in_threads, sampled
from gradest.kernels.reference import Word

__all__ = ["antithetic", "binary", "gated", "gated_backward"]


@compiled
def _binary(
    seed0: Any, seed1: Any, rows: Any, stream: Any, a: Any, out: Any, first: Any, last: Any, low: Any, high: Any
) -> None:
    keys, where = np.empty((2, BLOCK + 1), np.uint32), np.empty((5, BLOCK), np.uint32)
    p, u = np.empty(BLOCK, a.dtype), np.empty(BLOCK, a.dtype)
    for at in range(first, last, BLOCK):
        size = min(BLOCK, last - at)
        by_row = prepare(seed0, seed1, rows, stream, a.size // row_count(rows), at, at + size, keys, where)
        x = a[at : at + size]
        sigmoids(x, p, u)
        for draw in range(len(out)):
            uniforms(where, by_row, draw, u[:size])
            h = out[draw, at : at + size]
            for i in range(size):
                h[i] = high if u[i] < p[i] else low


@compiled
def _antithetic(
    seed0: Any, seed1: Any, rows: Any, stream: Any, a: Any, out: Any, first: Any, last: Any, low: Any, high: Any
) -> None:
    keys, where = np.empty((2, BLOCK + 1), np.uint32), np.empty((5, BLOCK), np.uint32)
    p, u = np.empty(BLOCK, a.dtype), np.empty(BLOCK, a.dtype)
    one, pairs = a.dtype.type(1), len(out) // 2
    for at in range(first, last, BLOCK):
        size = min(BLOCK, last - at)
        by_row = prepare(seed0, seed1, rows, stream, a.size // row_count(rows), at, at + size, keys, where)
        sigmoids(a[at : at + size], p, u)
        for draw in range(pairs):
            uniforms(where, by_row, draw, u[:size])
            h, mirror = out[draw, at : at + size], out[pairs + draw, at : at + size]
            for i in range(size):
                h[i] = high if u[i] < p[i] else low
            for i in range(size):
                mirror[i] = high if one - u[i] < p[i] else low


@compiled
def _gated(seed0: Any, seed1: Any, rows: Any, stream: Any, a: Any, out: Any, first: Any, last: Any) -> None:
    keys, where = np.empty((2, BLOCK + 1), np.uint32), np.empty((5, BLOCK), np.uint32)
    zero = a.dtype.type(0)
    r, u = np.empty(BLOCK, a.dtype), np.empty(BLOCK, a.dtype)
    for at in range(first, last, BLOCK):
        size = min(BLOCK, last - at)
        by_row = prepare(seed0, seed1, rows, stream, a.size // row_count(rows), at, at + size, keys, where)
        x = a[at : at + size]
        sigmoids(x, r, u)
        for i in range(size):
            r[i] = sqrt(r[i])
        for draw in range(len(out)):
            uniforms(where, by_row, draw, u[:size])
            h = out[draw, at : at + size]
            for i in range(size):
                h[i] = r[i] if u[i] < r[i] else zero


@compiled
def _gated_backward(a: Any, h: Any, grad: Any, out: Any, first: Any, last: Any) -> None:
    p, q, power = np.empty(BLOCK, a.dtype), np.empty(BLOCK, a.dtype), np.empty(BLOCK, a.dtype)
    zero, half = a.dtype.type(0), a.dtype.type(0.5)
    for at in range(first, last, BLOCK):
        size = min(BLOCK, last - at)
        both_sigmoids(a[at : at + size], p, q, power)
        for draw in range(len(h)):
            x, g, y = h[draw, at : at + size], grad[draw, at : at + size], out[draw, at : at + size]
            for i in range(size):
                y[i] = g[i] * (half * x[i] * q[i]) if x[i] > zero else zero


def binary(
    seed: tuple[Word, Word],
    rows: Word,
    stream: int,
    draws: int,
    a: Tensor,
    low: float,
    high: float,
    dtype: torch.dtype | None = None,
) -> Tensor:
    """low + (high - low) 1[u < σ(a)], `[draws, rows, units]`, for `a` `[rows, units]`; words as for `uniform`.

    dtype: uint8 or bool, where it holds the two values; by default that of `a`.
    """
    kind = NUMPY[a.dtype]
    values: tuple[Any, ...] = (kind(low), kind(low) + kind(high - low))
    if dtype is not None:
        values = tuple(map(np.uint8 if dtype == torch.uint8 else np.bool_, values))
    return sampled(_binary, seed, rows, stream, draws, a, *values, dtype=dtype)


def antithetic(
    seed: tuple[Word, Word], rows: Word, stream: int, pairs: int, a: Tensor, low: float, high: float
) -> Tensor:
    """`binary` at u and at 1 - u, `[2 pairs, rows, units]`: first all at u, then all at 1 - u."""
    kind = NUMPY[a.dtype]
    return sampled(_antithetic, seed, rows, stream, pairs, a, kind(low), kind(low) + kind(high - low), points=2)


def gated(seed: tuple[Word, Word], rows: Word, stream: int, draws: int, a: Tensor) -> Tensor:
    """r 1[u < r], r = √σ(a); arguments as for `binary`."""
    return sampled(_gated, seed, rows, stream, draws, a)


def gated_backward(a: Tensor, h: Tensor, grad: Tensor) -> Tensor:
    """As `reference.gated_backward`."""
    out = empty(*h.shape, dtype=a.dtype)
    given = flat(a), flat(h, 1), flat(grad, 1), flat(out, 1)
    in_threads(lambda first, last: _gated_backward(*given, first, last), a.numel(), len(h))
    return out
