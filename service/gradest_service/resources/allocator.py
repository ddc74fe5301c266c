"""How the C library keeps memory that was freed: enough of it for ordinary requests, and none of what heavy ones took."""

from __future__ import annotations

import ctypes
import os
from collections.abc import Callable
from functools import cache
from typing import Any, TypeVar

__all__ = ["keep_freed_blocks", "release_memory_after"]

Result = TypeVar("Result")

_SIZES = {-1: 64 << 20, -3: 4 << 20}  # glibc's M_TRIM_THRESHOLD and M_MMAP_THRESHOLD, in bytes


def keep_freed_blocks() -> None:
    """Let glibc keep freed blocks of up to 4 MB: new pages from the system for each body of that size cost as much as its work.

    Larger ones go back at once, or what each thread once freed would add up.
    """
    mallopt = _from_library("mallopt")
    if mallopt is not None:
        for option, size in _SIZES.items():
            mallopt(option, size)


def release_memory_after(work: Callable[[], Result]) -> Result:
    """Return `work()`, and give the system back what it has freed; else each thread would keep the most that it ever had."""
    try:
        return work()
    finally:
        trim = _from_library("malloc_trim")
        if trim is not None:
            trim(0)


@cache
def _from_library(name: str) -> Any:
    """Return a function of glibc; None for other C libraries, which do not have it."""
    return getattr(ctypes.CDLL(None), name, None) if os.name == "posix" else None
