"""Objective: a loss with a name, by which requests and tables can refer to it. Any other callable is a valid loss too."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable
from typing import Any, ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor

from gradest.contract.law import MAX_POINTS
from gradest.contract.neuron import Continuous, Neuron, event_shape
from gradest.contract.plugin import Plugin
from gradest.errors import Inexact, InvalidInput
from gradest.kernels.stable import leading_sum

__all__ = ["Loss", "Objective", "Separable"]

_GOAL = 1e-6  # a quadrature that is closer than this share of the standard deviation is not refined further
_TOLERANCE = 1e-3  # one that is not closer than this at the finest level is refused
_FINEST_LEVEL = 4

Loss = Callable[[Tensor], Tensor]
"""A function from points `[K, *batch, *event']` to losses `[K, *batch]`, where event' is the event of a neuron's outputs."""


class Objective(Plugin):
    """A loss: a function from points `[K, *batch, *event']` to losses `[K, *batch]`. Each loss depends on its own point alone.

    A simulator, which takes one point at a time and has no derivative, states both:

        class Episode(gradest.Objective):
            name, summary = "episode", "return of a simulated episode, negative"
            differentiable, pointwise = False, True

            def __call__(self, point):                  # [*event']
                return -simulate(point.numpy())         # one number
    """

    differentiable: ClassVar[bool] = True
    """Whether autograd has dL/dh, and it accounts for every change of the loss. If not, estimators that need dL/dh are refused,
    and `compare` and `recommend` leave them out and say so."""

    pointwise: ClassVar[bool] = False
    """Whether `__call__` takes one point, `[*event']` in at least float32, and returns its loss, a number or a tensor of one
    element. gradest then calls it for each point in turn, of a draw and of the sum of `exact`. A Python number is a float64."""

    @abstractmethod
    def __call__(self, points: Tensor) -> Any:
        """Return the losses, `[K, *batch]`, in the dtype of the points and, if `differentiable`, differentiable in them.

        If `pointwise`, return the loss of a single point.
        """

    def expectation(self, neuron: Neuron, a: Tensor) -> Tensor | None:
        """Return E[loss(h)] in closed form, `[*batch]`, differentiable in `a`, or None if there is no closed form.

        May raise Inexact if it is computed by quadrature.
        """
        return None


class Separable(Objective):
    """A loss that is the mean, or the sum, over units of a function of one unit. Its expectation is exact for any event size.

    For units of several classes, event_ndim=2, the parts of a unit's classes are summed; with event_ndim=3 those of a matrix are.
    """

    event_ndim: Literal[1, 2, 3] = Field(
        1,
        description="number of dims of an output: 1 for units, 2 for units of several classes, 3 for units that are matrices",
    )
    reduction: Literal["mean", "sum"] = Field("mean", description="how the units' parts are combined")

    @abstractmethod
    def per_unit(self, h: Tensor) -> Tensor:
        """Return each unit's part of the loss, elementwise, `[..., *event']`."""

    def __call__(self, points: Tensor) -> Tensor:
        """Return the mean, or the sum, of `per_unit` over the units."""
        return self._reduce(self._parts(points))

    def expectation(self, neuron: Neuron, a: Tensor) -> Tensor | None:
        """Return the expectation as a sum over the atoms of each unit's law; None if a unit has more than 2^20 of them.

        For a `Continuous` neuron two levels of its quadrature are compared. It is refined until the parts of each unit differ by
        at most 1e-6 of their standard deviation; Inexact is raised if they still differ by more than 1e-3 at the finest level.
        Raises InvalidInput as `check_events` does.
        """
        self.check_events(neuron)
        if neuron.atoms(event_shape(neuron, a)) > MAX_POINTS:
            return None
        values, weights = neuron.law(a)
        if values.requires_grad and not self.differentiable:
            return None  # the outputs move with a, and their part of the derivative is not known
        mean, spread = self._mean_parts(values, weights)
        if isinstance(neuron, Continuous):
            with torch.no_grad():
                before, _ = self._mean_parts(*neuron.quadrature(a, -1))
            level = 0
            while (error := _worst(mean, before, spread)) > _GOAL and level < _FINEST_LEVEL:
                level += 1
                before, (mean, spread) = mean, self._mean_parts(*neuron.quadrature(a, level))
            if error > _TOLERANCE:
                raise Inexact(
                    f"the quadrature of {neuron.label()} is not accurate for {self.name}: two levels of it differ by {error:.1g} "
                    f"of the standard deviation, and {_TOLERANCE:g} is allowed. Use gradest.estimate with an unbiased estimator"
                )
        return self._reduce(mean)

    def _mean_parts(self, values: Tensor, weights: Tensor) -> tuple[Tensor, Tensor]:
        """Return the mean and the standard deviation of each unit's part over its law, `[*batch, units]`."""
        parts = self._parts(values)
        mean = leading_sum(weights * parts)
        with torch.no_grad():
            return mean, leading_sum(weights * (parts - mean).square()).sqrt()

    def check_events(self, neuron: Neuron) -> None:
        """Raise InvalidInput unless the neuron's outputs have events of `event_ndim` dims."""
        if neuron.output_ndim != self.event_ndim:
            raise InvalidInput(
                f"{neuron.name} has events of {neuron.output_ndim} dim(s): set event_ndim={neuron.output_ndim} on {self.name}"
            )

    def _parts(self, h: Tensor) -> Tensor:
        try:
            parts = self.per_unit(h)
        except RuntimeError as error:
            raise InvalidInput(
                f"the options of {self.name} must broadcast against [*batch, *event], but the points are {list(h.shape)}: {error}"
            ) from error
        return parts if self.event_ndim == 1 else parts.contiguous().flatten(1 - self.event_ndim).sum(-1)

    def _reduce(self, parts: Tensor) -> Tensor:
        total = parts.contiguous().sum(-1)
        return total / parts.shape[-1] if self.reduction == "mean" and parts.shape[-1] else total


@torch.no_grad()
def _worst(mean: Tensor, coarser: Tensor, spread: Tensor) -> float:
    """Return the largest difference of two levels in standard deviations, the rounding error of the mean left out."""
    error = (mean - coarser).abs() - 8 * torch.finfo(mean.dtype).eps * mean.abs()
    share = error.clamp(min=0) / spread.clamp(min=torch.finfo(spread.dtype).tiny)
    return float(share.max()) if share.numel() else 0.0
