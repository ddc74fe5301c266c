"""How work in a thread of the pool learns that nobody waits for it any more."""

from __future__ import annotations

from anyio import from_thread

__all__ = ["raise_if_cancelled"]


def raise_if_cancelled(*_: object) -> None:
    """End the work in this thread if its request is past its deadline or its client has disconnected.

    It takes any arguments, so that it can be given to gradest as a `progress` callback.
    """
    from_thread.check_cancelled()
