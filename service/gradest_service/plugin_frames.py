"""Finds the plugin whose code runs in the frames of a traceback or of a thread."""

from __future__ import annotations

import inspect
import sys
import traceback
from collections.abc import Collection, Iterable
from types import CodeType, FrameType

import gradest
from gradest.contract.plugin import Plugin
from gradest.discovery.faults import read_bases, read_members

__all__ = ["compiling_threads", "plugin_method", "running_plugin_methods", "show_stack"]

_COMPILATION = "gradest.kernels.cpu.compilation"


def plugin_method(frames: Iterable[FrameType]) -> str | None:
    """Return `name.method` of the first plugin method in `frames`, innermost frame first; None if there is none."""
    for frame in frames:
        plugin, method = frame.f_locals.get("self"), frame.f_code.co_name
        if isinstance(plugin, Plugin) and _is_public(method):
            return f"{plugin.name}.{method}"
    return None


def running_plugin_methods(idents: Collection[int] | None = None) -> list[str]:
    """Return `name.method` for each thread of this process that is inside a registered plugin, sorted and without duplicates.

    idents: the threads to look at, by default all.

    A frame is told by its code. The local variables of a frame that another thread runs must not be read: CPython 3.11 completes
    such a frame while it starts, which can end the process by a segmentation fault.
    """
    names = _method_names()
    frames = sys._current_frames()
    threads = (_outwards(frame) for ident, frame in frames.items() if idents is None or ident in idents)
    methods = (next((names[frame.f_code] for frame in stack if frame.f_code in names), None) for stack in threads)
    return sorted({method for method in methods if method})


def compiling_threads() -> set[int]:
    """Return the threads of this process that compile a kernel or wait for another process which does: they end by themselves."""
    frames = sys._current_frames()
    return {ident for ident, frame in frames.items() if any(map(_compiles, _outwards(frame)))}


def show_stack(thread: int) -> str:
    """Return what this thread runs, as a traceback shows it; an empty string if it has ended."""
    frame = sys._current_frames().get(thread)
    return "" if frame is None else "".join(traceback.format_stack(frame))


def _compiles(frame: FrameType) -> bool:
    return str(frame.f_globals.get("__name__", "")).startswith(_COMPILATION)


def _method_names() -> dict[CodeType, str]:
    """Return `name.method` by the code of each public method; for code that several plugins inherit, the class that has it."""
    registry = gradest.registry
    found: dict[CodeType, str] = {}
    for name, cls in (*registry.neurons.items(), *registry.estimators.items(), *registry.objectives.items()):
        for owner in (base for base in read_bases(cls) if Plugin in read_bases(base)):
            for method, member in read_members(owner).items():
                code = getattr(inspect.unwrap(member), "__code__", None)
                if isinstance(code, CodeType) and _is_public(method):
                    shared = found.get(code, f"{name}.{method}") != f"{name}.{method}"
                    found[code] = f"{owner.__name__}.{method}" if shared else f"{name}.{method}"
    return found


def _is_public(method: str) -> bool:
    return method == "__call__" or (method.isidentifier() and method[0] != "_")


def _outwards(frame: FrameType | None) -> Iterable[FrameType]:
    while frame is not None:
        yield frame
        frame = frame.f_back
