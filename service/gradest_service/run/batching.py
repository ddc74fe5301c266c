"""Micro-batching: jobs of one kind are collected while all threads are busy, and run together."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Hashable, Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Generic, TypeVar

from gradest.errors import Cancelled
from gradest_service.admit.pool import Pool, contained
from gradest_service.phases import Record, phase, record_of_caller, recorded
from gradest_service.resources.turns import LIGHT, Need
from gradest_service.run.cancellation import abandoned_when

__all__ = ["Batcher"]

Item = TypeVar("Item")
Answer = TypeVar("Answer")
Work = Callable[[Sequence[Item]], Sequence[Answer]]


@dataclass(frozen=True)
class _Member(Generic[Item, Answer]):
    """One request of a group."""

    item: Item
    answer: asyncio.Future[Answer]
    record: Record
    since: int
    """When it joined, in nanoseconds since 1970."""

    def finish(self, outcome: Answer | Exception) -> None:
        """Hand over the answer, or the error of this request, unless nobody waits for it any more."""
        if self.answer.done():
            return
        if isinstance(outcome, Exception):
            self.answer.set_exception(outcome)
        else:
            self.answer.set_result(outcome)


@dataclass
class _Group(Generic[Item, Answer]):
    """The items of one kind that wait to be run together."""

    work: Work[Item, Answer]
    members: list[_Member[Item, Answer]] = field(default_factory=list)
    elements: int = 0
    bytes: int = 0
    full: asyncio.Event = field(default_factory=asyncio.Event)


class Batcher:
    """Runs the work of concurrent requests of one kind as one call in a thread of the pool.

    The first request of a kind waits for a free thread, and `max_wait` seconds more at most. Requests of its kind that arrive
    with it or meanwhile join it, up to `max_elements`, and to the bytes of `need` if it has some. So nothing is delayed while
    threads are idle and `max_wait` is 0, and the more there is to do, the more is done at once.

    If a call fails, each of its requests is run alone, so that an error reaches only the request that it belongs to. A request
    that is cancelled before its turn is left out. `observe` is called with the number of requests in each call.

    Work whose kind is None is never joined with other work, nor is any if `enabled` is False; that is not observed.
    """

    def __init__(
        self,
        pool: Pool,
        max_wait: float,
        max_elements: int,
        observe: Callable[[int], None] | None = None,
        enabled: bool = True,
        need: Need = LIGHT,
    ) -> None:
        self._pool = pool
        self._max_wait = max_wait
        self._max_elements = max_elements
        self._observe = observe
        self._enabled = enabled
        self._need = need
        self._open: dict[Hashable, _Group[Any, Any]] = {}
        self._running: set[asyncio.Task[None]] = set()

    async def run(
        self, kind: Hashable, work: Work[Item, Answer], item: Item, elements: int, need: Need = LIGHT
    ) -> Answer:
        """Return `work([item])[0]`, perhaps computed with other items of the same kind; `work` must be the same for all.

        What is heavy runs alone.
        """
        if kind is None or need.heavy or not self._enabled:
            (result,) = await self._pool.run(partial(work, [item]), need)
            return result
        group = self._open.get(kind)
        if group is None or self._is_full(group, elements, need.bytes):
            group = _Group(work)
            self._open[kind] = group
            task = asyncio.create_task(self._run_group(kind, group))
            self._running.add(task)  # or it could be collected while it runs
            task.add_done_callback(self._running.discard)
        answer: asyncio.Future[Answer] = asyncio.get_running_loop().create_future()
        group.members.append(_Member(item, answer, record_of_caller(), time.time_ns()))
        group.elements += elements
        group.bytes += need.bytes
        if group.elements >= self._max_elements:
            group.full.set()
        return await answer

    def _is_full(self, group: _Group[Any, Any], elements: int, size: int) -> bool:
        bounded = self._need.bytes > 0
        return group.elements + elements > self._max_elements or (bounded and group.bytes + size > self._need.bytes)

    def run_alone(self, kind: Hashable, work: Work[Item, Answer], item: Item) -> Answer | None:
        """Return `work([item])[0]`, computed at once in the calling thread; None, without a call, if others may join it.

        Others may join while requests wait for a thread, and whenever there is a `max_wait`.
        """
        if kind is not None and self._enabled:
            if self._max_wait or self._open or self._pool.waiting():
                return None
            if self._observe is not None:
                self._observe(1)
        with phase("batch", requests=1):
            (result,) = work([item])
        return result

    async def _run_group(self, kind: Hashable, group: _Group[Any, Any]) -> None:
        try:
            for member, outcome in await self._computed(kind, group):
                member.finish(outcome)
        except Exception as error:  # such as that the system has no thread left
            for member in group.members:
                member.finish(error)
        finally:
            self._close(kind, group)
            for member in group.members:
                member.answer.cancel()  # those without an outcome, because the service stops

    async def _computed(self, kind: Hashable, group: _Group[Any, Any]) -> Iterable[tuple[_Member[Any, Any], Any]]:
        """Return the members that still wait once there is a thread, and the outcome of each."""
        if self._max_wait:
            with suppress(TimeoutError):
                await asyncio.wait_for(group.full.wait(), self._max_wait)
        else:
            await asyncio.sleep(0)  # those that arrived with the first join it
        async with self._pool.thread(self._need):
            self._close(kind, group)
            waiting = [member for member in group.members if not member.answer.done()]
            for member in waiting:
                member.record.add("queue", member.since)
            if self._observe is not None and waiting:
                self._observe(len(waiting))
            return zip(waiting, await self._pool.run_now(partial(_outcomes, group.work, waiting)), strict=True)

    def _close(self, kind: Hashable, group: _Group[Any, Any]) -> None:
        """Let no further request join the group."""
        if self._open.get(kind) is group:
            del self._open[kind]


def _outcomes(work: Work[Any, Any], waiting: Sequence[_Member[Any, Any]]) -> list[Any]:
    """Return the answer to each item, or the error of that item alone; None for an item that nobody waits for any more."""
    wanted = [member.item for member in waiting if not member.answer.done()]
    if not wanted:
        return [None] * len(waiting)
    try:
        if len(wanted) == len(waiting):
            with (
                recorded(*(member.record for member in waiting)),
                phase("batch", requests=len(wanted)),
                abandoned_when(lambda: all(member.answer.done() for member in waiting)),
            ):
                return list(contained(partial(work, wanted)))
    except Cancelled:
        return [None] * len(waiting)
    except Exception as error:
        if len(waiting) == 1:
            return [error]
    return [outcome for member in waiting for outcome in _outcomes(work, [member])]
