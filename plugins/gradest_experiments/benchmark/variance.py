"""The error of gradients against P(b = 1), the number of units and the curvature of the loss: the map."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from statistics import fmean
from typing import ClassVar, NamedTuple

import torch
from pydantic import Field
from torch import Tensor

from gradest.analysis.comparison import cosine_similarity
from gradest.analysis.results import relative_error
from gradest.contract.estimator import Estimator
from gradest.contract.neuron import Neuron, event_shape
from gradest.discovery.registry import registry
from gradest.estimation.estimate import estimate
from gradest_experiments.benchmark.problem import OnProgress, Outcome, UnitProblem
from gradest_experiments.engine.folder import RunFolder
from gradest_experiments.engine.seeds import derive_key, derive_seed

__all__ = ["Cell", "VarianceMap"]

_SIGNS, _DRAWS = range(2)  # what a seed is for
_UNIT = "bernoulli"


class Cell(NamedTuple):
    """A place of the map: P(b = 1), the number of units D, and the share of the loss that is curved."""

    p: float
    units: int
    curvature: float

    def __str__(self) -> str:
        return f"p={self.p:g} D={self.units} c={self.curvature:g}"


class VarianceMap(UnitProblem):
    """The error of an estimator in each cell of the map."""

    title: ClassVar = "The map of variance"
    text: ClassVar = """Gradients of E[(1 - c) wᵀb + c (wᵀb - m)² + 1] in the logits of D Bernoulli units, in cells of the
map: p, where P(b = 1) is p or 1 - p by the unit; D; and c, the curvature. w has the size 1/√D and random signs, which with
those of the logits follow from the seed; m is half the sum of w, plus .5. The exact gradient is known in closed form. The
value is the mean over cells of the relative error, between 0 and 1, of the mean gradient of as many draws as 100 evaluations
pay for, at least one: bias in direction and variance together. The JSON has the error in each cell. Estimators that learn
have taken 100 steps there."""
    metric: ClassVar = "relative error of the mean gradient of 100 evaluations, mean over the map"
    unit: ClassVar = "shares of the gradient's size"
    quick: ClassVar = {"units": (2, 50), "evaluations": 10_000}
    seconds: ClassVar = 6
    most_evaluations: ClassVar[int] = 1100

    p: tuple[float, ...] = (0.5, 0.1, 0.01)
    units: tuple[int, ...] = (2, 10, 50, 200)
    curvature: tuple[float, ...] = (0.0, 0.5, 1.0)
    budget: int = Field(100, ge=1, description="the evaluations for which the error holds")
    evaluations: int = Field(50_000, ge=100, description="the evaluations that are measured in a cell")

    @property
    def name(self) -> str:
        """The name of the problem."""
        return "variance-map"

    def neurons(self) -> list[Neuron]:
        """Return Bernoulli units."""
        return [registry.neuron(_UNIT)]

    def probe(self, neuron: Neuron) -> Tensor:
        """Return pre-activations of the largest event."""
        return torch.zeros(max(self.units), dtype=torch.float64)

    def cells(self) -> Iterator[Cell]:
        """Return the cells."""
        return (Cell(p, units, curvature) for p in self.p for units in self.units for curvature in self.curvature)

    def run(self, folder: RunFolder, estimator: Estimator, seed: int, on_progress: OnProgress) -> Outcome:
        """Measure the estimator in each cell."""
        errors, seconds, evaluations = dict[str, float](), 0.0, 0
        cells = list(self.cells())
        for done, cell in enumerate(cells):
            on_progress(done / len(cells))
            error, spent, asked = self._measure(cell, estimator, seed)
            errors[str(cell)], seconds, evaluations = error, seconds + spent, evaluations + asked
        return Outcome(fmean(errors.values()), evaluations, seconds, details={"cells": errors})

    def case(self, cell: Cell, seed: int) -> tuple[Callable[[Tensor], Tensor], Tensor, Tensor]:
        """Return the loss of a cell, pre-activations `[units]`, and the exact gradient there."""
        u = derive_key(seed, _SIGNS, cell.units).uniform((), (2, cell.units), dtype=torch.float64)[0]
        signs = torch.where(u < 0.5, -1.0, 1.0).double()
        w, a = signs[0] / math.sqrt(cell.units), signs[1] * math.log(cell.p / (1 - cell.p))
        middle, c = w.sum() / 2 + 0.5, cell.curvature

        def loss(h: Tensor) -> Tensor:
            total = h @ w.to(h)
            return (1 - c) * total + c * (total - middle.to(h)) ** 2 + 1

        logits = a.clone().requires_grad_()
        p = logits.sigmoid()
        mean = (w * p).sum()
        value = (1 - c) * mean + c * ((mean - middle) ** 2 + (w * w * p * (1 - p)).sum())
        (exact,) = torch.autograd.grad(value, logits)
        return loss, a, exact

    def _measure(self, cell: Cell, estimator: Estimator, seed: int) -> tuple[float, float, int]:
        """Return the error, the seconds, and the evaluations of the loss."""
        neuron = self.neuron_for(estimator)
        loss, a, exact = self.case(cell, seed)
        asked = estimator.evaluations(neuron, event_shape(neuron, a))
        draws = max(100, self.evaluations // asked)
        found = estimate(loss, a, neuron, estimator, draws, derive_seed(seed, _DRAWS), warm_up=100)
        noise = math.sqrt(float(found.variance.sum()))
        size = float(found.gradient.norm())
        snr = size / noise if noise else math.inf
        error = relative_error(cosine_similarity(found.gradient, exact), snr, max(1, self.budget // asked))
        return error, found.seconds, draws * asked
