"""Objective: a loss with a name, by which requests and tables can refer to it. Any other callable is a valid loss too."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable
from typing import Literal

from pydantic import Field
from torch import Tensor

from gradest.contract.neuron import Neuron
from gradest.contract.plugin import Plugin
from gradest.errors import InvalidInput
from gradest.kernels.stable import leading_sum

__all__ = ["Loss", "Objective", "Separable"]

Loss = Callable[[Tensor], Tensor]
"""A function from points `[K, *batch, *event]` to losses `[K, *batch]`."""


class Objective(Plugin):
    """A loss: a function from points `[K, *batch, *event]` to losses `[K, *batch]`. Each loss depends on its own point alone."""

    @abstractmethod
    def __call__(self, points: Tensor) -> Tensor:
        """Return the losses, `[K, *batch]`, in the dtype of the points and differentiable in them."""

    def expectation(self, neuron: Neuron, a: Tensor) -> Tensor | None:
        """Return E[loss(h)] in closed form, `[*batch]`, differentiable in `a`, or None if there is no closed form."""
        return None


class Separable(Objective):
    """A loss that is the mean, or the sum, over units of a function of one unit. Its expectation is exact for any event size.

    For units of several classes, event_ndim=2, the parts of a unit's classes are summed.
    """

    event_ndim: Literal[1, 2] = Field(
        1, description="number of dims of an event: 1 for units, 2 for units of several classes"
    )
    reduction: Literal["mean", "sum"] = Field("mean", description="how the units' parts are combined")

    @abstractmethod
    def per_unit(self, h: Tensor) -> Tensor:
        """Return each unit's part of the loss, elementwise, `[..., *event]`."""

    def __call__(self, points: Tensor) -> Tensor:
        """Return the mean, or the sum, of `per_unit` over the units."""
        return self._reduce(self._parts(points))

    def expectation(self, neuron: Neuron, a: Tensor) -> Tensor | None:
        """Return the expectation as a sum over the atoms of each unit's law. Raises InvalidInput as `check_events` does."""
        self.check_events(neuron)
        values, weights = neuron.law(a)
        return self._reduce(leading_sum(weights * self._parts(values)))

    def check_events(self, neuron: Neuron) -> None:
        """Raise InvalidInput unless the neuron's events have `event_ndim` dims."""
        if neuron.event_ndim != self.event_ndim:
            raise InvalidInput(
                f"{neuron.name} has events of {neuron.event_ndim} dim(s): set event_ndim={neuron.event_ndim} on {self.name}"
            )

    def _parts(self, h: Tensor) -> Tensor:
        try:
            parts = self.per_unit(h)
        except RuntimeError as error:
            raise InvalidInput(
                f"the options of {self.name} must broadcast against [*batch, *event], but the points are {list(h.shape)}: {error}"
            ) from error
        return parts.contiguous().sum(-1) if self.event_ndim == 2 else parts

    def _reduce(self, parts: Tensor) -> Tensor:
        total = parts.contiguous().sum(-1)
        return total / parts.shape[-1] if self.reduction == "mean" and parts.shape[-1] else total
