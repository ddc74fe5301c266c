"""When the phases of a request began and ended: decode, queue, batch, compute and encode. Metrics and spans are made of them."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field

__all__ = ["Phase", "Record", "phase", "record_of_caller", "recorded"]


@dataclass(frozen=True, slots=True)
class Phase:
    """One phase of a request. Times are nanoseconds since 1970, as spans have them."""

    name: str
    began: int
    ended: int
    attributes: Mapping[str, int] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Record:
    """The phases of one request that are over."""

    phases: list[Phase] = field(default_factory=list)

    def add(self, name: str, began: int, **attributes: int) -> None:
        """Add a phase that ends now."""
        self.phases.append(Phase(name, began, time.time_ns(), attributes))


_records: ContextVar[tuple[Record, ...]] = ContextVar("gradest_service_phases", default=())


@contextmanager
def recorded(*records: Record) -> Iterator[None]:
    """Add the phases inside the block to these records: those of the requests for which it works."""
    token = _records.set(records)
    try:
        yield
    finally:
        _records.reset(token)


@contextmanager
def phase(name: str, **attributes: int) -> Iterator[None]:
    """Record the block as a phase of each request for which it works, also if it raises."""
    began = time.time_ns()
    try:
        yield
    finally:
        for record in _records.get():
            record.add(name, began, **attributes)


def record_of_caller() -> Record:
    """Return the record of the request for which this code works; one that nobody reads if it works for none or several."""
    records = _records.get()
    return records[0] if len(records) == 1 else Record()
