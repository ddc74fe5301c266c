"""The kernels that compute several units of a block for several examples at once.

They work in tiles of so many rows that all sums of a tile stay in registers, which changes no sum: its terms are added in the
same order as in `gradest.kernels.cpu.conditional.units`. A tile that is not full is filled up with its last row, which is
computed again and written once.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numba.np.unsafe.ndarray import to_fixed_tuple

from gradest.kernels.cpu.compilation.compiler import array, compiled_with_fma, inlined
from gradest.kernels.cpu.compilation.processors import has_wide_registers
from gradest.kernels.cpu.conditional.intrinsics import PRODUCTS, dot_products, linear_combinations, take_next
from gradest.kernels.cpu.conditional.plans import CHUNK, plan_arrays

__all__ = ["FEWEST_EXAMPLES", "FEWEST_UNITS", "forward", "grad_input", "grad_weight"]

FEWEST_UNITS, FEWEST_EXAMPLES = 4, 4
"""The least numbers of units in a block, and of examples that open one on average, for which these kernels are faster."""

_CHUNKS = 8  # whose examples share what is read of the weights
_UNITS_PER_PIECE = 60
_EXAMPLES_IN_CACHE = 64
_COLUMNS_PER_PIECE = 512  # bytes
_TERMS = 128  # of the gradients of W that are added at once

_WIDE_REGISTERS = has_wide_registers()
_EXAMPLES, _UNITS = (4, 6) if _WIDE_REGISTERS else (3, 2)
_ROWS = 6
_WIDE, _NARROW = (256, 64) if _WIDE_REGISTERS else (64, 16)  # bytes
_add_wide, _add_narrow, _add_one = (linear_combinations(size, _ROWS) for size in (_WIDE, _NARROW, 0))
_tuple: Any = to_fixed_tuple


@compiled_with_fma
def forward(given: Any, counter: Any, like: Any, weight_like: Any) -> None:
    """Compute the same as `units.forward`."""
    batch, inputs, blocks, block, chunks, plan_at, gates_at = given[:7]
    x_at, w_at, bias_at, out_at, ungated_at = given[7:12]
    units, (_, starts, members) = blocks * block, plan_arrays(plan_at, batch, blocks, chunks)
    x, w = array(x_at, (batch, inputs), like), array(w_at, (units, inputs), weight_like)
    bias, gates = array(bias_at, (units,), like), array(gates_at, (batch, blocks), like)
    out, ungated = array(out_at, (batch, units), like), array(ungated_at, (batch, units), like)
    products, rows, columns = np.empty(PRODUCTS, like.dtype), np.empty(_EXAMPLES, np.int64), np.empty(_UNITS, np.int64)
    listed, parts, groups = np.empty(_CHUNKS * CHUNK, np.int64), -(-block // _UNITS_PER_PIECE), -(-chunks // _CHUNKS)
    while True:
        piece = take_next(counter)
        if piece >= groups * blocks * parts:
            return
        group, g, part = piece // (blocks * parts), piece // parts % blocks, piece % parts
        first = g * block + part * _UNITS_PER_PIECE
        last = min(first + _UNITS_PER_PIECE, (g + 1) * block)
        count = _list_examples(listed, starts, members, group, g)
        for begin in range(0, count, _EXAMPLES_IN_CACHE):
            end = min(begin + _EXAMPLES_IN_CACHE, count)
            for u in range(first, last, _UNITS):
                for j in range(_UNITS):
                    columns[j] = min(u + j, last - 1)
                for k in range(begin, end, _EXAMPLES):
                    for i in range(_EXAMPLES):
                        rows[i] = listed[min(k + i, end - 1)]
                    dot_products(products, x, _tuple(rows, _EXAMPLES), w, _tuple(columns, _UNITS))
                    for i in range(min(_EXAMPLES, end - k)):
                        b = np.uint64(rows[i])  # numba looks whether a number with a sign is negative
                        gate = gates[b, g]
                        for j in range(min(_UNITS, last - u)):
                            at, y = np.uint64(u + j), products[np.uint64(i * _UNITS + j)] + bias[np.uint64(u + j)]
                            out[b, at] = gate * y
                            if ungated_at:
                                ungated[b, at] = y


@inlined
def _list_examples(listed: Any, starts: Any, members: Any, group: Any, g: Any) -> Any:
    """List the examples of a group of chunks that open a block, and return how many there are."""
    count = 0
    for chunk in range(group * _CHUNKS, min((group + 1) * _CHUNKS, len(starts))):
        for k in range(starts[chunk, g], starts[chunk, g + 1]):
            listed[count] = members[chunk, k]
            count += 1
    return count


@compiled_with_fma
def grad_input(given: Any, counter: Any, like: Any, weight_like: Any) -> None:
    """Compute the same as `units.grad_input`: a row of W is read for several examples at once."""
    batch, inputs, blocks, block, chunks, plan_at, gates_at, grad_at, w_at, out_at = given[:10]
    units, (_, starts, members) = blocks * block, plan_arrays(plan_at, batch, blocks, chunks)
    grad, w = array(grad_at, (batch, units), like), array(w_at, (units, inputs), weight_like)
    gates, out = array(gates_at, (batch, blocks), like), array(out_at, (batch, inputs), like)
    index, scale = np.arange(units).astype(np.uint32), np.empty(_ROWS * block, like.dtype)
    listed, rows, begins = np.empty(_CHUNKS * CHUNK, np.int64), np.empty(_ROWS, np.int64), np.arange(_ROWS) * block
    width, groups = _COLUMNS_PER_PIECE // like.itemsize, -(-chunks // _CHUNKS)
    pieces = -(-inputs // width)
    while True:
        piece = take_next(counter)
        if piece >= groups * pieces:
            return
        group, first = piece // pieces, piece % pieces * width
        last = min(first + width, inputs)
        out[group * _CHUNKS * CHUNK : (group + 1) * _CHUNKS * CHUNK, first:last] = 0
        for g in range(blocks):
            count = _list_examples(listed, starts, members, group, g)
            for k in range(0, count, _ROWS):
                for r in range(_ROWS):
                    rows[r] = listed[min(k + r, count - 1)]
                    for i in range(block):
                        scale[r * block + i] = grad[rows[r], g * block + i] * gates[rows[r], g]
                _add_combinations(out, rows, first, last, w, index, g * block, scale, begins, 1, block)


@compiled_with_fma
def grad_weight(given: Any, counter: Any, like: Any, weight_like: Any) -> None:
    """Compute the same as `units.grad_weight`: an example is read for several units at once."""
    batch, inputs, blocks, block, chunks, plan_at, gates_at = given[:7]
    grad_at, x_at, out_at, bias_at, compact, fill = given[7:13]
    units, (opened, starts, members) = blocks * block, plan_arrays(plan_at, batch, blocks, chunks)
    grad, x = array(grad_at, (batch, units), like), array(x_at, (batch, inputs), like)
    gates, out = array(gates_at, (batch, blocks), like), array(out_at, (units, inputs), like)
    bias = array(bias_at, (units,), like)
    listed, scale = np.empty(_CHUNKS * CHUNK, np.uint32), np.empty(_TERMS * block, like.dtype)
    rows, begins = np.empty(_ROWS, np.int64), np.empty(_ROWS, np.int64)
    while True:
        g = take_next(counter)
        if g >= blocks:
            return
        if opened[g] < 0 and not fill:
            continue
        to = (opened[g] if compact else g) * block
        out[to : to + block] = 0
        for group in range(-(-chunks // _CHUNKS)):
            count = _list_examples(listed, starts, members, group, g)
            for begin in range(0, count, _TERMS):
                terms = min(_TERMS, count - begin)
                for term in range(terms):
                    b = listed[begin + term]
                    for i in range(block):
                        scale[term * block + i] = grad[b, g * block + i] * gates[b, g]
                        bias[g * block + i] += scale[term * block + i]
                for j in range(0, inputs, _WIDE // like.itemsize):
                    last = min(j + _WIDE // like.itemsize, inputs)
                    for i in range(0, block, _ROWS):
                        for r in range(_ROWS):
                            begins[r] = min(i + r, block - 1)
                            rows[r] = to + begins[r]
                        _add_combinations(out, rows, j, last, x, listed, begin, scale, begins, block, terms)


@inlined
def _add_combinations(
    out: Any,
    rows: Any,
    j: Any,
    last: Any,
    matrix: Any,
    index: Any,
    begin: Any,
    scale: Any,
    begins: Any,
    step: Any,
    terms: Any,
) -> None:
    """Add to rows of `out` the linear combinations of rows of a matrix, in the columns from j to last - 1."""
    targets, places = _tuple(rows, _ROWS), _tuple(begins, _ROWS)
    while j + _WIDE // out.itemsize <= last:
        _add_wide(out, targets, j, matrix, index, begin, scale, places, step, terms)
        j += _WIDE // out.itemsize
    while j + _NARROW // out.itemsize <= last:
        _add_narrow(out, targets, j, matrix, index, begin, scale, places, step, terms)
        j += _NARROW // out.itemsize
    while j < last:
        _add_one(out, targets, j, matrix, index, begin, scale, places, step, terms)
        j += 1
