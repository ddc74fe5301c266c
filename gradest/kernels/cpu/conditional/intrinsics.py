"""What the conditional layer needs and numba lacks, in LLVM code: a shared counter, and sums with a fixed order of additions."""

from __future__ import annotations

from typing import Any

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

from gradest.kernels.cpu.compilation.compiler import Decorator

__all__ = ["PRODUCTS", "dot_products", "linear_combination", "linear_combinations", "take_next"]

PRODUCTS = 32
"""The number of products for which the buffer of `dot_products` has space."""

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


def _in_all_lanes(builder: Any, number: Any, kind: Any) -> Any:
    """Return a vector of the kind, or the number itself if the kind is that of one number."""
    if number.type == kind:
        return number
    one = builder.insert_element(ir.Constant(kind, None), number, ir.Constant(ir.IntType(32), 0))
    mask = ir.Constant(ir.VectorType(ir.IntType(32), kind.count), [0] * kind.count)
    return builder.shuffle_vector(one, ir.Constant(kind, None), mask)


def _zero(builder: Any, kind: Any) -> Any:
    return cgutils.alloca_once_value(builder, ir.Constant(kind, None))  # type: ignore[no-untyped-call]


@_intrinsic
def dot_products(typing: Any, out: Any, x: Any, examples: Any, w: Any, units: Any) -> Any:
    """Write the dot products of rows of x with rows of w, for all pairs, to `out`; those of one example are adjacent.

    Lane l adds up the products l, l + lanes, ...; then one half of the lanes is added to the other until one is left. The
    products that do not fill all lanes are added last. `out` has space for PRODUCTS numbers.
    """
    lanes = 512 // x.dtype.bitwidth
    count = examples.count * units.count

    def generate(context: Any, builder: Any, signature: Any, values: Any) -> Any:
        number = context.get_value_type(x.dtype)
        target = context.make_array(out)(context, builder, values[0]).data

        def rows(kind: Any, array: Any, numbers: Any) -> tuple[Any, list[Any]]:
            given = context.make_array(kind)(context, builder, array)
            size = builder.extract_value(given.shape, 1)
            starts = [builder.mul(builder.extract_value(numbers, i), size) for i in range(len(numbers.type.elements))]
            return size, [builder.gep(given.data, [start]) for start in starts]

        size, left = rows(x, *values[1:3])
        _, right = rows(w, *values[3:5])

        def add_products(sums: list[Any], begin: Any, end: Any, width: int) -> None:
            with cgutils.for_range_slice(builder, begin, end, ir.Constant(_INDEX, width), inc=True) as (at, _):
                ones = [_load(builder, number, row, at, width) for row in left]
                for j, row in enumerate(right):  # one row of w at a time, so that all sums stay in registers
                    other = _load(builder, number, row, at, width)
                    for i, one in enumerate(ones):
                        _multiply_add(builder, sums[i * len(right) + j], one, other)

        whole = builder.sub(size, builder.urem(size, ir.Constant(_INDEX, lanes)))
        sums = [_zero(builder, _vector(number, lanes)) for _ in range(count)]
        add_products(sums, ir.Constant(_INDEX, 0), whole, lanes)
        at = 0
        for totals in _sums_of_lanes(builder, [builder.load(place) for place in sums]):
            place = builder.gep(target, [ir.Constant(_INDEX, at)])
            builder.store(totals, builder.bitcast(place, totals.type.as_pointer()), align=4)
            at += totals.type.count
        assert at <= PRODUCTS, "the buffer is too small"
        add_products([builder.gep(target, [ir.Constant(_INDEX, i)]) for i in range(count)], whole, size, 1)
        return context.get_dummy_value()

    numbers: list[Any] = [types.UniTuple(types.int64, side.count) for side in (examples, units)]  # type: ignore[no-untyped-call]
    return types.none(out, x, numbers[0], w, numbers[1]), generate


def _sums_of_lanes(builder: Any, vectors: list[Any]) -> list[Any]:
    """Return vectors of the sums of the lanes of each vector, in order. Behind the last sum there may be other numbers.

    A vector holds `groups` groups of lanes, each of which is halved in every round. Two vectors are halved at once.
    """
    groups, width = 1, vectors[0].type.count
    while width > 1:
        half, given = width // 2, vectors
        sides = 2 if len(given) > 1 else 1
        starts = [width * group for group in range(sides * groups)]
        low = [start + lane for start in starts for lane in range(half)]
        vectors = []
        for i in range(0, len(given), 2):
            pair = given[i], given[min(i + 1, len(given) - 1)]
            masks = (
                ir.Constant(ir.VectorType(ir.IntType(32), len(low)), [lane + by for lane in low]) for by in (0, half)
            )
            vectors.append(builder.fadd(*(builder.shuffle_vector(*pair, mask) for mask in masks)))
        groups, width = sides * groups, half
    return vectors


def linear_combinations(size: int, rows: int) -> Any:
    """Make a function that computes out[target[r]] += Σ_k scale[first[r] + k * step] * matrix[index[begin + k]] for k < count.

    There are `rows` targets, and a row that is listed twice is computed twice. It does this for `size` bytes of each row from a
    column on, or for one number if size is 0. The sum begins with the number in `out`.
    """

    @_intrinsic
    def combine(
        typing: Any,
        out: Any,
        target: Any,
        column: Any,
        matrix: Any,
        index: Any,
        begin: Any,
        scale: Any,
        first: Any,
        step: Any,
        count: Any,
    ) -> Any:
        width = max(1, 8 * size // out.dtype.bitwidth)

        def generate(context: Any, builder: Any, signature: Any, values: Any) -> Any:
            number = context.get_value_type(out.dtype)
            to, source, listed, factors = (
                context.make_array(signature.args[i])(context, builder, values[i]) for i in (0, 3, 4, 6)
            )
            columns = builder.extract_value(to.shape, 1)
            whole = _vector(number, width).as_pointer()
            places, totals, scales = [], [], []
            for r in range(rows):
                at = builder.add(builder.mul(builder.extract_value(values[1], r), columns), values[2])
                places.append(builder.bitcast(builder.gep(to.data, [at]), whole))
                scales.append(builder.gep(factors.data, [builder.extract_value(values[7], r)]))
            for place in places:
                totals.append(cgutils.alloca_once_value(builder, builder.load(place, align=4)))  # type: ignore[no-untyped-call]
            with cgutils.for_range(builder, values[9]) as loop:
                at = builder.add(values[5], loop.index)
                begins = builder.mul(builder.zext(builder.load(builder.gep(listed.data, [at])), _INDEX), columns)
                given = _load(builder, number, builder.gep(source.data, [begins]), values[2], width)
                for total, factor in zip(totals, scales, strict=True):
                    by = builder.load(builder.gep(factor, [builder.mul(loop.index, values[8])]))
                    _multiply_add(builder, total, _in_all_lanes(builder, by, given.type), given)
            for total, place in zip(totals, places, strict=True):
                builder.store(builder.load(total), place, align=4)
            return context.get_dummy_value()

        numbers: Any = types.UniTuple(types.int64, rows)  # type: ignore[no-untyped-call]
        integer = types.int64
        return types.none(out, numbers, integer, matrix, index, integer, scale, numbers, integer, integer), generate

    return combine


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
                _multiply_add(builder, total, _in_all_lanes(builder, by, given.type), given)
            place = builder.gep(target.data, [builder.add(builder.mul(values[1], columns), values[2])])
            result = builder.load(total)
            builder.store(result, builder.bitcast(place, result.type.as_pointer()), align=4)
            return context.get_dummy_value()

        integers = (types.int64, types.int64)
        return types.none(out, *integers, matrix, index, scale, *integers), generate

    return combine
