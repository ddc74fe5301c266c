"""Units with two values: binary units, binary units at mirrored noise, and the stochastic times smooth unit."""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import numpy as np
import torch
from torch import Tensor

from gradest.kernels.cpu.compilation.compiler import BLOCK, compiled, inlined
from gradest.kernels.cpu.functions import CLOSE, both_sigmoids, rough_reciprocals, sigmoids, sqrt
from gradest.kernels.cpu.halves import computed_in, takes_halves
from gradest.kernels.cpu.samplers import run_sampler, sampler
from gradest.kernels.cpu.tensors import check_size, empty_as, flat, in_threads
from gradest.kernels.reference.noise import Word

__all__ = ["antithetic", "binary", "times_smooth", "times_smooth_backward"]


@inlined
def _prepare_binary(x: Any, u: Any, scratch: Any, options: Any) -> None:
    rough_reciprocals(x, scratch[0][: x.size])


@inlined
def _binary(x: Any, u: Any, g: Any, h: Any, scratch: Any, options: Any) -> None:
    # a rough σ(x) decides, and the one of the reference only in a block where some u is too close to it, one of thirty
    low, high = options
    r, one, close, near = scratch[0], x.dtype.type(1), x.dtype.type(CLOSE), 0
    for i in range(x.size):
        y = u[i] * r[i]
        h[i] = high if y < one else low
        near += abs(y - one) < close
    if near > 0:
        p = scratch[1]
        sigmoids(x, p, scratch[2])
        for i in range(x.size):
            h[i] = high if u[i] < p[i] else low


@inlined
def _prepare_times_smooth(x: Any, u: Any, scratch: Any, options: Any) -> None:
    r = scratch[0]
    sigmoids(x, r, u)
    for i in range(x.size):
        r[i] = sqrt(r[i])


@inlined
def _times_smooth(x: Any, u: Any, g: Any, h: Any, scratch: Any, options: Any) -> None:
    r, zero = scratch[0], x.dtype.type(0)
    for i in range(x.size):
        h[i] = r[i] if u[i] < r[i] else zero


@compiled
def _times_smooth_backward(a: Any, h: Any, grad: Any, out: Any, first: Any, last: Any) -> None:
    p, q, power = np.empty(BLOCK, a.dtype), np.empty(BLOCK, a.dtype), np.empty(BLOCK, a.dtype)
    zero, half = a.dtype.type(0), a.dtype.type(0.5)
    for at in range(first, last, BLOCK):
        size = min(BLOCK, last - at)
        both_sigmoids(a[at : at + size], p, q, power)
        for draw in range(len(h)):
            x, g, y = h[draw, at : at + size], grad[draw, at : at + size], out[draw, at : at + size]
            for i in range(size):
                y[i] = g[i] * (half * x[i] * q[i]) if x[i] > zero else zero


_draw_binary = sampler(_binary, _prepare_binary, scratch=3, mirrored=True)
_draw_times_smooth = sampler(_times_smooth, _prepare_times_smooth, scratch=1)


@takes_halves
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
    """Draw low + (high - low) 1[u < σ(a)], `[draws, rows, units]`, for `a` `[rows, units]`.

    seed, rows and stream: which uniform noise u is, as for `reference.uniform`.
    dtype: the dtype of the result if it is not that of `a`: uint8 or bool, if these can hold both values.
    """
    values = _two_values(a.dtype, low, high, dtype)
    return run_sampler(_draw_binary, seed, rows, stream, draws, a, *values, dtype=dtype)


@lru_cache(maxsize=64)
def _two_values(of: torch.dtype, low: float, high: float, dtype: torch.dtype | None = None) -> tuple[Any, ...]:
    """Return low and low + (high - low) in one dtype, converted to another."""
    kind = computed_in(of)
    values = kind(low), kind(low) + kind(high - low)
    return values if dtype is None else tuple(map(np.uint8, values))


@takes_halves
def antithetic(
    seed: tuple[Word, Word], rows: Word, stream: int, pairs: int, a: Tensor, low: float, high: float
) -> Tensor:
    """Draw as `binary` at u and at 1 - u, `[2 pairs, rows, units]`: first all draws at u, then all at 1 - u."""
    return run_sampler(_draw_binary, seed, rows, stream, 2 * pairs, a, *_two_values(a.dtype, low, high), halves=2)


@takes_halves
def times_smooth(seed: tuple[Word, Word], rows: Word, stream: int, draws: int, a: Tensor) -> Tensor:
    """Draw r 1[u < r] with r = √σ(a); arguments as for `binary`."""
    return run_sampler(_draw_times_smooth, seed, rows, stream, draws, a)


def times_smooth_backward(a: Tensor, h: Tensor, grad: Tensor) -> Tensor:
    """Compute the same as `reference.times_smooth_backward`."""
    check_size(grad, h.numel())
    out = empty_as(a, *h.shape)
    given = flat(a), flat(h, 1), flat(grad, 1), flat(out, 1)
    in_threads(lambda first, last: _times_smooth_backward(*given, first, last), a.numel(), len(h))
    return out
