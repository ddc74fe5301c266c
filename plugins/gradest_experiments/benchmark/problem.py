"""What all problems of the benchmark have in common."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal, Self

import torch
from torch import Tensor

from gradest.analysis.comparison import within_point_limit
from gradest.contract.estimator import Estimator
from gradest.contract.neuron import Neuron, event_shape
from gradest.contract.target import Target
from gradest.discovery.registry import registry
from gradest.errors import Incompatible
from gradest_experiments.engine.data import DatasetName
from gradest_experiments.engine.folder import RunFolder
from gradest_experiments.engine.options import RunSettings

__all__ = ["OnProgress", "Outcome", "Problem", "Size", "UnitProblem"]

Size = Literal["quick", "full"]

OnProgress = Callable[[float], object]
"""Called with the share of a run that is done."""


@dataclass(frozen=True)
class Outcome:
    """What a run came to. evaluations: of the loss, all together. curve: steps and values. details: further figures."""

    value: float
    evaluations: int
    seconds: float
    curve: tuple[tuple[int, float], ...] = ()
    details: Mapping[str, Any] = field(default_factory=dict)


class Problem(RunSettings):
    """A problem on which estimators are ranked. Its fields are its sizes and constants.

    A subclass states what it measures, and implements `name`, `neuron_for` and `run`. All estimators get the same data in the
    same order, and the same noise, from the seed of the run.
    """

    title: ClassVar[str]
    text: ClassVar[str]
    """What is trained or measured, in Markdown."""
    metric: ClassVar[str]
    unit: ClassVar[str]
    better: ClassVar[Literal["lower", "higher"]] = "lower"
    tuned: ClassVar[str] = "nothing; all estimators have their default options."
    """What was tuned, and on what."""
    quick: ClassVar[Mapping[str, Any]] = {}
    """The fields that the size "quick" sets."""
    data: ClassVar[DatasetName | None] = None
    """The dataset that it needs, if any."""
    seconds: ClassVar[int] = 2
    """About how long a quick run takes, by which progress is measured."""

    @property
    @abstractmethod
    def name(self) -> str:
        """The name of the problem."""

    def at(self, size: Size) -> Self:
        """Return the problem at a size."""
        return self.model_copy(update=dict(self.quick)) if size == "quick" else self

    @abstractmethod
    def neuron_for(self, estimator: Estimator) -> Neuron:
        """Return the neuron on which the estimator runs. Raises Incompatible, with the reason, if the problem does not fit."""

    def per_draw(self, estimator: Estimator) -> int:
        """Return K, the number of evaluations of the loss in one draw."""
        return estimator.evaluations(self.neuron_for(estimator), self.event())

    @abstractmethod
    def event(self) -> tuple[int, ...]:
        """Return the shape of the pre-activations that share a loss."""

    @abstractmethod
    def run(self, folder: RunFolder, estimator: Estimator, seed: int, on_progress: OnProgress) -> Outcome:
        """Do one run, or continue it, in its folder. Raises GradestError if it fails."""


class UnitProblem(Problem):
    """A problem on one kind of neuron, at which an estimator may ask for a number of points of the loss.

    most_evaluations: the largest K of one draw that is still run.
    """

    most_evaluations: ClassVar[int] = 300

    @abstractmethod
    def neurons(self) -> list[Neuron]:
        """Return the neurons that serve, the preferred one first."""

    def probe(self, neuron: Neuron) -> Tensor:
        """Return pre-activations of one event, on which estimators are tried."""
        return torch.zeros(self.event())

    def event(self) -> tuple[int, ...]:
        """Return the shape of the pre-activations of the preferred neuron."""
        return tuple(self.probe(self.neurons()[0]).shape)

    def per_draw(self, estimator: Estimator) -> int:
        """Return K, the number of evaluations of the loss in one draw."""
        neuron = self.neuron_for(estimator)
        return estimator.evaluations(neuron, event_shape(neuron, self.probe(neuron)))

    def neuron_for(self, estimator: Estimator) -> Neuron:
        """Return the first neuron that the estimator accepts.

        Raises Incompatible if it accepts none, has another target than the mean loss, or evaluates the loss at too many points.
        """
        label = registry.label(estimator)
        if estimator.target() != Target():
            raise Incompatible(f"{label} estimates the gradient of {estimator.target()}, and not that of the mean loss")
        for neuron in self.neurons():
            if not registry.call(estimator, "accepts", neuron):
                continue
            probe = self.probe(neuron)
            if not within_point_limit(estimator, neuron, probe):
                raise Incompatible(f"{label} would enumerate too many outputs")
            asked = estimator.evaluations(neuron, event_shape(neuron, probe))
            if asked > self.most_evaluations:
                raise Incompatible(f"{label} asks for {asked} evaluations, and at most {self.most_evaluations} are run")
            return neuron
        names = " or ".join(neuron.label() for neuron in self.neurons())
        raise Incompatible(f"{label} does not fit {names}")
