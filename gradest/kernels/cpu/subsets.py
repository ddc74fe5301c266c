"""Units that choose k of n items, by the ratios of elementary symmetric polynomials, in float64."""

from __future__ import annotations

from typing import Any

import numpy as np
from torch import Tensor

from gradest.kernels.cpu.compiler import compiled, inlined
from gradest.kernels.cpu.functions import exp
from gradest.kernels.cpu.noise import locate, row_count, uniforms
from gradest.kernels.cpu.samplers import run_kernel
from gradest.kernels.cpu.tensors import empty, flat, in_threads
from gradest.kernels.reference.noise import Word

__all__ = ["subset", "subset_marginals"]


@inlined
def _exponentials(x: Any, out: Any) -> None:
    for i in range(x.size):
        out[i] = exp(x[i])


@compiled
def _fill(w: Any, table: Any) -> None:
    """Write the ratios R_j = e_j / e_(j-1) of the first i items into row i of `table` `[n, k + 1]`; R_0 is infinite."""
    k = table.shape[1] - 1
    table[0] = 0.0
    table[0, 0] = np.inf
    for i in range(1, len(table)):
        here, size = w[i - 1], min(i, k)
        before, after = table[i - 1], table[i]
        x, y, z = before[1 : size + 1], before[:size], after[1 : size + 1]
        for j in range(size):
            z[j] = (x[j] + here) / (1.0 + here / y[j])
        after[0] = np.inf
        after[size + 1 :] = 0.0


@compiled
def _subset(
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
    """Draw the groups `first` to `last`, item by item, from the last to the first."""
    table = np.empty((items, k + 1), np.float64)
    keys, words = np.empty((2, items + 1), np.uint32), np.empty((5, items), np.uint32)
    u, w = np.empty(items, a.dtype), np.empty(items, np.float64)
    zero, one = a.dtype.type(0), a.dtype.type(1)
    for at in range(first * items, last * items, items):
        row_units = locate(seed0, seed1, rows, stream, a.size // row_count(rows), at, at + items, keys, words)
        _exponentials(logits[at : at + items], w)
        _fill(w, table)
        for draw in range(len(out)):
            uniforms(words, row_units, draw, u)
            h, left = out[draw, at : at + items], k
            for i in range(items - 1, -1, -1):
                chosen = np.float64(u[i]) * (table[i, left] + w[i]) < w[i]
                h[i] = one if chosen else zero
                left -= 1 if chosen else 0


@compiled
def _marginals(logits: Any, chosen: Any, left_out: Any, first: Any, last: Any, items: Any, k: Any) -> None:
    """Compute the probabilities of the items of the groups `first` to `last` to be chosen, and to be left out."""
    table, states, w = np.empty((items, k + 1), np.float64), np.empty(k + 1, np.float64), np.empty(items, np.float64)
    for at in range(first * items, last * items, items):
        _exponentials(logits[at : at + items], w)
        _fill(w, table)
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
