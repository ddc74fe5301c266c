"""How numba compiles the kernels and keeps them on disk, and how kernels read memory that is given by its address."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from importlib import resources
from importlib.resources.abc import Traversable
from typing import Any

from numba import njit, types
from numba.extending import intrinsic, register_jitable
from numba.np.numpy_support import carray

__all__ = ["BLOCK", "Decorator", "array", "compiled", "compiled_with_fma", "inlined", "inlined_by_name"]

BLOCK = 512
"""The number of elements that a kernel works on at a time: with their words and numbers they fit into 32 KiB of cache."""

Decorator = Callable[[Callable[..., Any]], Callable[..., Any]]

inlined: Decorator = njit(inline="always")
"""Compile the function into each kernel that calls it."""


def inlined_by_name(function: Callable[..., Any]) -> Callable[..., Any]:
    """Compile the function into each kernel that calls it, as `inlined` does, but return the Python function itself.

    A kernel whose closure holds such a function can be kept on disk. A kernel whose closure holds an `inlined` one cannot,
    because numba gives that a new identity in each process.
    """
    decorator: Decorator = register_jitable(inline="always")
    return decorator(function)


def _sources(folder: Traversable) -> Iterator[bytes]:
    """Yield the contents of all Python files in the folder and below, in the order of their names."""
    for file in sorted(folder.iterdir(), key=lambda file: file.name):
        if file.is_dir():
            yield from _sources(file)
        elif file.name.endswith(".py"):
            yield file.read_bytes()


def _digest_of_sources() -> str:
    """Hash all files whose functions and constants are compiled into the kernels."""
    kernels = resources.files("gradest.kernels")
    sources = [(kernels / "portable.py").read_bytes(), *_sources(kernels / "cpu")]
    return hashlib.sha256(b"\0".join(sources)).hexdigest()[:16]


_DIGEST = _digest_of_sources()


def _compiled(function: Callable[..., Any], **options: Any) -> Callable[..., Any]:
    """Compile the function at its first use, and keep the result on disk.

    numba takes a kept result for stale if the function's own file has changed, but not if a file has changed whose functions are
    compiled into it. It finds a result by the function's qualified name, so that name includes a digest of all these files.
    """
    function.__qualname__ += f"-{_DIGEST}"
    decorator: Decorator = njit(nogil=True, cache=True, error_model="numpy", **options)
    return decorator(function)


def compiled(function: Callable[..., Any]) -> Callable[..., Any]:
    """Compile a kernel whose arithmetic is IEEE 754's, operation by operation. It is kept on disk."""
    return _compiled(function)


def compiled_with_fma(function: Callable[..., Any]) -> Callable[..., Any]:
    """Compile a kernel in which a product and a sum may be contracted to one rounding. It is kept on disk."""
    return _compiled(function, fastmath={"contract"})


def _typed_pointer(context: Any, address: Any, like: Any) -> Any:
    """Convert the address to a pointer to numbers of the type of `like`, a number or an array."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return builder.inttoptr(arguments[0], context.get_value_type(signature.return_type))

    number = like.dtype if isinstance(like, types.Array) else like
    return types.CPointer(number)(address, like), generate  # type: ignore[no-untyped-call]


_pointer: Any = intrinsic(_typed_pointer)


@inlined
def array(address: Any, shape: Any, like: Any) -> Any:
    """Return the array of this shape that begins at the address, inside a kernel; `like` is a number or array of its type.

    A kernel that takes addresses is called in a third of the time of one that takes arrays, because numpy arrays of tensors need
    not be made and unpacked.
    """
    return carray(_pointer(address, like), shape)
