"""What requests hold of a process's memory while they are computed and until their answers are sent."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager

__all__ = ["Memory"]

_SHARE = 4  # a caller whose unsent answers hold more than this part of the limit, one over so many, waits for its clients to read


class Memory:
    """Counts the bytes that running work may take, as plugins state them, and those of answers that are not yet sent.

    Work waits until there is room for it. An answer is counted even if there is no room, because its work has been done; so
    answers that nobody reads keep further work waiting, first that of their own caller. Only the event loop's thread changes it.
    """

    def __init__(self, limit: int, limit_of_heavy: int) -> None:
        self.limit = limit
        self.limit_of_heavy = limit_of_heavy
        """The part of the limit that all heavy work together may take."""
        self.used = 0
        self.on_release: Callable[[], None] = lambda: None
        """Called whenever there is more room."""
        self._unsent: Counter[str] = Counter()

    def has_room(self, size: int, caller: str) -> bool:
        """Tell whether so many more bytes may be taken for work of this caller."""
        return self.used + size <= self.limit and self._unsent[caller] <= self.limit // _SHARE

    def take(self, size: int) -> None:
        """Count the bytes that work takes."""
        self.used += size

    def release(self, size: int) -> None:
        """Stop counting bytes that were counted before."""
        self.used -= size
        self.on_release()

    def take_unsent(self, size: int, caller: str) -> None:
        """Count the bytes of a part of an answer that waits to be sent."""
        self._unsent[caller] += size
        self.take(size)

    def release_unsent(self, size: int, caller: str) -> None:
        """Stop counting bytes that were counted before."""
        self._unsent[caller] -= size
        if not self._unsent[caller]:
            del self._unsent[caller]
        self.release(size)

    @contextmanager
    def unsent(self, size: int, caller: str) -> Iterator[None]:
        """Count the bytes of a part of an answer while the block sends it."""
        self.take_unsent(size, caller)
        try:
            yield
        finally:
            self.release_unsent(size, caller)
