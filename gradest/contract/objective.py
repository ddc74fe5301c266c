"""Objective: a loss with a name, so that requests and tables can speak of it; any other callable serves as well."""

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
"""Maps points `[K, *batch, *event]` to losses `[K, *batch]`."""


class Objective(Plugin):
    """A loss: maps points `[K, *batch, *event]` to losses `[K, *batch]`, each from its own point alone."""

    @abstractmethod
    def __call__(self, points: Tensor) -> Tensor:
        """The losses, `[K, *batch]`, in the dtype of the points; differentiable in them."""

    def expectation(self, neuron: Neuron, a: Tensor) -> Tensor | None:
        """E[loss(h)] in closed form, `[*batch]`, differentiable in a; None where only enumeration gives it."""
        return None


class Separable(Objective):
    """The mean, or the sum, over units of a function of each unit alone. Its expectation is exact for any number of units.

    A unit of several classes, event_ndim=2, has the sum of the parts of its classes.
    """

    event_ndim: Literal[1, 2] = Field(1, description="dims of an event: 1 for units, 2 for units of several classes")
    reduction: Literal["mean", "sum"] = Field("mean", description="over the units")

    @abstractmethod
    def per_unit(self, h: Tensor) -> Tensor:
        """The unit's part of the loss, elementwise, `[..., *event]`."""

    def __call__(self, points: Tensor) -> Tensor:
        """The mean, or the sum, of `per_unit` over the units."""
        return self._reduce(self._parts(points))

    def expectation(self, neuron: Neuron, a: Tensor) -> Tensor | None:
        """Each unit's part over the atoms of its law. Raises what `check_events` raises."""
        self.check_events(neuron)
        values, weights = neuron.law(a)
        return self._reduce(leading_sum(weights * self._parts(values)))

    def check_events(self, neuron: Neuron) -> None:
        """Raise InvalidInput unless the neuron has events of `event_ndim` dims."""
        if neuron.event_ndim != self.event_ndim:
            raise InvalidInput(
                f"{neuron.name} has events of {neuron.event_ndim} dim(s): give {self.name} event_ndim={neuron.event_ndim}"
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
