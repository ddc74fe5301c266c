"""Units that count, by their distribution functions, in float64."""

from __future__ import annotations

from typing import Any

import numpy as np
from torch import Tensor

from gradest.kernels.cpu.compiler import BLOCK, compiled
from gradest.kernels.cpu.functions import exp, log
from gradest.kernels.cpu.noise import prepare, row_count, uniforms
from gradest.kernels.cpu.tensors import sampled
from gradest.kernels.reference import Word

__all__ = ["binomial", "poisson"]


@compiled
def _binomial(
    seed0: Any, seed1: Any, rows: Any, stream: Any, a: Any, out: Any, first: Any, last: Any, trials: Any
) -> None:
    keys, where = np.empty((2, BLOCK + 1), np.uint32), np.empty((5, BLOCK), np.uint32)
    u, one = np.empty(BLOCK, a.dtype), a.dtype.type(1)
    ratio, least, term = np.empty(BLOCK, np.float64), np.empty(BLOCK, np.float64), np.empty(BLOCK, np.float64)
    below, v, count = np.empty(BLOCK, np.float64), np.empty(BLOCK, np.float64), np.empty(BLOCK, np.float64)
    for at in range(first, last, BLOCK):
        size = min(BLOCK, last - at)
        by_row = prepare(seed0, seed1, rows, stream, a.size // row_count(rows), at, at + size, keys, where)
        x = a[at : at + size]
        for i in range(size):
            ratio[i] = exp(-np.float64(abs(x[i])))
        for i in range(size):
            base, power, n = 1.0 + ratio[i], 1.0, trials
            while n > 1:
                power, base, n = power * base if n % 2 else power, base * base, n // 2
            least[i] = 1.0 / (power * base)
        for draw in range(len(out)):
            uniforms(where, by_row, draw, u[:size])
            for i in range(size):
                v[i] = np.float64(one - u[i] if x[i] > 0 else u[i])
                term[i], below[i], count[i] = least[i], 0.0, 0.0
            for k in range(trials):
                by = np.float64(trials - k) / np.float64(k + 1)
                for i in range(size):
                    below[i] += term[i]
                    count[i] += 1.0 if v[i] >= below[i] else 0.0
                    term[i] *= ratio[i] * by
            h = out[draw, at : at + size]
            for i in range(size):
                h[i] = np.float64(trials) - count[i] if x[i] > 0 else count[i]


@compiled
def _poisson(seed0: Any, seed1: Any, rows: Any, stream: Any, a: Any, out: Any, first: Any, last: Any) -> None:
    keys, where = np.empty((2, BLOCK + 1), np.uint32), np.empty((5, BLOCK), np.uint32)
    u = np.empty(BLOCK, a.dtype)
    rate, least, term = np.empty(BLOCK, np.float64), np.empty(BLOCK, np.float64), np.empty(BLOCK, np.float64)
    below, v, count = np.empty(BLOCK, np.float64), np.empty(BLOCK, np.float64), np.empty(BLOCK, np.float64)
    for at in range(first, last, BLOCK):
        size = min(BLOCK, last - at)
        by_row = prepare(seed0, seed1, rows, stream, a.size // row_count(rows), at, at + size, keys, where)
        x = a[at : at + size]
        for i in range(size):
            rate[i] = exp(-np.float64(abs(x[i])))
        for i in range(size):
            e = rate[i]
            least[i] = (e if x[i] > 0 else 1.0) / (1.0 + e)
            rate[i] = max(np.float64(x[i]), 0.0) + log(1.0 + e)
        for draw in range(len(out)):
            uniforms(where, by_row, draw, u[:size])
            for i in range(size):
                v[i], term[i], below[i], count[i] = np.float64(u[i]), least[i], 0.0, 0.0
            k, more = 0, 1
            while more:
                k, more = k + 1, 0
                by = 1.0 / np.float64(k)
                for i in range(size):
                    above = below[i] + term[i]
                    step = 1 if v[i] >= above > below[i] else 0
                    more += step
                    count[i] += np.float64(np.int32(step))
                    below[i] = above
                    term[i] *= rate[i] * by
            h = out[draw, at : at + size]
            for i in range(size):
                h[i] = count[i]


def binomial(seed: tuple[Word, Word], rows: Word, stream: int, draws: int, a: Tensor, trials: int) -> Tensor:
    """The number of k < trials with F(k) <= u, F the distribution function at p = σ(a); arguments as for `binary`."""
    return sampled(_binomial, seed, rows, stream, draws, a, trials)


def poisson(seed: tuple[Word, Word], rows: Word, stream: int, draws: int, a: Tensor) -> Tensor:
    """The number of k with F(k) <= u, F the distribution function at the rate softplus(a); arguments as for `binary`."""
    return sampled(_poisson, seed, rows, stream, draws, a)
