"""How work in a thread of the pool learns that nobody waits for it any more.

Work stops at its next report of progress and, unless it is brief, at its next operation of torch: plugins are made of such
operations, and the limits bound each of them. To look at each takes longer than what is stopped of brief work. A backward pass is
one operation of torch, in which each node is looked at.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from contextvars import ContextVar
from typing import Any

import torch
from anyio import from_thread
from torch import Tensor
from torch.autograd.graph import Node
from torch.overrides import TorchFunctionMode

from gradest.errors import Cancelled

__all__ = ["abandoned_when", "interruptible", "raise_if_cancelled"]

_LOOK_SECONDS = 0.01  # between looks: each takes as long as an operation on some thousands of elements
_abandoned: ContextVar[Callable[[], bool]] = ContextVar("gradest_service_abandoned", default=lambda: False)


def raise_if_cancelled(*_: object) -> None:
    """End the work in this thread if its request is past its deadline or its client has disconnected, by raising Cancelled.

    It takes any arguments, so that it can be given to gradest as a `progress` callback.
    """
    if _abandoned.get()():
        raise Cancelled
    try:
        from_thread.check_cancelled()
    except asyncio.CancelledError:
        raise Cancelled from None
    except RuntimeError:  # it is no thread of the pool, but a caller of the operation itself
        return


@contextmanager
def abandoned_when(nobody_waits: Callable[[], bool]) -> Iterator[None]:
    """End the work of the block, which is done for several requests, once this returns True."""
    token = _abandoned.set(nobody_waits)
    try:
        yield
    finally:
        _abandoned.reset(token)


@contextmanager
def interruptible(brief: bool) -> Iterator[None]:
    """Let `raise_if_cancelled` end the block at any operation of torch, unless it is known to end soon."""
    raise_if_cancelled()
    if brief:
        yield
        return
    with _Interruptible():
        yield


class _Interruptible(TorchFunctionMode):
    """Looks before a call of a torch function of this thread whether anybody waits for the result, unless it has just looked."""

    def __init__(self) -> None:
        super().__init__()
        self._next_look = 0.0

    def _look(self, *_: object) -> None:
        now = time.monotonic()
        if now >= self._next_look:
            self._next_look = now + _LOOK_SECONDS
            raise_if_cancelled()

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Sequence[type],
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        self._look()
        if func is not torch.autograd.grad:
            return func(*args, **(kwargs or {}))
        with ExitStack() as hooks:
            for node in _nodes(args[0] if args else (kwargs or {})["outputs"]):
                hooks.callback(node.register_prehook(self._look).remove)
            return func(*args, **(kwargs or {}))


def _nodes(outputs: Tensor | Sequence[Tensor]) -> Collection[Node]:
    """Return the nodes of the graph that leads to these outputs."""
    waiting = [x.grad_fn for x in ([outputs] if isinstance(outputs, Tensor) else outputs)]
    found = set[Node]()
    while waiting:
        node = waiting.pop()
        if node is not None and node not in found:
            found.add(node)
            waiting += [before for before, _ in node.next_functions]
    return found
