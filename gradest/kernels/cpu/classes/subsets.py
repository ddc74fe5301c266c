"""Units that choose k of n items."""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import uint64
from torch import Tensor

from gradest.kernels.cpu.compilation.compiler import BLOCK, compiled, compiled_and_awaited, inlined
from gradest.kernels.cpu.functions import exp
from gradest.kernels.cpu.noise import locate, noise_scratch, uniforms
from gradest.kernels.cpu.samplers import run_kernel
from gradest.kernels.cpu.tensors import empty, flat, in_threads
from gradest.kernels.reference.noise import Word

__all__ = ["subset", "subset_marginals", "subset_mean_backward"]


@inlined
def _exponentials(x: Any, out: Any) -> None:
    for i in range(x.size):
        out[i] = exp(x[i])


@compiled
def _fill_ratios(w: Any, table: Any, top: Any, items: Any) -> None:
    """Write the ratios R_j = e_j / e_(j-1) of the first i items of a group into row top + i of `table` `[rows, k + 1]`.

    e_j is the j-th elementary symmetric polynomial of the weights, which begin at w[top]. R_0 is infinite.
    """
    k = table.shape[1] - 1
    for j in range(k + 1):
        table[uint64(top), uint64(j)] = np.inf if j == 0 else 0.0
    for i in range(1, items):
        here, before, after, size = w[uint64(top + i - 1)], uint64(top + i - 1), uint64(top + i), min(i, k)
        for j in range(size):
            x, y = table[before, uint64(j + 1)], table[before, uint64(j)]
            table[after, uint64(j + 1)] = (x + here) / (1.0 + here / y)
        table[after, uint64(0)] = np.inf
        for j in range(size + 1, k + 1):
            table[after, uint64(j)] = 0.0


@compiled
def _subset(
    words: Any,
    seed0: Any,
    seed1: Any,
    rows: Any,
    stream: Any,
    a: Any,
    logits: Any,
    out: Any,
    first: Any,
    last: Any,
    items: Any,
    k: Any,
) -> None:
    """Draw the groups `first` to `last`, which all lie in one block, item by item, from the last to the first."""
    groups = max(1, BLOCK // items)
    block = groups * items
    table = np.empty((block, k + 1), np.float64)
    noise = noise_scratch(block, a)
    u, w = np.empty(block, a.dtype), np.empty(block, np.float64)
    zero, one = a.dtype.type(0), a.dtype.type(1)
    for group in range(first, last, groups):
        at, size = group * items, min(groups, last - group) * items
        place = locate(words, seed0, seed1, stream, a.size // rows, at, at + size, noise)
        _exponentials(logits[at : at + size], w)
        for top in range(0, size, items):
            _fill_ratios(w, table, top, items)
        for draw in range(len(out)):
            uniforms(noise, place, draw, u[:size])
            h = out[draw, at : at + size]
            for top in range(0, size, items):
                left = k
                for i in range(items - 1, -1, -1):
                    item = uint64(top + i)
                    chosen = np.float64(u[item]) * (table[item, uint64(left)] + w[item]) < w[item]
                    h[item] = one if chosen else zero
                    left -= 1 if chosen else 0


@compiled_and_awaited
def _marginals(logits: Any, chosen: Any, left_out: Any, first: Any, last: Any, items: Any, k: Any) -> None:
    """Compute the probabilities of the items of the groups `first` to `last` to be chosen, and to be left out."""
    table, states, w = np.empty((items, k + 1), np.float64), np.empty(k + 1, np.float64), np.empty(items, np.float64)
    for at in range(first * items, last * items, items):
        _exponentials(logits[at : at + items], w)
        _fill_ratios(w, table, 0, items)
        states[:] = 0.0
        states[k] = 1.0
        for i in range(items - 1, -1, -1):
            here, ratios = w[i], table[i]
            taken, stayed = 0.0, states[0]
            for j in range(1, k + 1):
                take = states[j] * (here / (ratios[j] + here))
                leave = states[j] * (ratios[j] / (ratios[j] + here))
                taken += take
                stayed += leave
                states[j - 1] += take
                states[j] = leave
            chosen[at + i], left_out[at + i] = taken, stayed


@compiled_and_awaited
def _mean_backward(logits: Any, grad: Any, out: Any, first: Any, last: Any, items: Any, k: Any) -> None:
    """Multiply the gradients of the groups `first` to `last` by the covariance matrices of their items.

    values[i, j] is the expected sum of the gradients of the items chosen if j of the first i items are. In the second pass,
    history[j] is the expected sum for the items seen so far, times the indicator that j items are left to be chosen. Subtracting
    a constant from the gradients, so that the expected sum of all is 0, changes nothing but the rounding error.
    """
    table, values = np.empty((items, k + 1), np.float64), np.zeros((items + 1, k + 1), np.float64)
    states, history, w = np.empty(k + 1, np.float64), np.empty(k + 1, np.float64), np.empty(items, np.float64)
    for at in range(first * items, last * items, items):
        _exponentials(logits[at : at + items], w)
        _fill_ratios(w, table, 0, items)
        for i in range(items):
            here, slope, ratios, before, after = w[i], grad[at + i], table[i], values[i], values[i + 1]
            for j in range(1, k + 1):
                share = 1.0 / (ratios[j] + here)
                after[j] = share * (ratios[j] * before[j] + here * (slope + before[j - 1]))
        centre = values[items, k] / k
        states[:], history[:] = 0.0, 0.0
        states[k] = 1.0
        for i in range(items - 1, -1, -1):
            here, slope, ratios, before = w[i], grad[at + i] - centre, table[i], values[i]
            total = 0.0
            for j in range(1, k + 1):
                take, leave = here / (ratios[j] + here), ratios[j] / (ratios[j] + here)
                seen = history[j] + states[j] * slope
                total += take * (seen + states[j] * (before[j - 1] - centre * (j - 1)))
                states[j - 1] += take * states[j]
                history[j - 1] += take * seen
                states[j] *= leave
                history[j] *= leave
            out[at + i] = total


def subset(
    seed: tuple[Word, Word], rows: Word, stream: int, draws: int, a: Tensor, items: int, k: int, logits: Tensor
) -> Tensor:
    """Draw k of the items of each group by `logits`, float64 and of the size of `a`, `[rows, groups * items]`.

    Only the dtype of `a` matters, which is that of the noise. The other arguments are as for `binary`.
    """
    return run_kernel(_subset, seed, rows, stream, draws, a, items, k, size=items, more=(flat(logits),))


def subset_marginals(logits: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """Return the probability of each item to be chosen, and to be left out, for float64 logits `[..., items]`."""
    items = logits.shape[-1]
    chosen, left_out = empty(*logits.shape, dtype=logits.dtype), empty(*logits.shape, dtype=logits.dtype)
    given = flat(logits), flat(chosen), flat(left_out)
    in_threads(lambda first, last: _marginals(*given, first, last, items, k), logits.numel() // items, items * k)
    return chosen, left_out


def subset_mean_backward(logits: Tensor, grad: Tensor, k: int) -> Tensor:
    """Return grad times the derivative of the first result of `subset_marginals`, for float64 logits and grad `[..., items]`."""
    out, items = empty(*logits.shape, dtype=logits.dtype), logits.shape[-1]
    given = flat(logits), flat(grad), flat(out)
    in_threads(lambda first, last: _mean_backward(*given, first, last, items, k), logits.numel() // items, items * k)
    return out
