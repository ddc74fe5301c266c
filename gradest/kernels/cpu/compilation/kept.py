"""Kernels that somebody else has compiled and kept where this process cannot write, such as in the image of a container.

numba looks for kept results in the one folder that it can write to: NUMBA_CACHE_DIR, else the package's own, else the user's.
Those of the first two can be read even where they cannot be written to.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

from numba.core import caching

__all__ = ["attach", "is_kept"]


class _Readable:
    """A locator of numba's that takes a folder which exists, and writes nothing."""

    def ensure_cache_path(self) -> None:
        """Raise an OSError if there is no such folder."""
        os.listdir(self.get_cache_path())  # type: ignore[attr-defined]


class _Provided(_Readable, caching.UserProvidedCacheLocator):
    """The folder below NUMBA_CACHE_DIR."""


class _InPackage(_Readable, caching.InTreeCacheLocator):
    """The package's own folder."""


class _Results(caching.CompileResultCacheImpl):
    def __init__(self, function: Callable[..., Any]) -> None:
        self._locator_classes = [_Provided, _InPackage]
        super().__init__(function)  # type: ignore[no-untyped-call]


class _ReadOnlyCache(caching.FunctionCache):
    _impl_class = _Results

    def save_overload(self, *_: Any) -> None:
        """Keep nothing."""

    def flush(self) -> None:
        """Leave a broken index as it is."""


def attach(kernel: Any) -> bool:
    """Have the kernel read results that are kept elsewhere, if there are some; return whether there are.

    A kernel that keeps its results in a folder of its own looks there first.
    """
    own = kernel._cache
    try:
        others: Any = _ReadOnlyCache(kernel.py_func)  # type: ignore[no-untyped-call]
        if own.cache_path == others.cache_path or not others._cache_file._load_index():
            return False
    except Exception:  # no folder, or a broken index
        return False
    if isinstance(own, caching.NullCache):
        kernel._cache = others
        return True
    load = own.load_overload

    def load_overload(*arguments: Any) -> Any:
        kept = load(*arguments)
        return others.load_overload(*arguments) if kept is None else kept

    own.load_overload, own.others = load_overload, others
    return True


def is_kept(kernel: Any, signature: Any) -> bool:
    """Tell whether the compiled kernel for these types only has to be loaded."""
    cache, codegen = kernel._cache, kernel.targetctx.codegen()
    return any(_has(one, signature, codegen) for one in (cache, getattr(cache, "others", None)) if one is not None)


def _has(cache: Any, signature: Any, codegen: Any) -> bool:
    try:
        kept: dict[Any, Any] = cache._cache_file._load_index()
        return cache._index_key(signature, codegen) in kept
    except Exception:  # a broken index
        return False
