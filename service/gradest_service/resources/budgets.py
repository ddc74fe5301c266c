"""Token buckets: how much may be used in a given time, by one process or by several that share a folder."""

from __future__ import annotations

import hashlib
import os
import struct
import tempfile
import threading
import time
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from gradest.errors import InvalidInput

__all__ = ["TokenBucket", "check_folder", "folder_of_machine"]

_FLOAT = struct.Struct("d")


class TokenBucket:
    """A token bucket: it fills at a rate up to its capacity, and it may be overdrawn.

    So a cost can be charged that is known only after a request is admitted: the key's next request waits until the debt is paid.

    shared: a folder and a name. Processes that give the same ones take from the same bucket. Its state is one number, the time at
        which it will be full, so a process that is killed leaves it whole; and the system then releases its lock.
    """

    def __init__(
        self,
        rate: float,
        capacity: float,
        clock: Callable[[], float] = time.monotonic,  # of the system, so that processes agree on it
        shared: tuple[Path, str] | None = None,
    ) -> None:
        self.rate = rate
        self.capacity = capacity
        self._clock = clock
        self._full_at = _Number() if shared is None else _SharedNumber(*shared)

    def wait(self, amount: float) -> float:
        """Return the seconds until the bucket holds `amount`; 0 if it does already."""
        with self._full_at.locked():
            return self._wait(amount, self._clock())

    def take(self, amount: float) -> None:
        """Take `amount`, even if the bucket holds less."""
        with self._full_at.locked():
            self._take(amount, self._clock())

    def take_or_wait(self, amount: float) -> float:
        """Take `amount` and return 0, or take nothing and return the seconds until the bucket holds it."""
        with self._full_at.locked():
            now = self._clock()
            if wait := self._wait(amount, now):
                return wait
            self._take(amount, now)
            return 0.0

    def _wait(self, amount: float, now: float) -> float:
        level = self.capacity - self.rate * max(0.0, self._full_at.value - now)
        return max(0.0, (amount - level) / self.rate)

    def _take(self, amount: float, now: float) -> None:
        self._full_at.value = max(self._full_at.value, now) + amount / self.rate


class _Number:
    """A number of this process, 0 at first. The threads that compute change it too."""

    def __init__(self) -> None:
        self.value = 0.0
        self._lock = threading.Lock()

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Keep others from the number during the block."""
        with self._lock:
            yield


class _SharedNumber(_Number):
    """A number in a file, 0 at first, which the threads of several processes change.

    Raises InvalidInput if the folder does not have it. Its place in the file is taken at once, so that a disk that fills up later
    does no harm.
    """

    def __init__(self, folder: Path, name: str) -> None:
        super().__init__()
        path = folder / hashlib.sha256(name.encode()).hexdigest()
        try:
            self._file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
            weakref.finalize(self, os.close, self._file)
            with self.locked():
                pass  # it is written
        except OSError as error:
            raise InvalidInput(
                f"processes cannot share the limits of keys in {folder}: {error.strerror}. Set TMPDIR to a folder of a local "
                "disk that can be written to and has space, or run one process, with workers=1"
            ) from error

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Keep others from the number during the block, at whose end it is written."""
        import fcntl  # noqa: PLC0415  # only Unix has it

        with self._lock:  # that of the file does not exclude other threads of this process
            fcntl.flock(self._file, fcntl.LOCK_EX)
            try:
                before = os.pread(self._file, _FLOAT.size, 0)
                (self.value,) = _FLOAT.unpack(before) if before else (0.0,)
                yield
                if (after := _FLOAT.pack(self.value)) != before:
                    os.pwrite(self._file, after, 0)
            finally:
                fcntl.flock(self._file, fcntl.LOCK_UN)


def check_folder(folder: Path) -> None:
    """Raise InvalidInput, with the reason and the remedy, if processes cannot share buckets through this folder."""
    _SharedNumber(folder, "")


def folder_of_machine(name: str) -> Path:
    """Return the folder of this name through which the processes of this machine share buckets, made if there is none.

    Raises InvalidInput, with the reason and the remedy, if they cannot.
    """
    folder = Path(tempfile.gettempdir(), name)
    with suppress(OSError):  # which the check explains
        folder.mkdir(mode=0o700, exist_ok=True)
    check_folder(folder)
    return folder
