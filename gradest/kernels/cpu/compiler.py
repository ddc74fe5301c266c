"""How the kernels are compiled and kept, and the size of the blocks that they work on."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from importlib import resources
from typing import Any

from numba import njit, types
from numba.extending import intrinsic
from numba.np.numpy_support import carray

__all__ = ["BLOCK", "array", "compiled", "inlined"]

BLOCK = 512  # elements that are worked on at a time: with their words and numbers they fit into 32 KiB

_Compiler = Callable[[Callable[..., Any]], Callable[..., Any]]
inlined: _Compiler = njit(inline="always")


def _of_sources() -> str:
    """A digest of all files whose functions and constants are compiled into the kernels."""
    kernels = resources.files("gradest.kernels")
    rooms = sorted((kernels / "cpu").iterdir(), key=lambda file: file.name)
    files = [kernels / "portable.py", *(file for file in rooms if file.name.endswith(".py"))]
    return hashlib.sha256(b"\0".join(file.read_bytes() for file in files)).hexdigest()[:16]


_SOURCES = _of_sources()


def compiled(function: Callable[..., Any]) -> Callable[..., Any]:
    """The function, compiled at its first use and kept on disk.

    numba takes what it has kept for stale where the function's own file has changed, but not for what was compiled into it from
    other files. What it keeps goes by a function's qualified name: so that is made to change with any of them.
    """
    function.__qualname__ += f"-{_SOURCES}"
    compiler: _Compiler = njit(nogil=True, cache=True, error_model="numpy")
    return compiler(function)


def _typed_pointer(context: Any, address: Any, kind: Any) -> Any:
    """The address, as that of numbers of the type of `kind`."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return builder.inttoptr(arguments[0], context.get_value_type(signature.return_type))

    return types.CPointer(kind)(address, kind), generate  # type: ignore[no-untyped-call]


_pointer: Any = intrinsic(_typed_pointer)


@inlined
def array(address: Any, shape: Any, kind: Any) -> Any:
    """The array of numbers of the type of `kind` that begins at the address, inside a kernel.

    A kernel that takes addresses is called in a third of the time of one that takes arrays, which have to be made of tensors and
    looked into.
    """
    return carray(_pointer(address, kind), shape)
