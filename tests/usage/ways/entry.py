"""The table of ways that the modules of this package fill, and what they share."""

from __future__ import annotations

from collections.abc import Callable

from tests.usage.programs import Case, Gradients, Program, step

Both = tuple[Gradients, Gradients]
Way = Callable[[Case], Both]

WAYS: dict[str, Way] = {}
MEANING: dict[str, str] = {}
SLOW: set[str] = set()


def way(meaning: str, *, slow: bool = False) -> Callable[[Way], Way]:
    """Enter a way under its function's name, with the words that a user reads in the table.

    slow: whether a cell takes a good part of a second, so that the cross has one neuron for each estimator.
    """

    def enter(function: Way) -> Way:
        name = function.__name__.replace("_", " ").strip()
        WAYS[name], MEANING[name] = function, meaning
        if slow:
            SLOW.add(name)
        return function

    return enter


def added(*all_gradients: Gradients) -> Gradients:
    """Return the sums of gradients of several steps."""
    return {name: sum(given[name] for given in all_gradients) for name in all_gradients[0]}  # type: ignore[misc]


def moved_on(case: Case) -> Program:
    """Return a program after one step, which may have given it a state."""
    program = case.build()
    step(program, seed=99)
    program.zero_grad()
    return program
