"""Kernels for the CPU of a linear layer that computes only what its gates let through.

An open pair is an example and a block of units whose gate it opens. A plan lists, for every chunk of examples and every block,
the examples that open it: each row of weights is then read once a chunk, for all of them. The order of every sum follows from
the pair alone, so bits depend neither on the batch around an example nor on the number of threads.

Tensors are handed over by address, since making numpy arrays of them takes as long as the arithmetic of one example. Large
problems are worked on by the threads that torch has, where its OpenMP is GNU's: threads of our own would have to compete with
those, which stay awake for a while after each operation of torch. They take pieces of work from a common counter.
"""

from __future__ import annotations

import ctypes
import functools
import os
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from llvmlite import ir
from numba import cfunc, njit, types
from numba.core import cgutils
from numba.extending import intrinsic
from numba.np.numpy_support import carray
from numba.np.unsafe.ndarray import to_fixed_tuple
from torch import Tensor

__all__ = ["Plan", "count", "forward", "grad_input", "grad_weight", "plan"]

_CHUNK = 128  # examples whose inputs stay in the cache
_EXAMPLES = 16  # examples that are a piece of work, in the gradient with respect to the inputs
_UNITS = 32  # units that are one otherwise
_ALONE = 512  # units that are one for a single example
_PER_THREAD = 1 << 17  # multiply-adds that are worth a thread
_WORDS = 16  # arguments of a kernel
_Arguments = ctypes.c_int64 * _WORDS

# by an empty array kernels are told a type; bfloat16 is its bits, which are the upper half of a float32
_LIKE: dict[torch.dtype, Any] = {
    torch.float32: np.empty(0, np.float32),
    torch.float64: np.empty(0, np.float64),
    torch.bfloat16: np.empty(0, np.uint16),
}

_Compiler = Callable[[Callable[..., Any]], Callable[..., Any]]
_compiled: _Compiler = njit(nogil=True, cache=True, error_model="numpy", fastmath={"contract"})
_inlined: _Compiler = njit(inline="always")
_intrinsic: _Compiler = intrinsic
_tuple: Any = to_fixed_tuple

# --- what numba lacks: memory by its address, and sums in an order that is written down ---------------------------------------

_INT32, _INT64 = np.empty(0, np.int32), np.empty(0, np.int64)
_INDEX = ir.IntType(64)
_ONE = ir.Constant(_INDEX, 1)


@_intrinsic
def _pointer(typing: Any, address: Any, like: Any) -> Any:
    def generate(context: Any, builder: Any, signature: Any, values: Any) -> Any:
        return builder.inttoptr(values[0], context.get_value_type(signature.return_type))

    return types.CPointer(like.dtype)(types.int64, like), generate  # type: ignore[no-untyped-call]


@_inlined
def _matrix(address: Any, rows: Any, columns: Any, like: Any) -> Any:
    return carray(_pointer(address, like), (rows, columns))


@_inlined
def _plan(at: Any, batch: Any, blocks: Any, chunks: Any) -> Any:
    opened = _matrix(at, 1, blocks, _INT32)[0]
    starts = _matrix(at + 4 * blocks, chunks, blocks + 1, _INT32)
    members = _matrix(at + 4 * (blocks + starts.size), chunks, min(batch, _CHUNK) * blocks + 1, _INT32)
    return opened, starts, members


@_intrinsic
def _take(typing: Any, counter: Any) -> Any:
    """The number at the address, which is then one more; safe between threads."""

    def generate(context: Any, builder: Any, signature: Any, values: Any) -> Any:
        return builder.atomic_rmw("add", builder.inttoptr(values[0], _INDEX.as_pointer()), _ONE, "monotonic")

    return types.int64(types.int64), generate


def _vector(number: Any, width: int) -> Any:
    return number if width == 1 else ir.VectorType(number, width)


def _load(builder: Any, number: Any, row: Any, at: Any, width: int) -> Any:
    """`width` numbers of a row; bits of bfloat16 are widened."""
    narrow = row.type.pointee == ir.IntType(16)
    kind = _vector(row.type.pointee, width)
    value = builder.load(builder.bitcast(builder.gep(row, [at]), kind.as_pointer()), align=2 if narrow else 4)
    if not narrow:
        return value
    word = _vector(ir.IntType(32), width)
    shift = ir.Constant(word, 16 if width == 1 else [16] * width)
    return builder.bitcast(builder.shl(builder.zext(value, word), shift), _vector(number, width))


def _multiply_add(builder: Any, place: Any, one: Any, other: Any) -> None:
    product = builder.fmul(one, other, flags=("contract",))
    builder.store(builder.fadd(builder.load(place), product, flags=("contract",)), place)


def _zero(builder: Any, kind: Any) -> Any:
    return cgutils.alloca_once_value(builder, ir.Constant(kind, None))  # type: ignore[no-untyped-call]


@_intrinsic
def _dots(typing: Any, x: Any, examples: Any, w: Any, units: Any) -> Any:
    """The dot products of rows of x with rows of w, all pairs, the units of an example beside each other.

    Lane l adds up the products l, l + lanes, ...; the halves of the lanes are added until one is left; what does not fill the
    lanes is added last.
    """
    sides = [(x, examples.count), (w, units.count)]
    lanes = 512 // x.dtype.bitwidth

    def generate(context: Any, builder: Any, signature: Any, values: Any) -> Any:
        number = context.get_value_type(x.dtype)
        size, rows = None, []
        for (kind, count), array, numbers in zip(sides, values[::2], values[1::2], strict=True):
            given = context.make_array(kind)(context, builder, array)
            size = builder.extract_value(given.shape, 1)
            begins = [builder.mul(builder.extract_value(numbers, i), size) for i in range(count)]
            rows.append([builder.gep(given.data, [begin]) for begin in begins])

        def add_products(sums: list[Any], begin: Any, end: Any, width: int) -> None:
            with cgutils.for_range_slice(builder, begin, end, ir.Constant(_INDEX, width), inc=True) as (at, _):
                left, right = ([_load(builder, number, row, at, width) for row in side] for side in rows)
                for place, (one, other) in zip(sums, ((one, other) for one in left for other in right), strict=True):
                    _multiply_add(builder, place, one, other)

        whole = builder.sub(size, builder.urem(size, ir.Constant(_INDEX, lanes)))
        sums = [_zero(builder, _vector(number, lanes)) for _ in range(examples.count * units.count)]
        add_products(sums, ir.Constant(_INDEX, 0), whole, lanes)
        totals = [cgutils.alloca_once_value(builder, _sum_of_lanes(builder, builder.load(place))) for place in sums]  # type: ignore[no-untyped-call]
        add_products(totals, whole, size, 1)
        return context.make_tuple(builder, signature.return_type, [builder.load(place) for place in totals])

    count = examples.count * units.count
    rows = [types.UniTuple(types.int64, count) for _, count in sides]  # type: ignore[no-untyped-call]
    return types.UniTuple(x.dtype, count)(x, rows[0], w, rows[1]), generate  # type: ignore[no-untyped-call]


def _sum_of_lanes(builder: Any, vector: Any) -> Any:
    width = vector.type.count
    while width > 1:
        width //= 2
        masks = [ir.Constant(ir.VectorType(ir.IntType(32), width), list(range(i, i + width))) for i in (0, width)]
        vector = builder.fadd(*(builder.shuffle_vector(vector, ir.Constant(vector.type, None), mask) for mask in masks))
    return builder.extract_element(vector, ir.Constant(ir.IntType(32), 0))


def _combining(size: int) -> Any:
    """A function that writes `size` bytes, or one number, from a column on: out[row] = Σ_k scale[k] * matrix[index[k]]."""

    @_intrinsic
    def combine(
        typing: Any, out: Any, row: Any, column: Any, matrix: Any, index: Any, scale: Any, begin: Any, end: Any
    ) -> Any:
        width = max(1, 8 * size // out.dtype.bitwidth)

        def generate(context: Any, builder: Any, signature: Any, values: Any) -> Any:
            number = context.get_value_type(out.dtype)
            target, source, listed, factor = (
                context.make_array(signature.args[i])(context, builder, values[i]) for i in (0, 3, 4, 5)
            )
            columns = builder.extract_value(target.shape, 1)
            total = _zero(builder, _vector(number, width))
            with cgutils.for_range_slice(builder, values[6], values[7], _ONE, inc=True) as (k, _):
                begins = builder.mul(builder.zext(builder.load(builder.gep(listed.data, [k])), _INDEX), columns)
                given = _load(builder, number, builder.gep(source.data, [begins]), values[2], width)
                by = builder.load(builder.gep(factor.data, [k]))
                if width > 1:
                    lane = ir.Constant(ir.IntType(32), 0)
                    by = builder.insert_element(ir.Constant(given.type, None), by, lane)
                    mask = ir.Constant(ir.VectorType(ir.IntType(32), width), [0] * width)
                    by = builder.shuffle_vector(by, ir.Constant(given.type, None), mask)
                _multiply_add(builder, total, by, given)
            place = builder.gep(target.data, [builder.add(builder.mul(values[1], columns), values[2])])
            result = builder.load(total)
            builder.store(result, builder.bitcast(place, result.type.as_pointer()), align=4)
            return context.get_dummy_value()

        integers = (types.int64, types.int64)
        return types.none(out, *integers, matrix, index, scale, *integers), generate

    return combine


_WIDE, _NARROW = 256, 32  # bytes
_combine_wide, _combine_narrow, _combine_one = _combining(_WIDE), _combining(_NARROW), _combining(0)

# --- the kernels -------------------------------------------------------------------------------------------------------------
#
# `given` are sizes and addresses: batch, inputs, blocks, units a block, chunks, plan, gates, and so on; `counter` is the address
# of the counter.
# A plan is `opened` `[blocks]`, the number of each block among those that are open, or -1; `starts` `[chunks, blocks + 1]`; and
# `members`, for each chunk: those from starts[c, g] to starts[c, g + 1] are the examples of chunk c that open block g.


@_compiled
def _list(given: Any, counter: Any, like: Any, kept: Any) -> None:
    """Fills the plan; the counter becomes the number of pairs times 2^32, and of open blocks."""
    batch, blocks, chunks, plan_at, gates_at = given[:5]
    opened, starts, members = _plan(plan_at, batch, blocks, chunks)
    gates, pairs = _matrix(gates_at, batch, blocks, like), 0
    opened[:] = 0
    for chunk in range(chunks):
        listed, begins, k = members[chunk], starts[chunk], np.uint32(0)
        part = gates[chunk * _CHUNK : min((chunk + 1) * _CHUNK, batch)]
        for g in range(blocks):
            begins[g] = k
            for b in range(len(part)):
                listed[k] = chunk * _CHUNK + b  # a closed one is overwritten by the next
                k += np.uint32(part[b, g] != 0)
            opened[g] |= k - begins[g]
        begins[blocks] = k
        pairs += int(k)
    count = 0
    for g in range(blocks):
        found = opened[g] != 0
        opened[g] = count if found else -1
        count += found
    _matrix(counter, 1, 1, _INT64)[0, 0] = (pairs << 32) + count


@_compiled
def _count(given: Any, counter: Any, like: Any, kept: Any) -> None:
    size, gates_at = given[:2]
    pairs = 0
    for gate in _matrix(gates_at, 1, size, like)[0]:
        pairs += gate != 0
    _matrix(counter, 1, 1, _INT64)[0, 0] = pairs


@_compiled
def _forward(given: Any, counter: Any, like: Any, kept: Any) -> None:
    batch, inputs, blocks, block, chunks, plan_at, gates_at = given[:7]
    x_at, w_at, bias_at, out_at, experts_at = given[7:12]
    units, (_, starts, members) = blocks * block, _plan(plan_at, batch, blocks, chunks)
    x, w = _matrix(x_at, batch, inputs, like), _matrix(w_at, units, inputs, kept)
    bias, gates = _matrix(bias_at, 1, units, like), _matrix(gates_at, batch, blocks, like)
    out, experts = _matrix(out_at, batch, units, like), _matrix(experts_at, batch, units, like)
    each = max(1, (_ALONE if batch == 1 else _UNITS) // block)
    pieces = -(-blocks // each)
    while True:
        piece = _take(counter)
        if piece >= pieces * len(starts):
            return
        chunk, first = piece // pieces, piece % pieces * each
        if batch == 1:
            _one_example(first, min(first + each, blocks), block, x, w, bias, gates, out, experts, experts_at)
            continue
        listed = members[chunk]
        for g in range(first, min(first + each, blocks)):
            begin, end = starts[chunk, g], starts[chunk, g + 1]
            if begin == end:
                continue
            u, last = g * block, (g + 1) * block
            while u + 2 <= last:
                _two_units(u, g, listed, begin, end, x, w, bias, gates, out, experts, experts_at)
                u += 2
            if u < last:
                _one_unit(u, g, listed, begin, end, x, w, bias, gates, out, experts, experts_at)


@_inlined
def _one_example(
    g: Any, end: Any, block: Any, x: Any, w: Any, bias: Any, gates: Any, out: Any, experts: Any, keep: Any
) -> None:
    """Units of several blocks at a time: a sum alone waits for each of its additions."""
    units, k = np.empty(4, np.int64), 0
    while g < end:
        if gates[0, g] != 0:
            for u in range(g * block, (g + 1) * block):
                units[k] = u
                k += 1
                if k == 4:
                    y = _dots(x, (0,), w, (units[0], units[1], units[2], units[3]))
                    for i in range(4):
                        _put(0, units[i], units[i] // block, y[i], bias, gates, out, experts, keep)
                    k = 0
        g += 1
    for i in range(k):
        y = _dots(x, (0,), w, (units[i],))
        _put(0, units[i], units[i] // block, y[0], bias, gates, out, experts, keep)


@_inlined
def _two_units(
    u: Any, g: Any, m: Any, k: Any, end: Any, x: Any, w: Any, bias: Any, gates: Any, out: Any, experts: Any, keep: Any
) -> None:
    while k + 3 <= end:
        y = _dots(x, (m[k], m[k + 1], m[k + 2]), w, (u, u + 1))
        for i in range(6):
            _put(m[k + i // 2], u + i % 2, g, y[i], bias, gates, out, experts, keep)
        k += 3
    while k < end:
        y = _dots(x, (m[k],), w, (u, u + 1))
        for i in range(2):
            _put(m[k], u + i, g, y[i], bias, gates, out, experts, keep)
        k += 1


@_inlined
def _one_unit(
    u: Any, g: Any, m: Any, k: Any, end: Any, x: Any, w: Any, bias: Any, gates: Any, out: Any, experts: Any, keep: Any
) -> None:
    while k + 4 <= end:
        y = _dots(x, (m[k], m[k + 1], m[k + 2], m[k + 3]), w, (u,))
        for i in range(4):
            _put(m[k + i], u, g, y[i], bias, gates, out, experts, keep)
        k += 4
    if k + 2 <= end:
        y = _dots(x, (m[k], m[k + 1]), w, (u,))
        for i in range(2):
            _put(m[k + i], u, g, y[i], bias, gates, out, experts, keep)
        k += 2
    while k < end:
        y = _dots(x, (m[k],), w, (u,))
        _put(m[k], u, g, y[0], bias, gates, out, experts, keep)
        k += 1


@_inlined
def _put(b: Any, u: Any, g: Any, y: Any, bias: Any, gates: Any, out: Any, experts: Any, keep: Any) -> None:
    y += bias[0, u]
    out[b, u] = gates[b, g] * y
    if keep:
        experts[b, u] = y


@_compiled
def _grad_input(given: Any, counter: Any, like: Any, kept: Any) -> None:
    batch, inputs, blocks, block, _, _, gates_at, grad_at, w_at, out_at = given[:10]
    units = blocks * block
    grad, w = _matrix(grad_at, batch, units, like), _matrix(w_at, units, inputs, kept)
    gates, out = _matrix(gates_at, batch, blocks, like), _matrix(out_at, batch, inputs, like)
    index, scale = np.empty(_EXAMPLES * units + 1, np.uint32), np.empty(_EXAMPLES * units + 1, like.dtype)
    ends = np.zeros(_EXAMPLES + 1, np.int64)
    while True:
        first = _take(counter) * _EXAMPLES
        if first >= batch:
            return
        count, k = min(_EXAMPLES, batch - first), 0
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


@_compiled
def _grad_weight(given: Any, counter: Any, like: Any, kept: Any) -> None:
    """compact: blocks that are closed have no rows in `out`. fill: they have, and need their zeros."""
    batch, inputs, blocks, block, chunks, plan_at, gates_at = given[:7]
    grad_at, x_at, out_at, bias_at, compact, fill = given[7:13]
    units, (opened, starts, members) = blocks * block, _plan(plan_at, batch, blocks, chunks)
    grad, x = _matrix(grad_at, batch, units, like), _matrix(x_at, batch, inputs, like)
    gates, out = _matrix(gates_at, batch, blocks, like), _matrix(out_at, units, inputs, like)
    bias = _matrix(bias_at, 1, units, like)
    index, gate, scale = np.empty(batch, np.uint32), np.empty(batch, like.dtype), np.empty(batch, like.dtype)
    each = max(1, _UNITS // block)
    pieces = -(-blocks // each)
    while True:
        piece = _take(counter)
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
                bias[0, u] = total
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


# --- their callers -----------------------------------------------------------------------------------------------------------


@dataclass(eq=False, slots=True)
class Plan:
    """Which gates `[batch, blocks]` are open. pairs: of an example and a block; blocks: that some example opens."""

    gates: Tensor
    pairs: int
    blocks: int
    chunks: int
    words: Tensor


def plan(gates: Tensor) -> Plan:
    """The plan for gates `[batch, blocks]`; a gate is closed if it is 0."""
    gates, (batch, blocks) = gates.contiguous(), gates.shape
    chunks = -(-batch // _CHUNK)
    size = blocks + chunks * (blocks + 1 + min(batch, _CHUNK) * blocks + 1)
    words = torch.empty(size, dtype=torch.int32)
    given = _Arguments(batch, blocks, chunks, words.data_ptr(), gates.data_ptr())
    _function(_list, gates.dtype, gates.dtype)(given)
    return Plan(gates, given[-1] >> 32, given[-1] & 0xFFFFFFFF, chunks, words)


def count(gates: Tensor) -> int:
    """The pairs of a plan for gates, without it; ten times as fast as torch.count_nonzero."""
    gates = gates.contiguous()
    given = _Arguments(gates.numel(), gates.data_ptr())
    _function(_count, gates.dtype, gates.dtype)(given)
    return int(given[-1])


def forward(plan: Plan, x: Tensor, weight: Tensor, bias: Tensor, keep: bool) -> tuple[Tensor, Tensor | None]:
    """gates * (x W^T + b), `[batch, units]`, and x W^T + b where the gates are open, 0 elsewhere, if it is to be kept.

    x `[batch, inputs]` and bias `[units]` in the gates' dtype; weight `[units, inputs]` in the same, or bfloat16 for float32.
    """
    x, weight, bias = x.contiguous(), weight.contiguous(), bias.contiguous()
    out = x.new_zeros(len(x), len(weight))
    experts = torch.zeros_like(out) if keep else None
    tensors = (x, weight, bias, out)
    kept = 0 if experts is None else experts.data_ptr()
    block = len(weight) // plan.gates.shape[1]
    _run(_forward, plan, x.shape[1], weight.dtype, block, *map(Tensor.data_ptr, tensors), kept)
    return out, experts


def grad_input(plan: Plan, grad: Tensor, weight: Tensor) -> Tensor:
    """The gradient `[batch, inputs]` with respect to x, for `grad` `[batch, units]` with respect to the output."""
    grad, weight = grad.contiguous(), weight.contiguous()
    out = grad.new_empty(len(grad), weight.shape[1])
    block, tensors = len(weight) // plan.gates.shape[1], (grad, weight, out)
    _run(_grad_input, plan, weight.shape[1], weight.dtype, block, *map(Tensor.data_ptr, tensors))
    return out


def grad_weight(plan: Plan, grad: Tensor, x: Tensor, compact: bool) -> tuple[Tensor, Tensor, Tensor | None]:
    """The gradients with respect to W and b; compact: W's has the rows alone that an example opens, whose numbers come third."""
    grad, x, blocks = grad.contiguous(), x.contiguous(), plan.gates.shape[1]
    units, inputs = grad.shape[1], x.shape[1]
    block = units // blocks
    # where few blocks are open, torch writes the zeros of the others
    fill = not compact and 2 * plan.blocks > blocks
    bias, index = x.new_zeros(units), None
    if compact:
        index = (plan.words[:blocks] >= 0).nonzero()
        index = (index * block + torch.arange(block)).flatten() if block > 1 else index[:, 0]
        out = x.new_empty(len(index), inputs)
    else:
        out = x.new_empty(units, inputs) if fill else x.new_zeros(units, inputs)
    tensors = (grad, x, out, bias)
    _run(_grad_weight, plan, inputs, x.dtype, block, *map(Tensor.data_ptr, tensors), compact, fill)
    return out, bias, index


def _run(kernel: Any, plan: Plan, inputs: int, kept: torch.dtype, block: int, *rest: int) -> None:
    """The kernel, in as many threads as torch uses where there is enough to do. All that it is given must live until then."""
    batch, blocks = plan.gates.shape
    lists = plan.chunks, plan.words.data_ptr(), plan.gates.data_ptr()
    given = _Arguments(batch, inputs, blocks, block, *lists, *rest)
    function = _function(kernel, plan.gates.dtype, kept)
    threads = min(torch.get_num_threads(), plan.pairs * block * inputs // _PER_THREAD)
    if threads > 1 and _team:
        _team[0](function, given, threads, 0)
    else:
        function(given)


@functools.cache
def _function(kernel: Any, dtype: torch.dtype, kept: torch.dtype) -> Any:
    """The kernel as a C function of the address of its arguments, the last of which is the counter."""
    like, kept_like, last = _LIKE[dtype], _LIKE[kept], 8 * (_WORDS - 1)

    @cfunc("void(int64)")
    def call(at: Any) -> None:
        kernel(_tuple(carray(_pointer(at, _INT64), _WORDS), _WORDS), at + last, like, kept_like)

    address: Any = call.address
    function: Any = ctypes.CFUNCTYPE(None, ctypes.c_void_p)(address)
    function.code = call  # which numba frees with it
    return function


def _find_team() -> list[Any]:
    """GNU OpenMP's entry to its threads, if torch has loaded it."""
    try:
        team = ctypes.CDLL(None).GOMP_parallel
    except (AttributeError, OSError, TypeError):
        return []
    team.restype, team.argtypes = None, (ctypes.c_void_p, ctypes.c_void_p, ctypes.c_uint, ctypes.c_uint)
    return [team]


_team = _find_team()
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_team.clear)  # its threads do not survive a fork
