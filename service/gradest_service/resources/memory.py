"""What requests hold of a process's memory while they are computed and until their answers are sent."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager

__all__ = ["Memory"]

_SHARE = 4  # a caller whose unsent answers hold more than the limit over this waits for its own client to read


class Memory:
    """Counts the bytes that running work may take, as plugins state them, and those of answers that are not yet sent.

    Work waits until there is room for it. An answer is counted though there is no room, because its work has been done; so
    answers that nobody reads keep further work waiting, that of their own caller first. Only the event loop's thread changes it.
    """

    def __init__(self, limit: int, for_heavy: int) -> None:
        self.limit = limit
        self.for_heavy = for_heavy
        """What all heavy work may take of it."""
        self.used = 0
        self.on_release: Callable[[], None] = lambda: None
        """Called when there is more room."""
        self._unsent: Counter[str] = Counter()

    def has_room(self, size: int, caller: str) -> bool:
        """Tell whether so many more bytes may be taken for work of this caller."""
        return self.used + size <= self.limit and self._unsent[caller] <= self.limit // _SHARE

    def take(self, size: int) -> None:
        """Count the bytes that work takes."""
        self.used += size

    def release(self, size: int) -> None:
        """Count them no more."""
        self.used -= size
        self.on_release()

    def take_unsent(self, size: int, caller: str) -> None:
        """Count the bytes of a part of an answer that is not yet sent."""
        self._unsent[caller] += size
        self.take(size)

    def release_unsent(self, size: int, caller: str) -> None:
        """Count them no more."""
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
