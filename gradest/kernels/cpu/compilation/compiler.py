"""How numba compiles the kernels and keeps them on disk, and how kernels read memory that is given by its address."""

from __future__ import annotations

import functools
import gc
import hashlib
import math
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from contextvars import ContextVar
from importlib import resources
from importlib.resources.abc import Traversable
from pathlib import Path
from types import FunctionType
from typing import Any

from filelock import FileLock, Timeout
from numba import njit, types
from numba.core import cgutils
from numba.core.compiler import Compiler
from numba.core.compiler_lock import global_compiler_lock
from numba.extending import intrinsic
from numba.np.arrayobj import populate_array

from gradest.errors import GradestWarning
from gradest.kernels.cpu.compilation.background import NotCompiled, is_ready, shown_on_a_terminal
from gradest.kernels.cpu.compilation.kept import attach, is_kept
from gradest.kernels.cpu.compilation.linking import call_by_address
from gradest.kernels.cpu.compilation.processors import KernelCompiler

__all__ = [
    "BLOCK",
    "INLINED_BY_LLVM",
    "Decorator",
    "array",
    "compiled",
    "compiled_and_awaited",
    "compiled_for_short_loops",
    "compiled_with_fma",
    "folder",
    "inlined",
    "inlined_by_llvm",
    "stack",
    "stack_rows",
    "with_functions",
]

_PATIENCE = 120.0  # seconds to wait for another process, which takes some ten to compile a kernel
_MOMENT = 0.05  # seconds between looks whether it has done so

BLOCK = 512
"""The number of elements that a kernel works on at a time: with their words and numbers they fit into 32 KiB of cache."""

_LINE = 64  # bytes of a line of the cache, and of the widest vector

Decorator = Callable[[Callable[..., Any]], Callable[..., Any]]

inlined: Decorator = njit(inline="always")
"""Compile the function into each kernel that calls it."""

INLINED_BY_LLVM: Any = {
    "forceinline": True,
    "error_model": "numpy",
    "fastmath": False,
    "no_cfunc_wrapper": True,
    "no_cpython_wrapper": True,
}
"""The options of `inlined_by_llvm`, for `overload`."""

inlined_by_llvm: Decorator = njit(**INLINED_BY_LLVM)
"""Compile a function of numbers into each kernel that calls it, as `inlined` does, but in a fraction of the time.

numba translates the function once, and LLVM inlines it; with `inlined`, numba copies and types the function's code at every
call, which took most of the time that kernels took to compile. Functions of arrays must be `inlined` nevertheless, because
numba counts references at calls that only LLVM inlines. Products and sums in such a function are never contracted.
"""


def with_functions(function: Callable[..., Any], **functions: Callable[..., Any]) -> Any:
    """Return a copy of the function in whose code these names mean these functions, which may be `inlined`.

    A function that reached a kernel as a variable of its closure would be part of what numba finds the kept kernel by, and an
    `inlined` one has a new identity in each process.
    """
    names = {**function.__globals__, **functions}
    return FunctionType(function.__code__, names, function.__name__, function.__defaults__, function.__closure__)


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
    constants = [(kernels / name).read_bytes() for name in ("portable.py", "reference/noise.py")]
    sources = [*constants, *_sources(kernels / "cpu")]
    return hashlib.sha256(b"\0".join(sources)).hexdigest()[:16]


_DIGEST = _digest_of_sources()


_OF_KERNELS: Any = {
    "nogil": True,
    "error_model": "numpy",
    "no_cfunc_wrapper": True,
    "pipeline_class": KernelCompiler,
}


def _compiled(function: Callable[..., Any], waits: bool = False, **options: Any) -> Any:
    """Compile the function at its first use, and keep the result on disk if that is possible.

    waits: whether its first call waits for that. Otherwise it raises NotCompiled while another process does it.

    numba takes a kept result for stale if the function's own file has changed, but not if a file has changed whose functions are
    compiled into it. It finds a result by the function's qualified name, so that name includes a digest of all these files.
    """
    function.__qualname__ += f"-{_DIGEST}"
    decorator: Decorator = njit(**{**_OF_KERNELS, **options})
    kernel: Any = decorator(function)
    call_by_address(kernel)
    try:
        kernel.enable_caching()
    except RuntimeError:  # neither the package's folder nor the user's can be written to
        if not attach(kernel):
            _warn(_NOT_KEPT.format("no folder for them can be written to"))
            return kernel
        _warn_of_another_machine(kernel)
        return kernel
    _survive_a_broken_cache(kernel)
    attach(kernel)
    _compile_in_one_process(kernel, waits)
    return kernel


def folder() -> str:
    """Return the folder in which compiled kernels are kept, or "" if no folder can be written to."""

    def example() -> None:
        pass

    path: str | None = _compiled(example).stats.cache_path
    return path or ""


_NOT_KEPT = (
    "compiled kernels are not kept on disk, so each process takes seconds to compile them again: {}. Set NUMBA_CACHE_DIR to a "
    "folder that can be written to and has space"
)


@functools.cache
def _warn(message: str) -> None:
    """Warn, once for each message."""
    warnings.warn(message, GradestWarning, stacklevel=2)


def _survive_a_broken_cache(kernel: Any) -> None:
    """Have the kernel take a kept result that cannot be read for none, and go on if its result cannot be kept.

    A file is truncated if a disk was full or a machine stopped while it was written; the next result replaces it.
    """
    cache = kernel._cache
    load, save = cache.load_overload, cache.save_overload

    def load_overload(*arguments: Any) -> Any:
        try:
            return load(*arguments)
        except Exception as error:
            with suppress(Exception):
                cache.flush()  # else the broken index would be read again before a result is saved
            _warn(f"kernels that were kept on disk cannot be read ({type(error).__name__}) and are compiled again")
            return None

    def save_overload(*arguments: Any) -> None:
        try:
            save(*arguments)
        except Exception as error:
            _warn(_NOT_KEPT.format(getattr(error, "strerror", None) or type(error).__name__))

    cache.load_overload, cache.save_overload = load_overload, save_overload


def _warn_of_another_machine(kernel: Any) -> None:
    """Warn if the kernel is compiled although some are kept, because those are for another kind of processor."""
    cache = kernel._cache
    load = cache.load_overload

    def load_overload(*arguments: Any) -> Any:
        kept = load(*arguments)
        if kept is None:
            _warn(
                _NOT_KEPT.format(f"{cache.cache_path} cannot be written to, and its kernels are for other processors")
            )
        return kept

    cache.load_overload = load_overload


_inside_a_kernel: ContextVar[bool] = ContextVar("compiling what a kernel calls", default=False)


@contextmanager
def _without_collections() -> Iterator[None]:
    """Hold back collections of garbage: one walks through all that torch has loaded, which took a tenth of a kernel's time."""
    if not gc.isenabled():
        yield
        return
    gc.disable()
    try:
        yield
    finally:
        gc.enable()


def _compile_in_one_process(kernel: Any, waits: bool) -> None:
    """Have the kernel raise NotCompiled while another process compiles it, unless it `waits`.

    Where it is compiled in this process, have it hold a file lock meanwhile, so that other processes wait and then load what it
    has kept.

    Otherwise all processes that start together, such as the workers of a service, compile the same kernels; and if two of them
    keep results for different types at once, numba may lose one. The system releases the lock of a process that is killed.
    If the file system has no locks, or another process holds the lock for too long, the kernel is compiled without it.

    A thread first takes numba's own lock, which all threads share. It may hold several file locks at once, because a kernel is
    compiled together with those that it calls. No two processes wait for each other, because no kernel calls its caller. While
    another process has the file's lock, the thread gives numba's back, so that others can load or compile what they need; and a
    kernel that only has to be loaded waits for no file.
    """
    compile_kernel, function = kernel.compile, kernel.py_func
    path = Path(kernel.stats.cache_path) / f"{function.__module__}.{function.__qualname__}.lock"

    def try_to_compile(signature: Any, patience: float) -> Any:
        """Compile the kernel, or raise Timeout if another process does so for longer than the patience lasts."""
        with global_compiler_lock, ExitStack() as stack:
            if not _inside_a_kernel.get():
                stack.enter_context(shown_on_a_terminal(kernel, signature))
                stack.enter_context(_without_collections())
            stack.callback(_inside_a_kernel.reset, _inside_a_kernel.set(True))
            if patience and not is_kept(kernel, signature):
                try:
                    stack.enter_context(FileLock(path, timeout=patience))  # one made earlier would not survive a fork
                except Timeout:
                    raise
                except (OSError, NotImplementedError):  # the file system has no locks
                    pass
            return compile_kernel(signature)

    @functools.wraps(compile_kernel)
    def compile_alone(signature: Any) -> Any:
        if not (waits or _inside_a_kernel.get() or is_ready(kernel, signature)):
            raise NotCompiled(function.__name__)
        until = time.monotonic() + _PATIENCE
        while time.monotonic() < until:
            try:
                return try_to_compile(signature, _PATIENCE if _inside_a_kernel.get() else _MOMENT)
            except Timeout:
                time.sleep(_MOMENT)
        return try_to_compile(signature, 0.0)

    kernel.compile = compile_alone


def compiled(function: Callable[..., Any]) -> Callable[..., Any]:
    """Compile a kernel whose arithmetic is IEEE 754's, operation by operation. It is kept on disk."""
    kernel: Callable[..., Any] = _compiled(function)
    return kernel


def compiled_for_short_loops(function: Callable[..., Any]) -> Callable[..., Any]:
    """Compile a kernel as `compiled` does, with vectors as LLVM prefers them: loops over few classes would not fill wide ones."""
    kernel: Callable[..., Any] = _compiled(function, pipeline_class=Compiler)
    return kernel


def compiled_and_awaited(function: Callable[..., Any]) -> Callable[..., Any]:
    """Compile a kernel as `compiled` does. Its first call waits for it, because the reference does not have its bits."""
    kernel: Callable[..., Any] = _compiled(function, waits=True)
    return kernel


def compiled_with_fma(function: Callable[..., Any]) -> Callable[..., Any]:
    """Compile a kernel in which a product and a sum may be contracted to one rounding. It is kept on disk.

    Its first call waits for it, because the reference does not have its bits.
    """
    kernel: Callable[..., Any] = _compiled(function, waits=True, fastmath={"contract"})
    return kernel


def _made(context: Any, builder: Any, kind: Any, memory: Any, shape: list[Any]) -> Any:
    """Return an array of this kind and shape in the memory, whose numbers nobody counts references to."""
    size = context.get_constant(types.intp, context.get_abi_sizeof(context.get_data_type(kind.dtype)))
    strides = [size]
    for extent in shape[:0:-1]:
        strides.insert(0, builder.mul(extent, strides[0]))
    made = context.make_array(kind)(context, builder)
    populate_array(made, memory, shape, strides, size, None)  # type: ignore[no-untyped-call]
    return made._getvalue()


def _at_an_address(context: Any, address: Any, shape: Any, like: Any) -> Any:
    """Return the array of this shape that begins at the address, inside a kernel; `like` is a number or array of its type.

    A kernel that takes addresses is called in a third of the time of one that takes arrays, because numpy arrays of tensors need
    not be made and unpacked. It is written in LLVM's code, since numba would compile its own `carray` into each kernel anew.
    """
    kind = types.Array(like.dtype if isinstance(like, types.Array) else like, len(shape), "C")

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        memory = builder.inttoptr(arguments[0], context.get_data_type(kind.dtype).as_pointer())
        sizes = [
            context.cast(builder, builder.extract_value(arguments[1], place), one, types.intp)
            for place, one in enumerate(signature.args[1])
        ]
        return _made(context, builder, kind, memory, sizes)

    return kind(address, shape, like), generate


array: Any = intrinsic(_at_an_address)


def _on_the_stack(context: Any, rows: Any, count: Any, kind: Any) -> Any:
    sizes = [one.literal_value for one in (rows, count) if one is not None]
    array = types.Array(kind.dtype, len(sizes), "C")

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        memory = cgutils.alloca_once(builder, context.get_data_type(kind.dtype), size=math.prod(sizes))  # type: ignore[no-untyped-call]
        memory.align = _LINE
        return _made(context, builder, array, memory, [context.get_constant(types.intp, one) for one in sizes])

    return array(*(one for one in (rows, count, kind) if one is not None)), generate


def _numbers(context: Any, count: Any, kind: Any) -> Any:
    """Return an array of so many numbers, a constant of the kernel, of this dtype, whose memory ends with the call.

    numba counts the references to an array of `np.empty` wherever a slice of it is made, by atomic operations, which for a block
    of 512 numbers take as long as to draw them.
    """
    return _on_the_stack(context, None, count, kind)


def _rows(context: Any, rows: Any, count: Any, kind: Any) -> Any:
    """Return what `stack` does, in so many rows, `[rows, count]`."""
    return _on_the_stack(context, rows, count, kind)


_with_constants: Any = intrinsic(prefer_literal=True)
stack: Any = _with_constants(_numbers)
stack_rows: Any = _with_constants(_rows)
