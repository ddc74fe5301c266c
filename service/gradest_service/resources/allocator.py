"""How long the C library keeps freed memory: enough for ordinary requests, and what heavy ones took only for a while."""

from __future__ import annotations

import ctypes
import os
from functools import cache
from typing import Any

__all__ = ["keep_freed_blocks", "release_freed_blocks"]

_SIZES = {-1: 64 << 20, -3: 32 << 20}  # glibc's M_TRIM_THRESHOLD and M_MMAP_THRESHOLD, in bytes


def keep_freed_blocks() -> None:
    """Let glibc keep freed blocks of tens of megabytes: fresh pages for each body would take as long as its work does."""
    mallopt = _from_library("mallopt")
    if mallopt is not None:
        for option, size in _SIZES.items():
            mallopt(option, size)


def release_freed_blocks() -> None:
    """Return what is kept to the system. Otherwise each thread would keep the most that it ever had."""
    trim = _from_library("malloc_trim")
    if trim is not None:
        trim(0)


@cache
def _from_library(name: str) -> Any:
    """Return a function of glibc; None for other C libraries, which do not have it."""
    return getattr(ctypes.CDLL(None), name, None) if os.name == "posix" else None
