"""Files that are complete whenever the process is interrupted or killed, and an interrupt that waits."""

from __future__ import annotations

import os
import pickle
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any

import torch

from gradest.errors import InvalidInput

__all__ = ["deferred_interrupt", "load_checkpoint", "save_checkpoint", "write_atomically"]


def write_atomically(path: Path, write: Callable[[Path], object]) -> None:
    """Let `write` fill a new file, and put it in the place of `path` once it is complete and on the disk."""
    path.parent.mkdir(parents=True, exist_ok=True)
    new = path.with_name(f".{path.name}.new")  # always the same name, so that what a killed process left is overwritten
    try:
        write(new)
        with new.open("rb") as file:
            os.fsync(file.fileno())
        new.replace(path)
    finally:
        new.unlink(missing_ok=True)


def save_checkpoint(path: Path, state: dict[str, Any]) -> None:
    """Save a state that consists of tensors, numbers, text, and lists and dicts of them."""
    write_atomically(path, lambda new: torch.save(state, new))


def load_checkpoint(path: Path) -> dict[str, Any]:
    """Return what `save_checkpoint` saved, without executing anything in the file.

    Raises InvalidInput if the file is damaged or holds something else.
    """
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError) as error:
        raise InvalidInput(f"{path} is damaged or not a checkpoint of gradest; delete it to start afresh") from error
    if not isinstance(state, dict):
        raise InvalidInput(f"{path} is not a checkpoint of gradest; delete it to start afresh")
    return state


@contextmanager
def deferred_interrupt() -> Iterator[Callable[[], bool]]:
    """Defer the KeyboardInterrupt of a first Ctrl-C to the end of the block; a second Ctrl-C raises it at once.

    Yields a function that says whether Ctrl-C was pressed, so that the block can reach a consistent state and leave. If Ctrl-C
    would not raise KeyboardInterrupt here, in another thread or because the program has a handler of its own, nothing changes.
    """
    waiting = False

    def note(signum: int, frame: FrameType | None) -> None:
        nonlocal waiting
        waiting = True
        signal.signal(signal.SIGINT, signal.default_int_handler)

    ours = threading.current_thread() is threading.main_thread()
    if not ours or signal.getsignal(signal.SIGINT) is not signal.default_int_handler:
        yield lambda: False
        return
    signal.signal(signal.SIGINT, note)
    try:
        yield lambda: waiting
    finally:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    if waiting:
        raise KeyboardInterrupt
