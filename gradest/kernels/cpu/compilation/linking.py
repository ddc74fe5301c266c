"""How one kernel calls another: by its address, so that a kernel is compiled once, and not again into each that calls it.

numba copies the code of a called function into its caller, where LLVM optimises it and turns it into machine code once more: each
kernel that draws had its own copy of the random words, which took a sixth of the time in which all kernels were compiled. A call
by address costs a few nanoseconds, and kernels call each other once for a block of numbers.
"""

from __future__ import annotations

import functools
import importlib
from dataclasses import dataclass
from typing import Any

import llvmlite.binding as llvm
from llvmlite import ir
from numba.core.compiler_lock import global_compiler_lock

__all__ = ["call_by_address"]


@dataclass(frozen=True)
class _Callee:
    """A kernel that another one calls. numba keeps it with the caller's code, and calls it before it loads that code."""

    module: str
    name: str
    arguments: tuple[Any, ...]
    symbol: str
    """The name by which the caller's code refers to it, which another process may have given."""

    def __call__(self) -> None:
        """Load the kernel, or compile it, and tell LLVM its address."""
        kernel = getattr(importlib.import_module(self.module), self.name)
        kernel.compile(self.arguments)
        result = kernel.overloads[self.arguments]
        llvm.add_symbol(self.symbol, result.library.get_pointer_to_function(result.fndesc.llvm_func_name))


class _Declared:
    """What numba copies into a caller instead of the kernel's code: nothing, and how to find the kernel."""

    def __init__(self, callee: _Callee, empty: ir.Module) -> None:
        self._module = llvm.parse_assembly(str(empty))
        self._reload_init = {callee}

    def _ensure_finalized(self) -> None:
        pass

    def _get_module_for_linking(self) -> Any:
        return self._module


def call_by_address(kernel: Any) -> None:
    """Have other kernels call this one by its address. It must have the name in its module by which it was defined."""
    compile_kernel, function = kernel.compile, kernel.py_func

    @functools.wraps(compile_kernel)
    def compile_and_declare(signature: Any) -> Any:
        with global_compiler_lock:
            known = len(kernel.overloads)
            entry_point = compile_kernel(signature)
            if len(kernel.overloads) > known:
                arguments, result = next(reversed(kernel.overloads.items()))
                callee = _Callee(function.__module__, function.__name__, arguments, result.fndesc.llvm_func_name)
                context = kernel.targetctx
                empty = context.codegen().create_library(function.__name__).create_ir_module(function.__name__)
                context.remove_user_function(entry_point)
                context.insert_user_function(entry_point, result.fndesc, [_Declared(callee, empty)])
            return entry_point

    kernel.compile = compile_and_declare
