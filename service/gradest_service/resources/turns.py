"""Decides whose work runs next: callers take turns, and heavy work leaves a thread and memory to light work."""

from __future__ import annotations

import asyncio
from collections import OrderedDict, deque
from collections.abc import Callable
from dataclasses import dataclass, field

from gradest_service.resources.memory import Memory

__all__ = ["LIGHT", "Need", "Turns"]


@dataclass(frozen=True)
class Need:
    """What work takes: a thread, and so many bytes while it runs. Heavy work never takes the last thread."""

    heavy: bool = False
    bytes: int = 0


LIGHT = Need()
"""The need of work that takes a moment and next to no memory."""


@dataclass(eq=False)
class _Ticket:
    """One piece of work that waits for its turn."""

    number: int
    caller: str
    need: Need
    turn: asyncio.Future[None] = field(default_factory=lambda: asyncio.get_running_loop().create_future())


class _Lane:
    """The tickets that wait, by caller. The callers take turns; the tickets of one caller keep their order."""

    def __init__(self) -> None:
        self.size = 0
        self._of_caller: OrderedDict[str, deque[_Ticket]] = OrderedDict()

    def first(self, may_run: Callable[[str], bool]) -> _Ticket | None:
        """Return the ticket whose turn it is, among those of callers that may run; None if there is none."""
        return next((tickets[0] for caller, tickets in self._of_caller.items() if may_run(caller)), None)

    def add(self, ticket: _Ticket) -> None:
        """Add a ticket behind those of its caller; a caller without tickets comes last."""
        self._of_caller.setdefault(ticket.caller, deque()).append(ticket)
        self.size += 1

    def remove(self, ticket: _Ticket) -> None:
        """Remove a ticket, if it is there. If it was its caller's first, that caller has had its turn, and comes last."""
        tickets = self._of_caller.get(ticket.caller, deque())
        if ticket not in tickets:
            return
        was_first = tickets[0] is ticket
        tickets.remove(ticket)
        self.size -= 1
        if not tickets:
            del self._of_caller[ticket.caller]
        elif was_first:
            self._of_caller.move_to_end(ticket.caller)


class Turns:
    """Hands out threads and memory in order of arrival, except that callers take turns and that work waits for room.

    Heavy work leaves one of several threads, and some of the memory, so that light work never waits for heavy work alone. Where
    heavy work waits for room, no other heavy work passes it, or it might wait for ever. Only the event loop's thread uses it.
    """

    def __init__(self, threads: int, memory: Memory) -> None:
        self._free = threads
        self._free_for_heavy = max(1, threads - 1)
        self._heavy_bytes = 0
        self._memory = memory
        self._lanes = {heavy: _Lane() for heavy in (False, True)}
        self._count = 0
        memory.on_release = self._call_next

    def waiting(self) -> int:
        """Return how many tasks wait for their turn."""
        return self._lanes[False].size + self._lanes[True].size

    def take_at_once(self, need: Need, caller: str) -> bool:
        """Take a thread and memory and return True, if there is what the work needs and nobody waits."""
        if not self._free or self.waiting() or not self._fits(need, caller):
            return False
        self._begin(need)
        return True

    async def take(self, need: Need, caller: str) -> None:
        """Wait for a turn, and take a thread and memory."""
        if self.take_at_once(need, caller):
            return
        self._count += 1
        ticket = _Ticket(self._count, caller, need)
        self._lanes[need.heavy].add(ticket)
        self._call_next()
        try:
            await ticket.turn
        except asyncio.CancelledError:
            if ticket.turn.cancelled():
                self._lanes[need.heavy].remove(ticket)
                self._call_next()
            else:  # the turn came first, but this task was cancelled before it ran
                self.give_back(need)
            raise

    def give_back(self, need: Need) -> None:
        """Give back the thread and the memory of one turn."""
        self._free += 1
        if need.heavy:
            self._free_for_heavy += 1
            self._heavy_bytes -= need.bytes
        self._memory.release(need.bytes)

    def _call_next(self) -> None:
        while (
            self._free
            and self.waiting()
            and (ready := [ticket for lane in self._lanes.values() if (ticket := self._ready(lane))])
        ):
            ticket = min(ready, key=lambda ticket: ticket.number)
            need = ticket.need
            self._lanes[need.heavy].remove(ticket)
            if ticket.turn.cancelled():  # its task has not yet run since then
                continue
            self._begin(need)
            ticket.turn.set_result(None)

    def _begin(self, need: Need) -> None:
        self._free -= 1
        if need.heavy:
            self._free_for_heavy -= 1
            self._heavy_bytes += need.bytes
        self._memory.take(need.bytes)

    def _fits(self, need: Need, caller: str) -> bool:
        """Tell whether there is the memory that work needs, and, if it is heavy, a thread and memory for such work."""
        if not self._memory.has_room(need.bytes, caller):
            return False
        if not need.heavy:
            return True
        return bool(self._free_for_heavy) and self._heavy_bytes + need.bytes <= self._memory.limit_of_heavy

    def _ready(self, lane: _Lane) -> _Ticket | None:
        """Return the ticket of a lane whose turn it is, if there is what it needs."""
        ticket = lane.first(lambda caller: self._memory.has_room(0, caller))
        return ticket if ticket is not None and self._fits(ticket.need, ticket.caller) else None
