"""The kernels that compute each unit alone: for one example, and for blocks of few units.

A kernel takes `given`, a tuple of sizes and addresses (batch, inputs, blocks, units a block, chunks, plan, gates, and then its
own), `counter`, the address of the counter, and `like` and `weight_like`, empty arrays that tell the type of numbers and of
weights. `gradest.kernels.cpu.conditional.plans` describes the plan.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from gradest.kernels.cpu.compilation.compiler import array, compiled_with_fma, inlined
from gradest.kernels.cpu.conditional.intrinsics import PRODUCTS, dot_products, linear_combination, take_next
from gradest.kernels.cpu.conditional.plans import plan_arrays

__all__ = ["forward", "grad_input", "grad_weight"]

_EXAMPLES_PER_PIECE = 16  # in the gradient with respect to the inputs
_UNITS_PER_PIECE = 32  # elsewhere
_UNITS_PER_PIECE_OF_ONE_EXAMPLE = 512

_WIDE, _NARROW = 256, 32  # bytes
_combine_wide, _combine_narrow, _combine_one = map(linear_combination, (_WIDE, _NARROW, 0))


@compiled_with_fma
def forward(given: Any, counter: Any, like: Any, weight_like: Any) -> None:
    """Write gates * (x W^T + b) where gates are open, and x W^T + b if its address is not 0."""
    batch, inputs, blocks, block, chunks, plan_at, gates_at = given[:7]
    x_at, w_at, bias_at, out_at, ungated_at = given[7:12]
    units, (_, starts, members) = blocks * block, plan_arrays(plan_at, batch, blocks, chunks)
    x, w = array(x_at, (batch, inputs), like), array(w_at, (units, inputs), weight_like)
    bias, gates = array(bias_at, (units,), like), array(gates_at, (batch, blocks), like)
    out, ungated = array(out_at, (batch, units), like), array(ungated_at, (batch, units), like)
    y = np.empty(PRODUCTS, like.dtype)
    each = max(1, (_UNITS_PER_PIECE_OF_ONE_EXAMPLE if batch == 1 else _UNITS_PER_PIECE) // block)
    pieces = -(-blocks // each)
    while True:
        piece = take_next(counter)
        if piece >= pieces * len(starts):
            return
        chunk, first = piece // pieces, piece % pieces * each
        if batch == 1:
            _one_example(first, min(first + each, blocks), block, x, w, bias, gates, out, ungated, ungated_at, y)
            continue
        listed = members[chunk]
        for g in range(first, min(first + each, blocks)):
            begin, end = starts[chunk, g], starts[chunk, g + 1]
            if begin == end:
                continue
            u, last = g * block, (g + 1) * block
            while u + 2 <= last:
                _two_units(u, g, listed, begin, end, x, w, bias, gates, out, ungated, ungated_at, y)
                u += 2
            if u < last:
                _one_unit(u, g, listed, begin, end, x, w, bias, gates, out, ungated, ungated_at, y)


@inlined
def _one_example(
    g: Any, end: Any, block: Any, x: Any, w: Any, bias: Any, gates: Any, out: Any, ungated: Any, keep: Any, y: Any
) -> None:
    """Compute units of several blocks at a time, because the additions of a single sum wait for one another."""
    units, k = np.empty(4, np.int64), 0
    while g < end:
        if gates[0, g] != 0:
            for u in range(g * block, (g + 1) * block):
                units[k] = u
                k += 1
                if k == 4:
                    dot_products(y, x, (0,), w, (units[0], units[1], units[2], units[3]))
                    for i in range(4):
                        _put(0, units[i], units[i] // block, y[i], bias, gates, out, ungated, keep)
                    k = 0
        g += 1
    for i in range(k):
        dot_products(y, x, (0,), w, (units[i],))
        _put(0, units[i], units[i] // block, y[0], bias, gates, out, ungated, keep)


@inlined
def _two_units(
    u: Any,
    g: Any,
    m: Any,
    k: Any,
    end: Any,
    x: Any,
    w: Any,
    bias: Any,
    gates: Any,
    out: Any,
    ungated: Any,
    keep: Any,
    y: Any,
) -> None:
    """Compute two adjacent units for the examples m[k] to m[end - 1]."""
    while k + 3 <= end:
        dot_products(y, x, (m[k], m[k + 1], m[k + 2]), w, (u, u + 1))
        for i in range(6):
            _put(m[k + i // 2], u + i % 2, g, y[i], bias, gates, out, ungated, keep)
        k += 3
    while k < end:
        dot_products(y, x, (m[k],), w, (u, u + 1))
        for i in range(2):
            _put(m[k], u + i, g, y[i], bias, gates, out, ungated, keep)
        k += 1


@inlined
def _one_unit(
    u: Any,
    g: Any,
    m: Any,
    k: Any,
    end: Any,
    x: Any,
    w: Any,
    bias: Any,
    gates: Any,
    out: Any,
    ungated: Any,
    keep: Any,
    y: Any,
) -> None:
    """Compute one unit for the examples m[k] to m[end - 1]."""
    while k + 4 <= end:
        dot_products(y, x, (m[k], m[k + 1], m[k + 2], m[k + 3]), w, (u,))
        for i in range(4):
            _put(m[k + i], u, g, y[i], bias, gates, out, ungated, keep)
        k += 4
    if k + 2 <= end:
        dot_products(y, x, (m[k], m[k + 1]), w, (u,))
        for i in range(2):
            _put(m[k + i], u, g, y[i], bias, gates, out, ungated, keep)
        k += 2
    while k < end:
        dot_products(y, x, (m[k],), w, (u,))
        _put(m[k], u, g, y[0], bias, gates, out, ungated, keep)
        k += 1


@inlined
def _put(b: Any, u: Any, g: Any, y: Any, bias: Any, gates: Any, out: Any, ungated: Any, keep: Any) -> None:
    """Write the outputs of one unit for one example."""
    y += bias[u]
    out[b, u] = gates[b, g] * y
    if keep:
        ungated[b, u] = y


@compiled_with_fma
def grad_input(given: Any, counter: Any, like: Any, weight_like: Any) -> None:
    """Compute the gradient with respect to x."""
    batch, inputs, blocks, block, _, _, gates_at, grad_at, w_at, out_at = given[:10]
    units = blocks * block
    grad, w = array(grad_at, (batch, units), like), array(w_at, (units, inputs), weight_like)
    gates, out = array(gates_at, (batch, blocks), like), array(out_at, (batch, inputs), like)
    index, scale = (
        np.empty(_EXAMPLES_PER_PIECE * units + 1, np.uint32),
        np.empty(_EXAMPLES_PER_PIECE * units + 1, like.dtype),
    )
    ends = np.zeros(_EXAMPLES_PER_PIECE + 1, np.int64)
    while True:
        first = take_next(counter) * _EXAMPLES_PER_PIECE
        if first >= batch:
            return
        count, k = min(_EXAMPLES_PER_PIECE, batch - first), 0
        for i in range(count):
            for g in range(blocks):
                gate = gates[first + i, g]
                if gate != 0:
                    for u in range(g * block, (g + 1) * block):
                        index[k], scale[k] = u, grad[first + i, u] * gate
                        k += 1
            ends[i + 1] = k
        j = 0
        while j + _WIDE // like.itemsize <= inputs:
            for i in range(count):
                _combine_wide(out, first + i, j, w, index, scale, ends[i], ends[i + 1])
            j += _WIDE // like.itemsize
        while j + _NARROW // like.itemsize <= inputs:
            for i in range(count):
                _combine_narrow(out, first + i, j, w, index, scale, ends[i], ends[i + 1])
            j += _NARROW // like.itemsize
        while j < inputs:
            for i in range(count):
                _combine_one(out, first + i, j, w, index, scale, ends[i], ends[i + 1])
            j += 1


@compiled_with_fma
def grad_weight(given: Any, counter: Any, like: Any, weight_like: Any) -> None:
    """Compute the gradients with respect to W and b.

    compact: `out` has no rows for closed blocks. fill: it has, and they must be filled with zeros.
    """
    batch, inputs, blocks, block, chunks, plan_at, gates_at = given[:7]
    grad_at, x_at, out_at, bias_at, compact, fill = given[7:13]
    units, (opened, starts, members) = blocks * block, plan_arrays(plan_at, batch, blocks, chunks)
    grad, x = array(grad_at, (batch, units), like), array(x_at, (batch, inputs), like)
    gates, out = array(gates_at, (batch, blocks), like), array(out_at, (units, inputs), like)
    bias = array(bias_at, (units,), like)
    index, gate, scale = np.empty(batch, np.uint32), np.empty(batch, like.dtype), np.empty(batch, like.dtype)
    each = max(1, _UNITS_PER_PIECE // block)
    pieces = -(-blocks // each)
    while True:
        piece = take_next(counter)
        if piece >= pieces:
            return
        for g in range(piece * each, min((piece + 1) * each, blocks)):
            if opened[g] < 0 and not fill:
                continue
            count = 0
            for chunk in range(len(starts)):
                for k in range(starts[chunk, g], starts[chunk, g + 1]):
                    index[count], gate[count] = members[chunk, k], gates[members[chunk, k], g]
                    count += 1
            for i in range(block):
                u = g * block + i
                row, total = opened[g] * block + i if compact else u, like.dtype.type(0)
                for k in range(count):
                    scale[k] = grad[index[k], u] * gate[k]
                    total += scale[k]
                bias[u] = total
                j = 0
                while j + _WIDE // like.itemsize <= inputs:
                    _combine_wide(out, row, j, x, index, scale, 0, count)
                    j += _WIDE // like.itemsize
                while j + _NARROW // like.itemsize <= inputs:
                    _combine_narrow(out, row, j, x, index, scale, 0, count)
                    j += _NARROW // like.itemsize
                while j < inputs:
                    _combine_one(out, row, j, x, index, scale, 0, count)
                    j += 1
