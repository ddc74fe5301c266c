"""Units that count, by inversion of their distribution functions, in float64."""

from __future__ import annotations

from typing import Any

import numpy as np
from torch import Tensor

from gradest.kernels.cpu.compilation.compiler import inlined
from gradest.kernels.cpu.functions import exp, log
from gradest.kernels.cpu.samplers import run_sampler, sampler
from gradest.kernels.reference.noise import Word

__all__ = ["binomial", "poisson"]


@inlined
def _prepare_binomial(x: Any, u: Any, scratch: Any, options: Any) -> None:
    (trials,) = options
    ratio, least = scratch[0], scratch[1]
    for i in range(x.size):
        ratio[i] = exp(-np.float64(abs(x[i])))
    for i in range(x.size):
        base, power, n = 1.0 + ratio[i], 1.0, trials
        while n > 1:
            power, base, n = power * base if n % 2 else power, base * base, n // 2
        least[i] = 1.0 / (power * base)


@inlined
def _binomial(x: Any, u: Any, g: Any, h: Any, scratch: Any, options: Any) -> None:
    (trials,) = options
    one = x.dtype.type(1)
    ratio, least, term, below, v, count = scratch[0], scratch[1], scratch[2], scratch[3], scratch[4], scratch[5]
    for i in range(x.size):
        v[i] = np.float64(one - u[i] if x[i] > 0 else u[i])
        term[i], below[i], count[i] = least[i], 0.0, 0.0
    for k in range(trials):
        by = np.float64(trials - k) / np.float64(k + 1)
        for i in range(x.size):
            below[i] += term[i]
            count[i] += 1.0 if v[i] >= below[i] else 0.0
            term[i] *= ratio[i] * by
    for i in range(x.size):
        h[i] = np.float64(trials) - count[i] if x[i] > 0 else count[i]


@inlined
def _prepare_poisson(x: Any, u: Any, scratch: Any, options: Any) -> None:
    rate, least = scratch[0], scratch[1]
    for i in range(x.size):
        rate[i] = exp(-np.float64(abs(x[i])))
    for i in range(x.size):
        e = rate[i]
        least[i] = (e if x[i] > 0 else 1.0) / (1.0 + e)
        rate[i] = max(np.float64(x[i]), 0.0) + log(1.0 + e)


@inlined
def _poisson(x: Any, u: Any, g: Any, h: Any, scratch: Any, options: Any) -> None:
    rate, least, term, below, v, count = scratch[0], scratch[1], scratch[2], scratch[3], scratch[4], scratch[5]
    for i in range(x.size):
        v[i], term[i], below[i], count[i] = np.float64(u[i]), least[i], 0.0, 0.0
    k, more = 0, 1
    while more:
        k, more = k + 1, 0
        by = 1.0 / np.float64(k)
        for i in range(x.size):
            above = below[i] + term[i]
            step = 1 if v[i] >= above > below[i] else 0
            more += step
            count[i] += np.float64(np.int32(step))
            below[i] = above
            term[i] *= rate[i] * by
    for i in range(x.size):
        h[i] = count[i]


_draw_binomial = sampler(_binomial, _prepare_binomial, scratch=6, wide=True)
_draw_poisson = sampler(_poisson, _prepare_poisson, scratch=6, wide=True)


def binomial(seed: tuple[Word, Word], rows: Word, stream: int, draws: int, a: Tensor, trials: int) -> Tensor:
    """Draw the number of k < trials with F(k) <= u, F the distribution function at p = σ(a); arguments as for `binary`."""
    return run_sampler(_draw_binomial, seed, rows, stream, draws, a, trials)


def poisson(seed: tuple[Word, Word], rows: Word, stream: int, draws: int, a: Tensor) -> Tensor:
    """Draw the number of k with F(k) <= u, F the distribution function at the rate softplus(a); arguments as for `binary`."""
    return run_sampler(_draw_poisson, seed, rows, stream, draws, a)
