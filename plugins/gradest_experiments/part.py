"""What the parts have in common: fields, tasks, a table and a chart; and how a gradient is measured."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor

from gradest.contract.estimator import Estimator, State
from gradest.contract.neuron import Neuron
from gradest.contract.objective import Loss
from gradest.estimation.estimate import estimate
from gradest.estimation.results import Estimate
from gradest.random import MAX_SEED, Key

__all__ = ["Measured", "Part", "Results", "Task", "Tick", "fresh", "log_spaced", "markdown", "measure", "short"]

Tick = Callable[[float], object]
"""Told which share of a task is done."""

Task = Callable[[Tick], Any]
"""Measures something, and returns it as plain JSON. The same part with the same fields gives the same numbers."""

Results = Mapping[str, Any]
"""What the tasks gave, by name."""

_GROUPS = 10  # independent groups of draws, from which the error of a variance is known


class Part(BaseModel, ABC):
    """A part of the report. Its fields, and nothing else, decide its numbers."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: ClassVar[str]
    title: ClassVar[str]
    text: ClassVar[str]
    """What is measured, in Markdown."""
    quick: ClassVar[Mapping[str, Any]]
    """The fields of a run of seconds."""

    seed: int = Field(0, ge=0, lt=MAX_SEED)

    @abstractmethod
    def tasks(self) -> dict[str, Task]:
        """What is to be done, by name, in order."""

    @abstractmethod
    def table(self, results: Results) -> str:
        """The main numbers, in Markdown."""

    @abstractmethod
    def chart(self, results: Results) -> Any:
        """An altair chart."""


@dataclass(frozen=True, eq=False)
class Measured:
    """Draws of an estimator at a fixed state.

    found: all draws together. variance: per-coordinate, of ONE draw, the mean over an event, `[*batch]`. error: its standard
    error, from the scatter of groups of draws, `[*batch]`.
    """

    found: Estimate
    variance: Tensor
    error: Tensor


def measure(
    f: Loss,
    a: Tensor,
    neuron: Neuron,
    estimator: Estimator,
    draws: int,
    seed: int,
    *,
    state: State | None = None,
    warm_up: int = 0,
    tick: Tick = lambda share: None,
) -> Measured:
    """Make at least `draws` draws, in groups. Without a state, a stateful estimator first takes `warm_up` steps."""
    group = max(2, -(-draws // _GROUPS))
    groups: list[Estimate] = []
    for index in range(_GROUPS):
        one = estimate(f, a, neuron, estimator, group, fresh(seed, index), state, warm_up=warm_up)
        state = one.state
        groups.append(one)
        tick((index + 1) / _GROUPS)
    gradient, spread, loss = (
        torch.stack([getattr(one, name) for one in groups]) for name in ("gradient", "variance", "loss")
    )
    variance, total = spread.mean(0), group * _GROUPS
    found = replace(
        groups[0],
        gradient=gradient.mean(0),
        variance=variance,
        standard_error=(variance / total).sqrt(),
        loss=loss.mean(0),
        draws=total,
        seconds=sum(one.seconds for one in groups),
    )
    per_group = spread.flatten(spread.ndim - neuron.event_ndim).mean(-1)
    return Measured(found, per_group.mean(0), per_group.std(0) / _GROUPS**0.5)


def fresh(seed: int, *numbers: int) -> int:
    """A seed of its own for each sequence of numbers."""
    for number in numbers:
        found = Key(seed).fold_in(number).seed
        assert isinstance(found, int)
        seed = found
    return seed


def log_spaced(last: int, count: int) -> list[int]:
    """0, and about `count` steps from 1 to `last` that are evenly spaced on a logarithmic axis."""
    return sorted({0, last, *(round(last ** (place / (count - 1))) for place in range(count))})


def markdown(head: Sequence[str], rows: Sequence[Sequence[Any]]) -> str:
    """A table; columns of numbers are right-aligned, None is a dash."""
    numeric = [
        all(row[column] is None or isinstance(row[column], int | float) for row in rows) for column in range(len(head))
    ]
    lines = [head, ["---:" if right else "---" for right in numeric], *([short(cell) for cell in row] for row in rows)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def short(cell: Any) -> str:
    """A cell of a table: numbers to three digits."""
    if cell is None:
        return "-"
    return f"{cell:.3g}" if isinstance(cell, float) else str(cell)
