"""The indices of some numbers of many, side by side: in LLVM code, because numba's own loop takes each number by itself."""

from __future__ import annotations

from typing import Any

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

from gradest.kernels.cpu.compilation.compiler import Decorator
from gradest.kernels.cpu.compilation.processors import has_wide_registers

__all__ = ["PACKED", "pack", "packs"]

PACKED = 16
"""How many numbers `pack` looks at."""

_intrinsic: Decorator = intrinsic
_INDEX, _PLACE, _FLAG = ir.IntType(64), ir.IntType(32), ir.IntType(1)


@_intrinsic
def packs(typing: Any) -> Any:
    """Tell whether the processor packs the marked lanes of a vector by one instruction, as those with AVX-512 do."""

    def generate(context: Any, builder: Any, signature: Any, values: Any) -> Any:
        return ir.Constant(_FLAG, int(has_wide_registers()))

    return types.boolean(), generate


@_intrinsic
def pack(typing: Any, x: Any, at: Any, middle: Any, edge: Any, place: Any, count: Any) -> Any:
    """Write the indices of those of the numbers x[at] to x[at + `PACKED` - 1] that `beyond` looks for; return how many.

    They are written to place[count] and on, and something else up to place[count + `PACKED` - 1].
    """

    def generate(context: Any, builder: Any, signature: Any, values: Any) -> Any:
        numbers, places = ir.VectorType(context.get_data_type(x.dtype), PACKED), ir.VectorType(_PLACE, PACKED)

        def at_index(kind: Any, array: Any, index: Any, vector: Any) -> Any:
            data = context.make_array(kind)(context, builder, array).data
            return builder.bitcast(builder.gep(data, [index]), vector.as_pointer())

        def call(name: str, result: Any, *arguments: Any) -> Any:
            kind = ir.FunctionType(result, [one.type for one in arguments])
            return builder.call(cgutils.get_or_insert_function(builder.module, kind, name), arguments)  # type: ignore[no-untyped-call]

        def same(number: Any, vector: Any) -> Any:
            first = builder.insert_element(ir.Constant(vector, ir.Undefined), number, ir.Constant(_PLACE, 0))
            return builder.shuffle_vector(first, first, ir.Constant(places, [0] * PACKED))

        given = builder.load(at_index(x, values[0], values[1], numbers), align=x.dtype.bitwidth // 8)
        apart = builder.fsub(given, same(values[2], numbers))
        distance = call(f"llvm.fabs.v{PACKED}f{x.dtype.bitwidth}", numbers, apart)
        marked = builder.fcmp_unordered(">", distance, same(values[3], numbers))
        own = same(builder.trunc(values[1], _PLACE), places)
        indices = builder.add(own, ir.Constant(places, [*range(PACKED)]))
        packed = call(f"llvm.experimental.vector.compress.v{PACKED}i32", places, indices, marked, indices)
        builder.store(packed, at_index(place, values[4], values[5], places), align=4)
        bits = builder.bitcast(marked, ir.IntType(PACKED))
        return builder.zext(builder.ctpop(bits), _INDEX)

    return types.int64(x, types.int64, middle, edge, place, types.int64), generate
