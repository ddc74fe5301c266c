"""float16 and bfloat16 in memory: a kernel widens what it reads to float32 block by block, and narrows what it writes.

numba has no such types on a CPU, so their bits are moved as integers. A kernel for float32 serves them too.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from llvmlite import ir
from numba import types, uint16, uint32
from numba.extending import intrinsic, overload

from gradest.kernels.cpu.compilation.compiler import array, compiled
from gradest.kernels.cpu.tensors import LIKE, NUMPY
from gradest.kernels.cpu.vectors.conversion import as_bits, as_number, converts

__all__ = ["chosen", "computed_in", "format_of", "like", "read", "takes_halves", "write"]

_FORMATS = {torch.bfloat16: 1, torch.float16: 2}
_BITS = np.uint16(0)
_LEAST_NORMAL, _LEAST_INFINITE = np.uint32(113 << 23), np.uint32(143 << 23)  # 2^-14 and 2^16, as bits of a float32
_MAGIC = np.uint32(126 << 23)  # ½: a sum with it has the digits of a subnormal float16 as its last bits
_SUBNORMAL, _HALF = np.float32(2.0**-14), np.float32(0.5)


def format_of(dtype: torch.dtype) -> int:
    """Return 1 for bfloat16, 2 for float16, and 0 for dtypes in which kernels compute."""
    return _FORMATS.get(dtype, 0)


def computed_in(dtype: torch.dtype) -> Any:
    """Return the numpy type of the dtype in which numbers of this one are computed."""
    return np.float32 if dtype in _FORMATS else NUMPY[dtype]


def like(dtype: torch.dtype) -> Any:
    """Return a number of that type, as `LIKE` has."""
    return LIKE[torch.float32] if dtype in _FORMATS else LIKE[dtype]


def takes_halves(kernel: Callable[..., Any]) -> Callable[..., Any]:
    """Mark a function that takes tensors of float16 and bfloat16, and returns such a tensor for such pre-activations."""
    kernel.takes_halves = True  # type: ignore[attr-defined]
    return kernel


@compiled
def _widen_float16(bits: Any, wide: Any) -> None:
    for i in range(bits.size):
        word = uint32(bits[i])
        magnitude, sign = (word & uint32(0x7FFF)) << uint32(13), (word & uint32(0x8000)) << uint32(16)
        shifted = uint32(magnitude + uint32(112 << 23))
        subnormal = np.float32(np.uint32(shifted + uint32(1 << 23)).view(np.float32) - _SUBNORMAL).view(np.uint32)
        shifted = uint32(shifted + uint32(112 << 23)) if magnitude >= uint32(0x1F << 23) else shifted
        wide[i] = sign | (subnormal if magnitude < uint32(1 << 23) else shifted)


@compiled
def _narrow_to_float16(wide: Any, bits: Any) -> None:
    for i in range(bits.size):
        word = wide[i]
        magnitude, sign = word & uint32(0x7FFFFFFF), (word >> uint32(16)) & uint32(0x8000)
        subnormal = uint32(np.float32(np.uint32(magnitude).view(np.float32) + _HALF).view(np.uint32) - _MAGIC)
        rounded = uint32(magnitude - uint32(112 << 23) + uint32(0xFFF) + ((magnitude >> uint32(13)) & uint32(1)))
        found = subnormal if magnitude < _LEAST_NORMAL else rounded >> uint32(13)
        found = uint32(0x7C00) if magnitude >= _LEAST_INFINITE else found
        bits[i] = uint16(sign | (found if magnitude <= uint32(0x7F800000) else uint32(0x7E00)))


@compiled
def _widen(address: Any, narrow: Any, x: Any) -> None:
    bits, wide = array(address, (x.size,), _BITS), x.view(np.uint32)
    if narrow == 1:
        for i in range(bits.size):
            wide[i] = uint32(bits[i]) << uint32(16)
    elif converts():
        for i in range(bits.size):
            x[i] = as_number(bits[i])
    else:
        _widen_float16(bits, wide)


@compiled
def _narrow(x: Any, narrow: Any, address: Any) -> None:
    """Round to the nearest, and of two as near to the even one; what is no number stays none."""
    bits, wide = array(address, (x.size,), _BITS), x.view(np.uint32)
    if narrow == 1:
        for i in range(bits.size):
            word = wide[i]
            rounded = uint32(word + uint32(0x7FFF) + ((word >> uint32(16)) & uint32(1))) >> uint32(16)
            bits[i] = uint16(rounded if (word & uint32(0x7FFFFFFF)) <= uint32(0x7F800000) else uint32(0x7FC0))
    elif converts():
        for i in range(bits.size):
            bits[i] = as_bits(x[i])
    else:
        _narrow_to_float16(wide, bits)


def _chosen(context: Any, address: Any, first: Any, narrow: Any, wide: Any) -> Any:
    """Return the address of the number of this index, or that of the memory of `wide` if numbers are narrow.

    An array that a kernel makes at this address takes no time. One that is either of two has its references counted.
    """

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        kind = signature.args[3]
        buffer = context.make_array(kind)(context, builder, arguments[3]).data
        here = builder.ptrtoint(buffer, arguments[0].type)
        size = context.get_constant(types.int64, context.get_abi_sizeof(context.get_data_type(kind.dtype)))
        there = builder.add(arguments[0], builder.mul(arguments[1], size))
        return builder.select(builder.icmp_signed(">", arguments[2], ir.Constant(arguments[2].type, 0)), here, there)

    return types.int64(types.int64, types.int64, narrow, wide), generate


chosen: Any = intrinsic(_chosen)


# If numbers are not narrow, as in all kernels of other types than float32, the next two do nothing.


def read(address: Any, first: Any, narrow: Any, x: Any) -> None:
    """Write to x the numbers from the one of this index on, in this format, of the memory at the address."""
    raise NotImplementedError


@overload(read)
def _(address: Any, first: Any, narrow: Any, x: Any) -> Any:
    def halves(address: Any, first: Any, narrow: Any, x: Any) -> None:
        if narrow > 0:
            _widen(address + 2 * first, narrow, x)

    def others(address: Any, first: Any, narrow: Any, x: Any) -> None:
        pass

    return halves if x.dtype == types.float32 else others


def write(x: Any, narrow: Any, address: Any, first: Any) -> None:
    """Write the numbers x in this format to the memory at the address, from the one of this index on."""
    raise NotImplementedError


@overload(write)
def _(x: Any, narrow: Any, address: Any, first: Any) -> Any:
    def halves(x: Any, narrow: Any, address: Any, first: Any) -> None:
        if narrow > 0:
            _narrow(x, narrow, address + 2 * first)

    def others(x: Any, narrow: Any, address: Any, first: Any) -> None:
        pass

    return halves if x.dtype == types.float32 else others
