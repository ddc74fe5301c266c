"""The bits of float16 numbers, converted by one instruction for a whole vector where the processor has one."""

from __future__ import annotations

from typing import Any

from llvmlite import ir
from numba import types
from numba.extending import intrinsic

from gradest.kernels.cpu.compilation.compiler import Decorator
from gradest.kernels.cpu.compilation.processors import has_feature

__all__ = ["as_bits", "as_number", "converts"]

_intrinsic: Decorator = intrinsic
_FLAG, _BITS = ir.IntType(1), ir.IntType(16)


@_intrinsic
def converts(typing: Any) -> Any:
    """Tell whether the processor has the instructions. Elsewhere LLVM would call functions of a library that may not be there."""

    def generate(context: Any, builder: Any, signature: Any, values: Any) -> Any:
        return ir.Constant(_FLAG, int(has_feature("f16c")))

    return types.boolean(), generate


@_intrinsic
def as_number(typing: Any, bits: Any) -> Any:
    """Return the float32 number of the bits of a float16 one."""

    def generate(context: Any, builder: Any, signature: Any, values: Any) -> Any:
        return builder.fpext(builder.bitcast(values[0], ir.HalfType()), ir.FloatType())

    return types.float32(types.uint16), generate


@_intrinsic
def as_bits(typing: Any, x: Any) -> Any:
    """Return the bits of the float16 number nearest to a float32 one, and of two as near those of the even one."""

    def generate(context: Any, builder: Any, signature: Any, values: Any) -> Any:
        return builder.bitcast(builder.fptrunc(values[0], ir.HalfType()), _BITS)

    return types.uint16(types.float32), generate
