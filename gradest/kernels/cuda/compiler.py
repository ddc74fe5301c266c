"""How Triton compiles the kernels."""

from __future__ import annotations

import struct
from collections.abc import Callable
from typing import Any

import triton
import triton.language as tl

__all__ = ["IEEE", "compiled", "float_bits", "inlined", "option"]

_COUNTS = ["stream", "draws", "points", "row_count", "trials", "factor_stream"]
_OPTIONS = ["per_temperature", "height", "std", "slope", "shared", "own"]

compiled: Callable[..., Any] = triton.jit(do_not_specialize=_COUNTS + _OPTIONS)
"""Compile a kernel, once for all values of these arguments.

Triton by default compiles another kernel where an integer is 1. An option that changes during training, as a temperature does,
must not be a constant of the kernel, which would be compiled anew at every step.
"""

inlined: Callable[..., Any] = triton.jit
"""Compile a function into the kernels that call it, or a kernel for the values of its arguments."""


@inlined
def option(bits, dtype: tl.constexpr):
    """Return, inside a kernel, the number whose `float_bits` it was given, rounded to the dtype."""
    return bits.to(tl.int64).to(tl.float64, bitcast=True).to(dtype)


def float_bits(number: float) -> int:
    """Return the bits of a float64 as a signed integer, because Triton would pass a float in float32."""
    bits: int = struct.unpack("<q", struct.pack("<d", number))[0]
    return bits


IEEE = {"enable_fp_fusion": False}
"""Launch options that forbid the compiler to contract a product and a sum to one rounding."""
