"""event_dims: how many trailing dims of the pre-activations are one event, where that is not the neuron's own number of dims.

A neuron reads the last `event_ndim` dims of `a` as one event: units, or units and classes. Whatever stands before them is a batch
of independent examples, each with a loss of its own. `event_dims` says otherwise:

    a                             event_dims    batch     the neuron reads
    [B, T, units]                 2             [B]       [B, T·units]             T positions that share one loss
    [B, T, units, classes]        3             [B]       [B, T·units, classes]
    [B, T, classes]               1             [B, T]    [B, T, 1, classes]       each position is a unit by itself
    [out, in, k, k]               "all"         []        [out·in·k·k]             parameters

Neurons, estimators and kernels see the neuron's shape alone; callers and their losses see the shape of `a`. Where the event of
the outputs differs from that of `a`, as for a unit of two pre-activations, the dims that count units are the caller's there
too, as long as there are as many units: [B, T, units, 2] with event_dims=3 gives outputs [B, T, units]. A neuron with another
number of units has no such dims, and its outputs keep the event of `neuron.output_event`.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal, Self

from torch import Tensor

from gradest.contract.neuron import Neuron, keeps_event
from gradest.contract.objective import Loss, Objective
from gradest.errors import InvalidInput
from gradest.estimation.losses.evaluation import losses_at

__all__ = ["EventDims", "EventLayout", "check_event_dims"]

EventDims = int | Literal["all"]
"""The number of trailing dims of `a` that are one event, or "all" of them."""


def check_event_dims(neuron: Neuron, event_dims: EventDims) -> None:
    """Raise InvalidInput unless event_dims is "all" or a number of dims that holds the dims within a unit of the neuron."""
    least = neuron.event_ndim - 1
    if event_dims != "all" and (isinstance(event_dims, bool) or not isinstance(event_dims, int) or event_dims < least):
        raise InvalidInput(
            f'event_dims must be "all" or a number of dims, for {neuron.label()} at least {least}, not {event_dims!r}'
        )


@dataclass(frozen=True)
class EventLayout:
    """The dims of one event: `given`, in the caller's tensors, and `event`, in those of the neuron; and those of its outputs."""

    given: tuple[int, ...]
    event: tuple[int, ...]
    output_given: tuple[int, ...]
    output_event: tuple[int, ...]

    @classmethod
    def of(cls, neuron: Neuron, a: Tensor, event_dims: EventDims, batch_dims: int = 0) -> Self:
        """Return the layout of the last `event_dims` dims of `a`.

        batch_dims: the number of leading dims that never belong to an event, not even to that of "all".
        Raises InvalidInput unless event_dims is "all" or a number of dims that `a` has and that holds the dims within a unit.
        """
        if not isinstance(a, Tensor):
            raise InvalidInput(f"pre-activations must be a torch tensor, not {type(a).__name__}; use torch.tensor(a)")
        check_event_dims(neuron, event_dims)
        least, most = neuron.event_ndim - 1, a.ndim - batch_dims
        dims = most if event_dims == "all" else event_dims
        if dims > most or least > most:
            raise InvalidInput(
                f"event_dims={event_dims!r} of {neuron.label()} takes more dims than pre-activations {list(a.shape)} have"
                + (" beside the path" if batch_dims else "")
            )
        given = tuple(a.shape[a.ndim - dims :])
        units = dims - least  # a unit's own dims, such as its classes, stay as they are
        event = math.prod(given[:units]), *given[units:]
        if keeps_event(neuron):
            return cls(given, event, given, event)
        output = neuron.output_event(event)
        same = output[0] == event[0]
        return cls(given, event, (*given[:units], *output[1:]) if same else output, output)

    def flatten(self, a: Tensor) -> Tensor:
        """Return the caller's tensor `[..., *given]` as `[..., *event]`."""
        return a.reshape((*a.shape[: a.ndim - len(self.given)], *self.event))

    def restore(self, x: Tensor) -> Tensor:
        """Return the neuron's tensor `[..., *event]` as `[..., *given]`."""
        return x.reshape((*x.shape[: x.ndim - len(self.event)], *self.given))

    def flatten_output(self, h: Tensor) -> Tensor:
        """Return outputs `[..., *output_given]` in the neuron's shape, `[..., *output_event]`."""
        return h.reshape((*h.shape[: h.ndim - len(self.output_given)], *self.output_event))

    def restore_output(self, h: Tensor) -> Tensor:
        """Return outputs in the neuron's shape, `[..., *output_event]`, as `[..., *output_given]`."""
        return h.reshape((*h.shape[: h.ndim - len(self.output_event)], *self.output_given))

    def loss(self, f: Loss) -> Loss:
        """Return f for points in the neuron's shape. An Objective, which is written for neurons, takes those itself."""
        return f if isinstance(f, Objective) else _Restored(f, self)


@dataclass(frozen=True)
class _Restored:
    """A loss that hands the points to `f` in the caller's shape. A class, so that it can be pickled."""

    f: Loss
    layout: EventLayout

    def __call__(self, points: Tensor) -> Tensor:
        return losses_at(self.f, self.layout.restore_output(points), len(self.layout.output_given))
