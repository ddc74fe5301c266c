"""Which plugin it was: found in the frames of a traceback, or of the threads that are at work."""

from __future__ import annotations

import sys
from collections.abc import Iterable
from types import FrameType

from gradest.plugin import Plugin

__all__ = ["at_work", "where"]


def where(frames: Iterable[FrameType]) -> str | None:
    """`name.method` of the first plugin that a method of runs in these frames, the innermost first."""
    for frame in frames:
        plugin, method = frame.f_locals.get("self"), frame.f_code.co_name
        if isinstance(plugin, Plugin) and (method == "__call__" or (method.isidentifier() and method[0] != "_")):
            return f"{plugin.name}.{method}"
    return None


def at_work() -> list[str]:
    """The same for each thread of this process that is in a plugin."""
    places = (where(_outwards(frame)) for frame in sys._current_frames().values())
    return sorted({place for place in places if place})


def _outwards(frame: FrameType | None) -> Iterable[FrameType]:
    while frame is not None:
        yield frame
        frame = frame.f_back
