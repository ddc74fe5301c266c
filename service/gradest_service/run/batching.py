"""Micro-batching: requests that may run as one pass are collected while the pool is busy, and run together."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Hashable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Generic, TypeVar

from gradest_service.admit.pool import Pool

__all__ = ["Batcher"]

Item = TypeVar("Item")
Answer = TypeVar("Answer")
Work = Callable[[Sequence[Item]], Sequence[Answer]]


@dataclass
class _Group(Generic[Item, Answer]):
    """The requests of one kind that wait for their pass."""

    work: Work[Item, Answer]
    items: list[Item] = field(default_factory=list)
    answers: list[asyncio.Future[Answer]] = field(default_factory=list)
    elements: int = 0
    full: asyncio.Event = field(default_factory=asyncio.Event)


class Batcher:
    """Runs the work of concurrent requests of one kind as one call in a thread of the pool.

    The first request of a kind waits for a free thread, and for `max_wait` seconds at the most beyond that; whatever of its kind
    comes meanwhile joins it, up to `max_elements`. So nothing is delayed while threads are idle and `max_wait` is 0, and the
    more there is to do the more is done at once.

    If a pass fails, each of its requests is run alone, so that an error reaches only the request that it belongs to. Whoever
    gives up before its turn is left out. `observe` is told how many requests each pass is for.
    """

    def __init__(
        self, pool: Pool, max_wait: float, max_elements: int, observe: Callable[[int], None] | None = None
    ) -> None:
        self._pool = pool
        self._max_wait = max_wait
        self._max_elements = max_elements
        self._observe = observe
        self._open: dict[Hashable, _Group[Any, Any]] = {}
        self._running: set[asyncio.Task[None]] = set()

    async def run(self, kind: Hashable, work: Work[Item, Answer], item: Item, elements: int) -> Answer:
        """`work([item])[0]`, perhaps together with other items of the same kind, for which `work` must be the same."""
        group = self._open.get(kind)
        if group is None or group.elements + elements > self._max_elements:
            group = _Group(work)
            self._open[kind] = group
            task = asyncio.create_task(self._lead(kind, group))
            self._running.add(task)  # or it could be collected while it runs
            task.add_done_callback(self._running.discard)
        answer: asyncio.Future[Answer] = asyncio.get_running_loop().create_future()
        group.items.append(item)
        group.answers.append(answer)
        group.elements += elements
        if group.elements >= self._max_elements:
            group.full.set()
        return await answer

    def run_alone(self, work: Callable[[], Answer]) -> Answer | None:
        """`work()`, a pass for one request, in the thread that the request was prepared in; None, and nothing is run, where
        others may be there to join it with: while requests wait for a thread.
        """
        if self._max_wait or self._open or self._pool.waiting():
            return None
        if self._observe is not None:
            self._observe(1)
        return work()

    async def _lead(self, kind: Hashable, group: _Group[Any, Any]) -> None:
        try:
            if self._max_wait:
                with suppress(TimeoutError):
                    await asyncio.wait_for(group.full.wait(), self._max_wait)
            async with self._pool.turn():
                if self._open.get(kind) is group:
                    del self._open[kind]
                waiting = [pair for pair in zip(group.items, group.answers, strict=True) if not pair[1].done()]
                if self._observe is not None and waiting:
                    self._observe(len(waiting))
                outcomes = await self._pool.run_now(partial(_outcomes, group.work, waiting))
            for (_, answer), outcome in zip(waiting, outcomes, strict=True):
                if answer.done():
                    continue
                if isinstance(outcome, Exception):
                    answer.set_exception(outcome)
                else:
                    answer.set_result(outcome)
        finally:
            for answer in group.answers:
                answer.cancel()  # of those that have no outcome, because the service stops


def _outcomes(work: Work[Any, Any], waiting: Sequence[tuple[Any, asyncio.Future[Any]]]) -> list[Any]:
    """The answer to each item, or the error that it alone gives; None to one that nobody waits for any more."""
    wanted = [item for item, answer in waiting if not answer.done()]
    if not wanted:
        return [None] * len(waiting)
    try:
        if len(wanted) == len(waiting):
            return list(work(wanted))
    except Exception as error:
        if len(waiting) == 1:
            return [error]
    return [outcome for pair in waiting for outcome in _outcomes(work, [pair])]
