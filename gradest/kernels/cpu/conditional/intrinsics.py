"""What the conditional layer needs and numba lacks, in LLVM code: a shared counter, and sums with a fixed order of additions."""

from __future__ import annotations

from typing import Any

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

from gradest.kernels.cpu.compilation.compiler import Decorator

__all__ = ["dot_products", "linear_combination", "take_next"]

_intrinsic: Decorator = intrinsic
_INDEX = ir.IntType(64)
_ONE = ir.Constant(_INDEX, 1)


@_intrinsic
def take_next(typing: Any, counter: Any) -> Any:
    """Return the number at the address and increase it by one, atomically, so that threads can share it."""

    def generate(context: Any, builder: Any, signature: Any, values: Any) -> Any:
        return builder.atomic_rmw("add", builder.inttoptr(values[0], _INDEX.as_pointer()), _ONE, "monotonic")

    return types.int64(types.int64), generate


def _vector(number: Any, width: int) -> Any:
    return number if width == 1 else ir.VectorType(number, width)


def _load(builder: Any, number: Any, row: Any, at: Any, width: int) -> Any:
    """Load `width` numbers of a row; 16-bit integers are the bits of bfloat16, and are widened."""
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
def dot_products(typing: Any, x: Any, examples: Any, w: Any, units: Any) -> Any:
    """Return the dot products of rows of x with rows of w, for all pairs; those of one example are adjacent.

    Lane l adds up the products l, l + lanes, ...; then one half of the lanes is added to the other until one is left. The
    products that do not fill all lanes are added last.
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


def linear_combination(size: int) -> Any:
    """Make a function that computes out[row] = Σ_k scale[k] * matrix[index[k]] for k from begin to end.

    It writes `size` bytes of the row from a column on, or one number if size is 0.
    """

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
