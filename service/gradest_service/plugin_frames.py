"""Finds the plugin whose code runs in the frames of a traceback or of a thread."""

from __future__ import annotations

import sys
from collections.abc import Iterable
from types import FrameType

from gradest.contract.plugin import Plugin

__all__ = ["plugin_method", "running_plugin_methods"]


def plugin_method(frames: Iterable[FrameType]) -> str | None:
    """Return `name.method` of the first plugin method in `frames`, innermost frame first; None if there is none."""
    for frame in frames:
        plugin, method = frame.f_locals.get("self"), frame.f_code.co_name
        if isinstance(plugin, Plugin) and (method == "__call__" or (method.isidentifier() and method[0] != "_")):
            return f"{plugin.name}.{method}"
    return None


def running_plugin_methods() -> list[str]:
    """Return `name.method` for each thread of this process that is inside a plugin, sorted and without duplicates."""
    methods = (plugin_method(_outwards(frame)) for frame in sys._current_frames().values())
    return sorted({method for method in methods if method})


def _outwards(frame: FrameType | None) -> Iterable[FrameType]:
    while frame is not None:
        yield frame
        frame = frame.f_back
