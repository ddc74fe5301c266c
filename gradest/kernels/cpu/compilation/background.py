"""A process beside this one that compiles kernels, while the reference computes the same bits.

numba holds the interpreter's lock while it compiles, so a thread would not do. The process keeps on disk what it has compiled,
from where this one loads it in a fraction of a second.
"""

from __future__ import annotations

import functools
import importlib
import os
import pickle
import select
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

import numba
from numba.core.dispatcher import Dispatcher

from gradest.kernels.cpu.compilation.kept import is_kept

__all__ = ["NotCompiled", "is_ready", "serve", "shown_on_a_terminal"]

_IDLE = 10.0  # seconds after which the process ends if nothing is asked of it
_RUN = "import sys; sys.path[:] = sys.argv[1:]; from gradest.kernels.cpu.compilation.background import serve; serve()"
_NOTICE = (
    "gradest: the kernels for the CPU are being compiled, once for this installation. Until they are, torch computes the same "
    'numbers more slowly. "gradest warm" compiles all of them beforehand; GRADEST_KERNELS=cpu waits for each, and '
    "GRADEST_KERNELS=reference does without them."
)


class NotCompiled(Exception):
    """A kernel was called for types for which it is still being compiled."""


def is_ready(kernel: Any, signature: Any) -> bool:
    """Tell whether this process should compile the kernel for these types: because it only has to load the result, or must.

    Otherwise the process beside this one has been asked for it.
    """
    if os.environ.get("GRADEST_KERNELS") == "cpu" or kernel.stats.cache_path is None:
        return True
    compiler = _compiler_of(os.getpid())  # a fork has one of its own
    if compiler.awaits(kernel, signature):  # looking at the disk at every call would take longer than the reference
        return False
    return is_kept(kernel, signature) or compiler.has_done(kernel, signature)


@contextmanager
def shown_on_a_terminal(kernel: Any, signature: Any) -> Iterator[None]:
    """Say on standard error, if that is a terminal, that a kernel is being compiled, as long as it takes."""
    name = kernel.py_func.__name__.strip("_")
    if sys.stderr is None or not sys.stderr.isatty() or is_kept(kernel, signature):
        yield
        return
    print(f"gradest: compiling the kernel {name}, once for this installation ...", end="", file=sys.stderr, flush=True)
    try:
        yield
    finally:
        print("\r\033[K", end="", file=sys.stderr, flush=True)


@functools.cache
def _compiler_of(process: int) -> _Compiler:
    return _Compiler()


class _Compiler:
    """What this process has asked the one beside it to compile, and what that one has done."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._beside: subprocess.Popen[bytes] | None = None
        self._waiting: dict[tuple[Any, Any], int] = {}  # how often each was asked for
        self._done: set[tuple[Any, Any]] = set()

    def awaits(self, kernel: Any, signature: Any) -> bool:
        """Tell whether the process beside this one runs, was asked for the kernel and has not done it."""
        wanted = (kernel, signature)
        with self._lock:
            return self._beside is not None and wanted in self._waiting and wanted not in self._done

    def has_done(self, kernel: Any, signature: Any) -> bool:
        """Tell whether the kernel need not be waited for; at first, ask for it."""
        wanted = (kernel, signature)
        with self._lock:
            if wanted in self._done:
                return True
            if wanted not in self._waiting or self._beside is None:
                self._waiting[wanted] = self._waiting.get(wanted, 0) + 1
                if self._waiting[wanted] > 2 or not self._ask(wanted):  # it cannot be done beside this process
                    self._done.add(wanted)
                    return True
            return False

    def _ask(self, wanted: tuple[Any, Any]) -> bool:
        kernel, signature = wanted
        try:
            if self._beside is None:
                self._beside = _start()
                asked: list[tuple[Any, Any]] = []
                threading.Thread(target=self._listen, args=(self._beside, asked), daemon=True).start()
                self._asked = asked
            assert self._beside.stdin is not None
            self._asked.append(wanted)
            pickle.dump((kernel.py_func.__qualname__, signature), self._beside.stdin)
            self._beside.stdin.flush()
        except (OSError, pickle.PicklingError):
            return False
        return True

    def _listen(self, beside: subprocess.Popen[bytes], asked: list[tuple[Any, Any]]) -> None:
        """Note what the process has done, in the order in which it was asked, until it ends."""
        with suppress(OSError), beside:  # what was asked last may not have been read
            assert beside.stdout is not None
            for place, _ in enumerate(beside.stdout):
                self._done.add(asked[place])
        with self._lock:
            if self._beside is beside:
                self._beside = None


def _start() -> subprocess.Popen[bytes]:
    """Start the process, and say so. Raises OSError if that cannot be done."""
    if not sys.executable:
        raise FileNotFoundError("this Python does not know its own program")
    environment = {**os.environ, "GRADEST_KERNELS": "cpu"}
    folder: str = getattr(numba.config, "CACHE_DIR", "")  # set by a variable of the environment, or by the program
    if folder:
        environment["NUMBA_CACHE_DIR"] = folder
    beside = subprocess.Popen(
        [sys.executable, "-c", _RUN, *sys.path],
        env=environment,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
    )
    _say_once()
    return beside


@functools.cache
def _say_once() -> None:
    if sys.stderr is not None:
        print(_NOTICE, file=sys.stderr, flush=True)


def _kernels_by_name() -> dict[str, list[Any]]:
    """Return all compiled kernels; several may have one name."""
    found: dict[str, list[Any]] = {}
    package = importlib.import_module("gradest.kernels.cpu").__name__
    for module in [module for name, module in sys.modules.items() if name.startswith(package)]:
        for kernel in vars(module).values():
            if isinstance(kernel, Dispatcher) and kernel not in found.setdefault(kernel.py_func.__qualname__, []):
                found[kernel.py_func.__qualname__].append(kernel)
    return found


def serve() -> None:
    """Compile the kernels that are named on standard input, and write a line for each. Return when there are no more."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C ends the program, while this process finishes its kernels
    kernels = _kernels_by_name()
    requests = os.fdopen(os.dup(0), "rb", buffering=0)
    while select.select([requests], [], [], _IDLE)[0]:
        try:
            name, signature = pickle.load(requests)
        except EOFError:
            return
        for kernel in kernels[name]:
            kernel.compile(signature)
        print(flush=True)
