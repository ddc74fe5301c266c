"""Units of a group that are drawn together: binary ones that are correlated, and items that are put into an order."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from gradest.kernels.cpu.compilation.compiler import BLOCK, compiled
from gradest.kernels.cpu.functions import both_sigmoids, log, logit_of_normal, ndtris, sigmoids
from gradest.kernels.cpu.noise import locate, noise_scratch, uniforms
from gradest.kernels.cpu.samplers import run_kernel
from gradest.kernels.cpu.tensors import NUMPY, check_size, flat
from gradest.kernels.reference.noise import Word

__all__ = ["correlated", "correlated_concrete", "correlated_concrete_pullback", "ordered"]


@compiled
def _correlated(
    words: Any,
    seed0: Any,
    seed1: Any,
    rows: Any,
    stream: Any,
    a: Any,
    out: Any,
    first: Any,
    last: Any,
    items: Any,
    factor_stream: Any,
    shared: Any,
    own: Any,
) -> None:
    """Draw the groups `first` to `last`, which all lie in one block with their common factors."""
    groups = max(1, BLOCK // items)
    block, units = groups * items, a.size // rows
    noise, noise_of_factors = noise_scratch(block, a), noise_scratch(groups, a)
    u, threshold, power = np.empty(block, a.dtype), np.empty(block, a.dtype), np.empty(block, a.dtype)
    factors, index = np.empty(groups, a.dtype), np.empty(block, np.int32)
    zero, one = a.dtype.type(0), a.dtype.type(1)
    for group in range(first, last, groups):
        count = min(groups, last - group)
        at, size = group * items, count * items
        place = locate(words, seed0, seed1, stream, units, at, at + size, noise)
        place_of_factors = locate(
            words, seed0, seed1, factor_stream, units // items, group, group + count, noise_of_factors
        )
        x = a[at : at + size]
        for i in range(size):
            u[i] = -abs(x[i])
        sigmoids(u[:size], threshold, power)
        ndtris(threshold[:size], power, index)
        for i in range(size):
            threshold[i] = -np.copysign(threshold[i], x[i])
        for draw in range(len(out)):
            uniforms(noise, place, draw, u[:size])
            uniforms(noise_of_factors, place_of_factors, draw, factors[:count])
            ndtris(u[:size], power, index)
            ndtris(factors[:count], power, index)
            for i in range(size):
                u[i] = own * u[i]
            for i in range(count):
                factors[i] = shared * factors[i]
            h = out[draw, at : at + size]
            for j in range(count):
                z, t, y = (
                    u[j * items : (j + 1) * items],
                    threshold[j * items : (j + 1) * items],
                    h[j * items : (j + 1) * items],
                )
                for i in range(items):
                    y[i] = one if factors[j] + z[i] > t[i] else zero


@compiled
def _correlated_concrete(
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
    items: Any,
    factor_stream: Any,
    shared: Any,
    own: Any,
    steep: Any,
) -> None:
    """Draw the groups `first` to `last` or, if `grad` is not empty, multiply it by the derivative of what was drawn."""
    groups = max(1, BLOCK // items)
    block, units = groups * items, a.size // rows
    noise, noise_of_factors = noise_scratch(block, a), noise_scratch(groups, a)
    u, p, q, power = (
        np.empty(block, a.dtype),
        np.empty(block, a.dtype),
        np.empty(block, a.dtype),
        np.empty(block, a.dtype),
    )
    factors, index = np.empty(groups, a.dtype), np.empty(block, np.int32)
    for group in range(first, last, groups):
        count = min(groups, last - group)
        at, size = group * items, count * items
        place = locate(words, seed0, seed1, stream, units, at, at + size, noise)
        place_of_factors = locate(
            words, seed0, seed1, factor_stream, units // items, group, group + count, noise_of_factors
        )
        x, z = a[at : at + size], u[:size]
        for draw in range(len(out)):
            uniforms(noise, place, draw, z)
            uniforms(noise_of_factors, place_of_factors, draw, factors[:count])
            ndtris(z, power, index)
            ndtris(factors[:count], power, index)
            for i in range(count):
                factors[i] = shared * factors[i]
            for j in range(count):
                y = z[j * items : (j + 1) * items]
                for i in range(items):
                    y[i] = factors[j] + own * y[i]
            for i in range(size):
                z[i] = (x[i] + logit_of_normal(z[i])) * steep
            h = out[draw, at : at + size]
            if grad.size == 0:
                sigmoids(z, h, power)
            else:
                g = grad[draw, at : at + size]
                both_sigmoids(z, p, q, power)
                for i in range(size):
                    h[i] = g[i] * (steep * (p[i] * q[i]))


@compiled
def _ordered(
    words: Any,
    seed0: Any,
    seed1: Any,
    rows: Any,
    stream: Any,
    a: Any,
    out: Any,
    first: Any,
    last: Any,
    items: Any,
) -> None:
    """Draw the groups `first` to `last`: an item has the place that is the number of items before it."""
    block = max(1, BLOCK // items) * items
    noise = noise_scratch(block, a)
    u, x = np.empty(block, a.dtype), np.empty(block, np.float64)
    zero, one = a.dtype.type(0), a.dtype.type(1)
    for at in range(first * items, last * items, block):
        size = min(block, last * items - at)
        place = locate(words, seed0, seed1, stream, a.size // rows, at, at + size, noise)
        given = a[at : at + size]
        for draw in range(len(out)):
            uniforms(noise, place, draw, u[:size])
            for i in range(size):
                u[i] = log(-log(u[i]))
            for i in range(size):
                perturbed = np.float64(given[i]) - np.float64(u[i])
                x[i] = np.inf if np.isnan(perturbed) else perturbed  # torch sorts NaN as the largest
            h = out[draw, at * items : (at + size) * items]
            h[:] = zero
            for group in range(0, size, items):
                y = x[group : group + items]
                for i in range(items):
                    before = np.int64(0)
                    for j in range(i):
                        before += np.int64(y[j] >= y[i])
                    for j in range(i + 1, items):
                        before += np.int64(y[j] > y[i])
                    h[(group + before) * items + i] = one


def correlated(
    seed: tuple[Word, Word],
    rows: Word,
    stream: int,
    draws: int,
    a: Tensor,
    items: int,
    factor_stream: int,
    shared: float,
    own: float,
) -> Tensor:
    """Draw 1[shared Φ⁻¹(f) + own Φ⁻¹(u) > -Φ⁻¹(σ(a))], with f the uniform number of a group in the stream of factors.

    a is `[rows, groups * items]`; the other arguments are as for `binary`.
    """
    kind = NUMPY[a.dtype]
    options = items, np.uint32(factor_stream), kind(shared), kind(own)
    return run_kernel(_correlated, seed, rows, stream, draws, a, *options, size=items)


def correlated_concrete(
    seed: tuple[Word, Word],
    rows: Word,
    stream: int,
    draws: int,
    a: Tensor,
    items: int,
    factor_stream: int,
    shared: float,
    own: float,
    steep: float,
    grad: Tensor | None = None,
) -> Tensor | None:
    """Draw σ((a + logit Φ(shared Φ⁻¹(f) + own Φ⁻¹(u))) steep), for arguments as for `correlated`; None unless `a` is float32."""
    if a.dtype != torch.float32:
        return None
    pulled = flat(a.new_empty(1, 0) if grad is None else grad, 1)
    options = items, np.uint32(factor_stream), *map(np.float32, (shared, own, steep))
    return run_kernel(_correlated_concrete, seed, rows, stream, draws, a, *options, size=items, more=(pulled,))


def correlated_concrete_pullback(
    seed: tuple[Word, Word],
    rows: Word,
    stream: int,
    draws: int,
    a: Tensor,
    grad: Tensor,
    items: int,
    factor_stream: int,
    shared: float,
    own: float,
    steep: float,
) -> Tensor | None:
    """Return grad · steep h (1 - h) for the outputs h of `correlated_concrete`, which has the same options; None where that does.

    grad has `draws` times as many numbers as `a`.
    """
    check_size(grad, draws * a.numel())
    return correlated_concrete(seed, rows, stream, draws, a, items, factor_stream, shared, own, steep, grad)


def ordered(seed: tuple[Word, Word], rows: Word, stream: int, draws: int, a: Tensor, items: int) -> Tensor:
    """Draw the matrix h_ri = 1[item i has place r] of the order of falling a - log(-log u), which is float64.

    a is `[rows, groups * items]`, h `[draws, rows, groups * items * items]`; the other arguments are as for `binary`.
    """
    shape = (len(a), a.shape[1] * items)
    return run_kernel(_ordered, seed, rows, stream, draws, a, items, size=items, shape=shape)
