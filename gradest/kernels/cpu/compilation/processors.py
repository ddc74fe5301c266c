"""Vectors of 512 bits, where the processor is fastest with them, in gradest's kernels alone."""

from __future__ import annotations

from typing import Any

from numba.core.compiler import CompilerBase, DefaultPassBuilder
from numba.core.compiler_machinery import register_pass
from numba.core.lowering import Lower
from numba.core.registry import cpu_target
from numba.core.typed_passes import NativeLowering

__all__ = ["KernelCompiler", "has_feature", "has_wide_registers", "has_wide_vectors"]

_registered: Any = register_pass(mutates_CFG=True, analysis_only=False)  # type: ignore[no-untyped-call]

_STEADY = frozenset({"icelake-server", "sapphirerapids", "emeraldrapids", "graniterapids", "graniterapids-d"})
"""Processors for which LLVM prefers 256 bits, although 512 do not slow their clock as they slow that of older ones."""


def has_wide_vectors(target: tuple[object, ...]) -> bool:
    """Tell whether kernels use vectors of 512 bits on the target of a code generator: its triple, processor and features.

    `prefer-256-bit` among the features, which NUMBA_CPU_FEATURES sets, decides; otherwise the processor does.
    """
    _, processor, features = target
    given = str(features).split(",")
    if "+avx512f" not in given or "+prefer-256-bit" in given:
        return False
    return "-prefer-256-bit" in given or processor in _STEADY


def has_wide_registers() -> bool:
    """Tell whether numba compiles for a processor with AVX-512, and so with 32 registers of 512 bits."""
    return has_feature("avx512f")


def has_feature(name: str) -> bool:
    """Tell whether numba compiles for a processor with this feature, by LLVM's name of it."""
    _, _, features = cpu_target.target_context.codegen().magic_tuple()
    return f"+{name}" in features.split(",")


class _WideLower(Lower):
    """Writes a function as numba does, and tells LLVM how wide its vectors are to be.

    The width is an attribute of each function, because numba's settings are those of the process, and so of the user's functions.
    """

    def setup_function(self, fndesc: Any) -> None:
        """Declare the function, and give it its attributes."""
        super().setup_function(fndesc)  # type: ignore[no-untyped-call]
        if has_wide_vectors(self.context.codegen().magic_tuple()):
            set.add(self.function.attributes, '"prefer-vector-width"="512"')  # which llvmlite does not know


@_registered
class _WideLowering(NativeLowering):
    _name = "gradest_lowering"

    @property
    def lowering_class(self) -> type[Lower]:
        return _WideLower


class KernelCompiler(CompilerBase):
    """Compiles as numba does by default, with vectors as wide as `has_wide_vectors` says."""

    def define_pipelines(self) -> list[Any]:
        """Return numba's passes, with our own in place of the one that writes LLVM's code."""
        passes = DefaultPassBuilder.define_nopython_pipeline(self.state)  # type: ignore[no-untyped-call]
        passes.passes = [(_WideLowering if step is NativeLowering else step, why) for step, why in passes.passes]
        passes.finalize()
        return [passes]
