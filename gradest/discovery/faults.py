"""What the code of a plugin raises, in one line with file and line. torch is not imported here, because commands need this too.

Code that asks many plugins must go on when one of them fails. It takes everything that a plugin raises, exceptions that do not
derive from Exception among them, for that plugin's failure. What the user causes, by Ctrl-C or a signal, is not the plugin's.

A metaclass may raise at any access to an attribute of its class, so what names a class is read past it, by `read_attribute`.
"""

from __future__ import annotations

import dis
import inspect
import os
import signal
import sys
import traceback
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from types import FrameType
from typing import Any

from gradest.errors import Cancelled, PluginFault

__all__ = [
    "contained",
    "contained_in_class",
    "describe_error",
    "is_of_user",
    "name_of_class",
    "place_of",
    "read_attribute",
    "read_bases",
    "read_members",
]

_LIBRARIES = {"gradest", "numpy", "pluggy", "pydantic", "torch", *sys.stdlib_module_names}
"""Packages in which an error may be raised though the fault is that of the code that called them."""
_LONGEST_TEXT = 1000  # characters of an error that are shown
_RAISE = dis.opmap["RAISE_VARARGS"]


def is_of_user(error: BaseException) -> bool:
    """Return whether the user caused the error: by Ctrl-C, by a signal whose handler, in Python, raised it, or by Cancelled.

    A KeyboardInterrupt that a raise statement of a plugin made out of nothing is the plugin's.
    """
    if isinstance(error, Cancelled):
        return True
    if isinstance(error, KeyboardInterrupt):
        return not _is_made_by_plugin(error)
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


@contextmanager
def contained_in_class(cls: type, what: str | Callable[[], str]) -> Iterator[None]:
    """Raise PluginFault of the class, "what description", in place of what the block raises, unless the user caused that.

    what: a function that returns it, if that takes a while.
    """
    try:
        yield
    except BaseException as error:
        if is_of_user(error):
            raise
        raise PluginFault(f"{what if isinstance(what, str) else what()} {describe_error(error)}", cls) from error


def read_bases(cls: type) -> tuple[type, ...]:
    """Return the class and its bases, in the order of lookup, without running code of its metaclass."""
    bases: tuple[type, ...] = type.__dict__["__mro__"].__get__(cls)
    return bases


def read_members(cls: type) -> Mapping[str, Any]:
    """Return what the class itself defines, by name, without running code of its metaclass."""
    members: Mapping[str, Any] = type.__dict__["__dict__"].__get__(cls)
    return members


def read_attribute(cls: type, attribute: str) -> Any:
    """Return what the class or the first of its bases defines, without running code of its metaclass; None if none does."""
    return next((members[attribute] for members in map(read_members, read_bases(cls)) if attribute in members), None)


def name_of_class(cls: type) -> str:
    """Return `cls.name` of a plugin's class."""
    return str(read_attribute(cls, "name"))


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
    text = text if len(text) <= _LONGEST_TEXT else f"{text[:_LONGEST_TEXT]} ..."
    what = f"{type(error).__name__}: {text}" if text else type(error).__name__
    frames = list(reversed(list(traceback.walk_tb(error.__traceback__))))
    own = [found for found in frames if package and _package(found[0]) == package]
    others = [found for found in frames if _package(found[0]) not in _LIBRARIES]
    for frame, line in own or others:
        return f"{what} ({_shortened(frame.f_code.co_filename)}:{line}, in {frame.f_code.co_name})"
    return what


def place_of(definition: object) -> str:
    """Return the file and line of a class or function, in parentheses after a space; what of them can be found, perhaps ""."""
    file = None
    try:
        file = inspect.getsourcefile(definition)  # type: ignore[arg-type]
        _, line = inspect.getsourcelines(definition)  # type: ignore[arg-type]
    except BaseException as error:  # a class without a file, or whose attributes raise
        if is_of_user(error):
            raise
        return f" ({_shortened(file)})" if file else ""
    return f" ({_shortened(file)}:{line})" if file else ""


def _is_made_by_plugin(error: KeyboardInterrupt) -> bool:
    """Return whether a raise statement outside libraries raised it, and not while another one was handled.

    Python itself raises that of Ctrl-C, between any two instructions.
    """
    last = error.__traceback__
    while last is not None and last.tb_next is not None:
        last = last.tb_next
    if last is None or isinstance(error.__context__, KeyboardInterrupt) or _package(last.tb_frame) in _LIBRARIES:
        return False
    return last.tb_frame.f_code.co_code[last.tb_lasti] == _RAISE


def _package(frame: FrameType) -> str:
    return str(frame.f_globals.get("__name__", "")).partition(".")[0]


def _shortened(path: str) -> str:
    """Return the path below the folder of sys.path that contains it, so that it tells nothing about the machine."""
    folders = [os.path.join(os.path.abspath(folder), "") for folder in sys.path]
    return min((path.removeprefix(folder) for folder in folders), key=len, default=path)
