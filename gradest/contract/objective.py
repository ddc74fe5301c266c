"""Objective: a loss with a name, by which requests and tables can refer to it. Any other callable is a valid loss too."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor

from gradest.contract.law import MAX_POINTS, error_scale, law_in_words, levels_of_law
from gradest.contract.neuron import Neuron, event_shape
from gradest.contract.plugin import Plugin
from gradest.errors import Inexact, InvalidInput
from gradest.kernels.stable import drop_impossible, leading_sum

__all__ = ["Loss", "Objective", "Separable"]

_GOAL = 1e-6  # a quadrature that is closer than this share of the standard deviation is not refined further
_TOLERANCE = 1e-3  # one that is not closer than this at the finest level is refused
_FINEST_LEVEL = 4
_MOST_HELD = 1 << 20  # elements of a law that is refined; each level doubles them

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

        For a neuron whose law is an approximation, as that of a `Continuous` one, two levels of it are compared. It is refined
        until the parts of each unit, and their gradient in `a` if it requires one, differ by at most 1e-6 of their scale, which
        is that of `gradest.exact`; Inexact is raised if they still differ by more than 1e-3 at the finest level. The part of an
        output of probability 0 does not count. Raises InvalidInput as `check_events` does.
        """
        self.check_events(neuron)
        if neuron.atoms(event_shape(neuron, a)) > MAX_POINTS:
            return None
        levels = levels_of_law(neuron, a)
        values, weights = neuron.law(a)
        if values.requires_grad and not self.differentiable:
            return None  # the outputs move with a, and their part of the derivative is not known
        if levels is None:
            return self._reduce(leading_sum(weights * drop_impossible(self._parts(values), weights)))
        before = self._part_means(*levels(-1), a, None)
        found, level = self._part_means(values, weights, a, before.mean), 0
        finest = (
            _FINEST_LEVEL
            if values.numel() == 0
            else min(_FINEST_LEVEL, (_MOST_HELD // values.numel()).bit_length() - 1)
        )
        while (error := found.error(before)) > _GOAL and level < finest:
            level += 1
            before, found = found, self._part_means(*levels(level), a, found.mean)
        if not error <= _TOLERANCE:
            raise Inexact(
                f"the {law_in_words(neuron)} is not accurate for {self.name}: two levels of it differ by {error:.1g} of the "
                f"deviation of its parts, and {_TOLERANCE:g} is allowed. Use gradest.estimate with an unbiased estimator"
            )
        return self._reduce(found.mean)

    def _part_means(self, values: Tensor, weights: Tensor, a: Tensor, centre: Tensor | None) -> _PartMeans:
        """Return the mean of each unit's part over its law, `[*batch, units]`. centre: about that mean; by default 0."""
        parts = drop_impossible(self._parts(values), weights)
        mean = leading_sum(weights * parts)
        slope = None
        if mean.requires_grad and a.requires_grad:
            (slope,) = torch.autograd.grad(mean.sum(), a, retain_graph=True, allow_unused=True)
        with torch.no_grad():
            away = parts if centre is None else parts - centre
            spread = (leading_sum(weights * (parts - mean).square())).sqrt()
            scale = error_scale(spread, leading_sum(weights * away.abs()))
        return _PartMeans(mean, slope, scale)

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


@dataclass(frozen=True, eq=False)
class _PartMeans:
    """The means of the parts of units at a level of a law, `[*batch, units]`, their gradient in `a`, and the scale of errors."""

    mean: Tensor
    slope: Tensor | None
    scale: Tensor

    @torch.no_grad()
    def error(self, coarser: _PartMeans) -> float:
        """Return the largest difference of two levels as a share of the scale, the rounding error left out. NaN counts as inf."""
        rounding, least = 8 * torch.finfo(self.mean.dtype).eps, torch.finfo(self.mean.dtype).tiny
        errors = [(self.mean - coarser.mean, self.mean, self.scale)]
        if self.slope is not None and coarser.slope is not None and self.slope.numel():
            away, slope = (
                x.abs().flatten(self.mean.ndim - 1).amax(-1) for x in (self.slope - coarser.slope, self.slope)
            )
            scale = self.scale.amax(-1) + slope
            errors.append((away, scale, scale))
        shares = [
            ((x.abs() - rounding * size.abs()).clamp(min=0) / scale.clamp(min=least)) for x, size, scale in errors
        ]
        worst = [float(share.nan_to_num(nan=torch.inf).max()) for share in shares if share.numel()]
        return max(worst, default=0.0)
