"""What the code of a plugin raises, in one line with file and line. torch is not imported here, because commands need this too.

Code that asks many plugins must go on when one of them fails. It takes everything that a plugin raises, exceptions that do not
derive from Exception among them, for that plugin's failure. What the user causes, by Ctrl-C or a signal, is not the plugin's.
"""

from __future__ import annotations

import inspect
import os
import signal
import sys
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

__all__ = ["contained", "describe_error", "is_of_user", "place_of"]

_LIBRARIES = {"gradest", "numpy", "pluggy", "pydantic", "torch", *sys.stdlib_module_names}
"""Packages in which an error may be raised though the fault is that of the code that called them."""


def is_of_user(error: BaseException) -> bool:
    """Return whether the user caused the error: by Ctrl-C, or by a signal whose handler, in Python, raised it."""
    if isinstance(error, KeyboardInterrupt):
        return True
    handlers = {getattr(signal.getsignal(number), "__code__", None) for number in signal.valid_signals()} - {None}
    return any(frame.f_code in handlers for frame, _ in traceback.walk_tb(error.__traceback__))


@contextmanager
def contained(raised: type[Exception], *arguments: object) -> Iterator[None]:
    """Raise raised(*arguments, description) in place of what the block raises, unless the user caused that or it is `raised`."""
    try:
        yield
    except raised:
        raise
    except BaseException as error:
        if is_of_user(error):
            raise
        raise raised(*arguments, describe_error(error)) from error


def describe_error(error: BaseException, package: str = "") -> str:
    """Return the error's type and text and, in parentheses, the file, line and function that raised it.

    That is the innermost frame of the package, if there is one, else the innermost one that is not of a library.
    """
    try:
        text = " ".join(str(error).split())
    except BaseException as failed:
        if is_of_user(failed):
            raise
        text = f"its text cannot be shown, because str() of it raises {type(failed).__name__}"
    what = f"{type(error).__name__}: {text}" if text else type(error).__name__
    frames = list(reversed(list(traceback.walk_tb(error.__traceback__))))
    own = [found for found in frames if package and _package(found[0]) == package]
    others = [found for found in frames if _package(found[0]) not in _LIBRARIES]
    for frame, line in own or others:
        return f"{what} ({_shortened(frame.f_code.co_filename)}:{line}, in {frame.f_code.co_name})"
    return what


def place_of(definition: object) -> str:
    """Return the file and line of a class or function, in parentheses after a space; "" if they cannot be found."""
    try:
        file = inspect.getsourcefile(definition)  # type: ignore[arg-type]
        _, line = inspect.getsourcelines(definition)  # type: ignore[arg-type]
    except Exception:  # a class without a file, or whose attributes raise
        return ""
    return f" ({_shortened(file)}:{line})" if file else ""


def _package(frame: FrameType) -> str:
    return str(frame.f_globals.get("__name__", "")).partition(".")[0]


def _shortened(path: str) -> str:
    """Return the path below the folder of sys.path that contains it, so that it tells nothing about the machine."""
    folders = [os.path.join(os.path.abspath(folder), "") for folder in sys.path]
    return min((path.removeprefix(folder) for folder in folders), key=len, default=path)
