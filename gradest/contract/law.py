"""The joint law of the units of an event: every configuration of their outputs, with its probability."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from gradest.contract.neuron import Continuous, Discrete, Neuron, event_shape
from gradest.contract.target import Target
from gradest.errors import TooManyPoints

__all__ = [
    "FINEST_LEVEL",
    "MAX_POINTS",
    "configurations",
    "count_configurations",
    "count_ways",
    "error_scale",
    "in_words",
    "law_in_words",
    "levels_of_law",
]

FINEST_LEVEL = 9
"""The last level of a law that is an approximation. At further ones, the density in the tails would underflow."""

_DEVIATIONS = 10.0

MAX_POINTS = 1 << 20
"""The largest number of configurations that is enumerated, which is that of 20 binary units."""


def count_configurations(neuron: Neuron, event: tuple[int, ...], atoms: int | None = None) -> int:
    """Return how many configurations the units of an event have, if each has `atoms` outputs.

    atoms: by default what the neuron states before its law has run. Raises TooManyPoints for more than MAX_POINTS.
    """
    units = math.prod(neuron.output_event(event)[:1])
    if atoms is None:
        atoms = neuron.atoms(event)
    if units * math.log2(max(atoms, 1)) > math.log2(MAX_POINTS):
        if atoms > MAX_POINTS:
            what = "nodes" if isinstance(neuron, Continuous) else "outputs"
            raise TooManyPoints(
                f"a unit of {neuron.label()} has {in_words(atoms)} {what} for events {list(event)}, and at most 2^20 are summed "
                "over. Use smaller events, an objective with a closed form (objective.expectation), or estimate"
            )
        most = int(math.log2(MAX_POINTS) / math.log2(atoms))
        raise TooManyPoints(
            f"enumerating {units} units of {neuron.label()} takes {in_words(atoms)}^{units} points; the limit is 2^20, which is "
            f"{most} such units. Use fewer units, an objective with a closed form (objective.expectation), or estimate"
        )
    return int(atoms**units)


def count_ways(total: int, target: Target) -> int:
    """Return in how many ways the samples of a target are drawn from so many configurations.

    Raises TooManyPoints for more than MAX_POINTS, before a number of millions of digits is computed.
    """
    if target.samples * math.log2(max(total, 1)) > math.log2(MAX_POINTS):
        raise TooManyPoints(
            f"{target} over {total} configurations has {total}^{target.samples} terms; the limit is 2^20"
        )
    return int(total**target.samples)


def in_words(count: int) -> str:
    """Return a number as it is, or "over 10^15": Python refuses to write one of thousands of digits."""
    return str(count) if count < 10**15 else "over 10^15"


def configurations(
    neuron: Neuron, a: Tensor, law: tuple[Tensor, Tensor], start: int, stop: int
) -> tuple[Tensor, Tensor]:
    """Return the configurations `start` to `stop` of the joint law: points `[n, *batch, *event']` and weights `[n, *batch]`.

    law: the result of `neuron.law(a)`. Points and weights are differentiable in `a` where it is.
    """
    values, weights = law
    atoms = values.shape[0]
    unit_dim = a.ndim - neuron.event_ndim  # the dim of an output that counts units
    units = neuron.output_event(event_shape(neuron, a))[0]
    index = torch.arange(start, stop, device=a.device)[:, None]
    # the digits of a configuration's number, in base `atoms`, say which atom each unit takes
    place = torch.tensor([atoms**unit for unit in range(units)], dtype=torch.int64, device=a.device)
    digits = index.div(place, rounding_mode="floor") % atoms
    at = torch.arange(units, device=a.device)
    points = values.movedim(1 + unit_dim, 1)[digits, at].movedim(1, 1 + unit_dim)
    probabilities = weights.movedim(1 + unit_dim, 1)[digits, at].prod(1)
    return points, probabilities


def levels_of_law(neuron: Neuron, a: Tensor) -> Callable[[int], tuple[Tensor, Tensor]] | None:
    """Return the function from levels to laws of a neuron whose law is an approximation, None for one whose law is exact."""
    if isinstance(neuron, Continuous):
        return lambda level: neuron.quadrature(a, level)
    if isinstance(neuron, Discrete) and not neuron.finite:
        return lambda level: neuron.truncated_law(a, level)
    return None


def law_in_words(neuron: Neuron) -> str:
    """Return what an error calls the law of a neuron that is an approximation."""
    return f"{'quadrature' if isinstance(neuron, Continuous) else 'truncated law'} of {neuron.label()}"


def error_scale(spread: Tensor, deviation: Tensor) -> Tensor:
    """Return what the error of an expectation is compared with: the standard deviation, or ten mean absolute deviations if less.

    Where the expectation lies in a tail, as that of exp(20 h) does, the standard deviation is larger than the expectation itself
    by any factor, so that it allows any error. The mean absolute deviation is at most twice E|f|.
    """
    return torch.minimum(spread, _DEVIATIONS * deviation)
