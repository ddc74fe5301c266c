"""What an admitted request asks for: its plugins are built, its tensors are decoded, and its limits are checked."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Hashable, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from gradest.contract.cost import Cost
from gradest.contract.estimator import Estimator, State
from gradest.contract.neuron import Neuron, event_shape, output_shape
from gradest.contract.objective import Objective
from gradest.contract.plugin import Plugin
from gradest.contract.score_function import ScoreFunction
from gradest.estimation.events import EventLayout
from gradest_service.bodies.schemas import RecommendRequest

__all__ = [
    "NOTHING",
    "BackwardJob",
    "ComparisonJob",
    "CreditJob",
    "EstimateJob",
    "EstimatorJob",
    "ForwardJob",
    "Job",
    "NeuronJob",
    "ObjectiveJob",
    "RecommendationJob",
    "SampleJob",
]


NOTHING = Cost(0, 0)


@dataclass(frozen=True, eq=False, kw_only=True)
class Job(ABC):
    """What every job has."""

    cost: Cost = NOTHING
    """What it holds and computes, as `limits` counts it."""

    @property
    @abstractmethod
    def itemsize(self) -> int:
        """The bytes of each element that it holds."""

    @property
    @abstractmethod
    def tensors(self) -> Sequence[Tensor | None]:
        """The tensors that the caller sent, as they were decoded."""

    @property
    def bytes(self) -> int:
        """The bytes of its tensors."""
        return sum({id(x): x.nbytes for x in self.tensors if x is not None}.values())


@dataclass(frozen=True, eq=False, kw_only=True)
class NeuronJob(Job):
    """A neuron and its pre-activations."""

    neuron: Neuron
    a: Tensor
    """The pre-activations, `[*batch, *event]`, in the dtype of the answer."""
    wide: Tensor
    """The same in at least float32: estimators compute with these."""
    layout: EventLayout | None = None
    """How the caller's tensors hold an event, where that is not how the neuron reads it."""

    @property
    def itemsize(self) -> int:
        """The size of an element of `wide`."""
        return self.wide.element_size()

    @property
    def tensors(self) -> Sequence[Tensor | None]:
        """The pre-activations."""
        return [self.a, self.wide]

    @property
    def event(self) -> tuple[int, ...]:
        """The shape of one event of `a`."""
        return event_shape(self.neuron, self.a)

    @property
    def output_event(self) -> tuple[int, ...]:
        """The shape of one event of the outputs, which is that of `a` for most neurons."""
        return self.neuron.output_event(self.event)

    @property
    def output_shape(self) -> tuple[int, ...]:
        """The shape of one output, `[*batch, *output_event]`."""
        return output_shape(self.neuron, self.a)

    @property
    def given_event(self) -> tuple[int, ...]:
        """The shape of one event of the caller's pre-activations."""
        return self.event if self.layout is None else self.layout.given

    @property
    def given_output(self) -> tuple[int, ...]:
        """The shape of the output of one event in the caller's tensors."""
        return self.output_event if self.layout is None else self.layout.output_given

    def restore(self, x: Tensor) -> Tensor:
        """Return the neuron's tensor `[..., *event]` in the caller's shape, `[..., *given_event]`."""
        return x if self.layout is None else self.layout.restore(x)

    def restore_output(self, h: Tensor) -> Tensor:
        """Return outputs `[..., *output_event]` in the caller's shape, `[..., *given_output]`."""
        return h if self.layout is None else self.layout.restore_output(h)

    @property
    def batch(self) -> tuple[int, ...]:
        """The shape of the batch of `a`."""
        return tuple(self.a.shape[: self.a.ndim - self.neuron.event_ndim])


@dataclass(frozen=True, eq=False, kw_only=True)
class SampleJob(NeuronJob):
    """Samples of a neuron."""

    samples: int
    dtype: torch.dtype | None = None
    """The dtype of the samples, if it is not that of `a`."""
    seed: int

    @property
    def kind(self) -> Hashable:
        """Equal for jobs that can be computed together."""
        return SampleJob, self.samples, self.dtype, _identity(self.neuron), self.a.dtype, self.event


@dataclass(frozen=True, eq=False, kw_only=True)
class EstimatorJob(NeuronJob):
    """What the two halves of a gradient have in common."""

    estimator: Estimator
    seed: int
    first_state: State = field(default_factory=dict)
    """The estimator's state before its first step; empty if it carries none."""
    state: State | None = None
    """The state that the caller sent; None at the first step."""

    @property
    def kind(self) -> Hashable:
        """Equal for jobs that can be computed together; None for an estimator with a state, which belongs to one caller."""
        if self.first_state:
            return None
        return type(self), _identity(self.neuron), _identity(self.estimator), self.a.dtype, self.event


@dataclass(frozen=True, eq=False, kw_only=True)
class ForwardJob(EstimatorJob):
    """The first half of a gradient: the points at which the loss is needed."""


@dataclass(frozen=True, eq=False, kw_only=True)
class BackwardJob(EstimatorJob):
    """The second half of a gradient: the losses at those points are known."""

    loss: Tensor | None = None
    """`[K, *batch]`."""
    grad: Tensor | None = None
    """dL/dh, `[K, *batch, *given_output]`."""

    @property
    def tensors(self) -> Sequence[Tensor | None]:
        """The pre-activations, the losses, and dL/dh."""
        return [*super().tensors, self.loss, self.grad]

    @property
    def kind(self) -> Hashable:
        """As for every estimator job; those with losses of another dtype, or without, are not computed together."""
        kind = super().kind
        return None if kind is None else (kind, None if self.loss is None else self.loss.dtype, self.grad is None)


@dataclass(frozen=True, eq=False, kw_only=True)
class ObjectiveJob(NeuronJob):
    """An objective to be evaluated on the outputs of a neuron."""

    objective: Objective
    draws: int
    seed: int


@dataclass(frozen=True, eq=False, kw_only=True)
class EstimateJob(ObjectiveJob):
    """The average of many draws of one estimator."""

    estimator: Estimator
    target_standard_error: float | None = None


@dataclass(frozen=True, eq=False, kw_only=True)
class ComparisonJob(ObjectiveJob):
    """Several estimators on one objective."""

    estimators: list[Estimator]


@dataclass(frozen=True, eq=False, kw_only=True)
class CreditJob(Job):
    """The losses of a caller's own samples, whose credit is wanted."""

    estimator: ScoreFunction
    loss: Tensor
    """`[K, *batch]`, in at least float32."""
    features: Tensor | None
    state: State | None = None
    """The state that the caller sent; None at the first step."""

    @property
    def itemsize(self) -> int:
        """The size of an element of the loss."""
        return self.loss.element_size()

    @property
    def tensors(self) -> Sequence[Tensor | None]:
        """The losses and the features."""
        return [self.loss, self.features]


@dataclass(frozen=True, eq=False, kw_only=True)
class RecommendationJob(Job):
    """What a caller has and wants of an estimator."""

    neuron: Neuron
    criteria: RecommendRequest
    evaluations: int | None
    """The maximum of evaluations in one step."""
    measure: ObjectiveJob | None
    """What the estimators are to be measured on; None for a recommendation from the certificates."""
    seed: int

    @property
    def itemsize(self) -> int:
        """The size of an element of what is measured."""
        return 1 if self.measure is None else self.measure.itemsize

    @property
    def tensors(self) -> Sequence[Tensor | None]:
        """Those of what is measured."""
        return [] if self.measure is None else self.measure.tensors


def _identity(plugin: Plugin) -> Hashable:
    return plugin.name, plugin.model_dump_json()
