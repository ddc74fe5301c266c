"""What all parts of the report have in common: fields, tasks, a table and a chart; and how a gradient is measured."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor

from gradest.analysis.comparison import within_point_limit
from gradest.contract.estimator import Estimator, State
from gradest.contract.neuron import Neuron
from gradest.contract.objective import Loss
from gradest.contract.target import Target
from gradest.discovery.registry import registry
from gradest.estimation.estimate import estimate
from gradest.estimation.results import Estimate
from gradest.random import MAX_SEED
from gradest_experiments.engine.seeds import derive_seed

__all__ = ["Measured", "OnProgress", "Part", "Results", "Task", "log_spaced", "measure"]

OnProgress = Callable[[float], object]
"""Called with the share of a task that is done."""

Task = Callable[[OnProgress], Any]
"""Measures something, and returns plain JSON. A part with the same fields has the same numbers."""

Results = Mapping[str, Any]
"""What the tasks returned, by their names."""

_GROUPS = 10  # independent groups of draws, whose scatter gives the standard error of a variance


class Part(BaseModel, ABC):
    """A part of the report. Its fields, and nothing else, determine its numbers."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: ClassVar[str]
    title: ClassVar[str]
    text: ClassVar[str]
    """What is measured, in Markdown."""
    quick: ClassVar[Mapping[str, Any]]
    """The fields that --quick sets."""

    seed: int = Field(0, ge=0, lt=MAX_SEED)
    estimators: tuple[dict[str, Any], ...] | None = Field(
        None, description="the estimators to measure, {name, **options}; those of the part if omitted"
    )

    def choose(self, neuron: Neuron, a: Tensor, usual: Sequence[Estimator]) -> list[Estimator]:
        """Return the estimators to measure at `a`: those of the field that can be compared there, or the usual ones.

        Raises UnknownPlugin or InvalidOptions.
        """
        if self.estimators is None:
            return list(usual)
        named = map(registry.estimator, self.estimators)
        fitting = [one for one in named if one.accepts(neuron) and one.target() == Target()]
        return [one for one in fitting if within_point_limit(one, neuron, a)]

    @abstractmethod
    def tasks(self) -> dict[str, Task]:
        """Return the tasks by name, in order."""

    @abstractmethod
    def table(self, results: Results) -> str:
        """Return the main numbers, in Markdown."""

    @abstractmethod
    def chart(self, results: Results) -> Any:
        """Return an altair chart."""


@dataclass(frozen=True, eq=False)
class Measured:
    """What many draws of an estimator at a fixed state gave.

    estimate: of all draws together. variance: of ONE draw, per coordinate, averaged over an event, `[*batch]`. error: the
    standard error of the variance, from the scatter of groups of draws, `[*batch]`.
    """

    estimate: Estimate
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
    on_progress: OnProgress = lambda share: None,
) -> Measured:
    """Measure an estimator by at least `draws` draws, in groups. Without a state, a stateful one first takes `warm_up` steps."""
    group = max(2, -(-draws // _GROUPS))
    groups: list[Estimate] = []
    for index in range(_GROUPS):
        one = estimate(f, a, neuron, estimator, group, derive_seed(seed, index), state, warm_up=warm_up)
        state = one.state
        groups.append(one)
        on_progress((index + 1) / _GROUPS)
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


def log_spaced(last: int, count: int) -> list[int]:
    """Return 0 and about `count` steps from 1 to `last`, evenly spaced on a logarithmic axis."""
    return sorted({0, last, *(round(last ** (place / (count - 1))) for place in range(count))})
