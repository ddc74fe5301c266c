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
from gradest.analysis.variance_map import MAP_PROBLEM
from gradest.contract.estimator import Estimator
from gradest.contract.neuron import Neuron, event_shape
from gradest.discovery.registry import registry
from gradest.estimation.estimate import estimate
from gradest_experiments.benchmark.problem import OnProgress, Outcome, UnitProblem
from gradest_experiments.engine.folder import RunFolder
from gradest_experiments.engine.seeds import derive_key, derive_seed

__all__ = ["Cell", "VarianceMap"]

_CASE, _DRAWS = range(2)  # what a seed is for
_UNIT = "bernoulli"


class Cell(NamedTuple):
    """A place of the map: P(b = 1) or P(b = 0) of a typical unit, the number of units D, and the curvature of the loss."""

    p: float
    units: int
    curvature: float


class VarianceMap(UnitProblem):
    """The error of an estimator in each cell of the map."""

    title: ClassVar = "The map of variance"
    text: ClassVar = """Gradients in the logits of D Bernoulli units of L = α Σ wᵢ(bᵢ - pᵢ) + β [(Σ uᵢ(bᵢ - pᵢ))² -
Σ uᵢ²(1 - 2pᵢ)(bᵢ - pᵢ)] + 1, in cells of the map: p, near which P(b = 1) or P(b = 0) of every unit is; D; and the curvature c,
which is the share of the variance of L that is not that of a sum of functions of single units. α and β give L the variance 1
and this share. w, u, the signs of the logits, and their differences from those of p, with a standard deviation of .5, are random
and follow from the seed. The exact gradient is known in closed form. The value is the mean over cells of the relative error,
between 0 and 1, of the mean gradient of as many draws as 100 evaluations pay for, at least one: bias in direction and variance
together. The JSON has for each cell p, D, c, the cosine of the mean gradient with the exact one, and the standard deviation of
one draw in sizes of the mean gradient. Estimators that learn have taken 100 steps there."""
    metric: ClassVar = "relative error of the mean gradient of 100 evaluations, mean over the map"
    unit: ClassVar = "shares of the gradient's size"
    quick: ClassVar = {"evaluations": 10_000}
    seconds: ClassVar = 6
    most_evaluations: ClassVar[int] = 1100

    p: tuple[float, ...] = (0.5, 0.1, 0.01)
    units: tuple[int, ...] = (2, 10, 50, 200)
    curvature: tuple[float, ...] = (0.0, 0.1, 0.5, 0.9)
    budget: int = Field(100, ge=1, description="the evaluations for which the error holds")
    evaluations: int = Field(50_000, ge=100, description="the evaluations that are measured in a cell")

    @property
    def name(self) -> str:
        """The name of the problem."""
        return MAP_PROBLEM

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
        errors, rows, seconds, evaluations = list[float](), list[list[float]](), 0.0, 0
        cells = list(self.cells())
        for done, cell in enumerate(cells):
            on_progress(done / len(cells))
            cosine, noise, asked, spent, draws = self._measure(cell, estimator, seed)
            errors.append(relative_error(cosine, 1 / noise if noise else math.inf, max(1, self.budget // asked)))
            rows.append([*cell, cosine, noise])
            seconds, evaluations = seconds + spent, evaluations + draws * asked
        return Outcome(fmean(errors), evaluations, seconds, details={"cells": rows})

    def case(self, cell: Cell, seed: int) -> tuple[Callable[[Tensor], Tensor], Tensor, Tensor]:
        """Return the loss of a cell, pre-activations `[units]`, and the exact gradient there."""
        uniform = derive_key(seed, _CASE, cell.units).uniform((), (4, cell.units), dtype=torch.float64)[0]
        w, u, spread = torch.special.ndtri(uniform[:3])
        logit = math.log(cell.p / (1 - cell.p))
        a = torch.where(uniform[3] < 0.5, -1.0, 1.0) * logit + spread / 2
        p = a.sigmoid()
        variance = p * (1 - p)
        own = u.square() * (1 - 2 * p)  # what (Σ u(b - p))² has of single units
        pairs = 2 * ((u.square() * variance).sum() ** 2 - (u**4 * variance**2).sum())
        alpha = ((1 - cell.curvature) / (w.square() * variance).sum()).sqrt()
        beta = (cell.curvature / pairs).sqrt()

        def loss(h: Tensor) -> Tensor:
            away = h - p.to(h)
            square = (away @ u.to(h)) ** 2 - away @ own.to(h)
            value: Tensor = alpha.to(h) * (away @ w.to(h)) + beta.to(h) * square + 1
            return value

        return loss, a, alpha * w * variance

    def _measure(self, cell: Cell, estimator: Estimator, seed: int) -> tuple[float, float, int, float, int]:
        """Return the cosine, the noise of one draw, its evaluations of the loss, the seconds, and the number of draws."""
        neuron = self.neuron_for(estimator)
        loss, a, exact = self.case(cell, seed)
        asked = estimator.evaluations(neuron, event_shape(neuron, a))
        draws = max(100, self.evaluations // asked)
        found = estimate(loss, a, neuron, estimator, draws, derive_seed(seed, _DRAWS), warm_up=100)
        size, spread = float(found.gradient.norm()), math.sqrt(float(found.variance.sum()))
        noise = spread / size if size else math.inf
        # The mean of the draws has their noise, which makes its cosine less than that of the expectation.
        cosine = cosine_similarity(found.gradient, exact) * math.sqrt(1 + noise**2 / draws)
        return max(-1.0, min(1.0, cosine)), noise, asked, found.seconds, draws
