"""Cost: what a computation holds and computes, as a plugin states it before it runs."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

__all__ = ["Cost"]


@dataclass(frozen=True)
class Cost:
    """What a draw takes beside the caller's evaluation of the loss, or what a mean takes, as stated before it runs.

    held: elements that are held at once. work: elements that are computed.

    The unit is one element of the points: an ordinary estimator, which holds and computes some tensors as large as its points,
    takes K · rows · size of each. Inner samples, comparisons of all pairs of K samples, and the state count beside that. The
    conformance kit measures both, and allows the statement to be low by the factors `HELD_PER_ELEMENT` and `WORK_PER_ELEMENT`,
    the numbers of temporary tensors and of operations per element that ordinary estimators have.
    """

    held: int
    work: int

    HELD_PER_ELEMENT: ClassVar[int] = 24
    WORK_PER_ELEMENT: ClassVar[int] = 600  # some 150 of them for each random number

    def __add__(self, other: Cost) -> Cost:
        """Return the cost of both."""
        return Cost(self.held + other.held, self.work + other.work)

    def __mul__(self, times: int) -> Cost:
        """Return the cost of so many, held together."""
        return Cost(self.held * times, self.work * times)
