"""Training of binary units on polynomial losses."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import ClassVar

import torch
from pydantic import Field
from torch import Tensor, nn

from gradest.contract.estimator import Estimator
from gradest.contract.neuron import Neuron
from gradest.discovery.registry import registry
from gradest_experiments.benchmark.training import TrainedProblem, UnitRun
from gradest_experiments.engine.seeds import derive_key

__all__ = ["Polynomial"]

_NOISE = 0  # what a seed is for
_BINARY, _TWO_CLASSES = "bernoulli", "categorical"


class Polynomial(TrainedProblem):
    """Polynomial programming: min E[mean |b - t|^p] over binary units b, from θ = 0."""

    title: ClassVar = "Polynomial programming"
    text: ClassVar = """Binary units with two logits each are trained from 0 by Adam on L = mean |b - t|^p, each step on the mean
of a batch of draws, as in Liu et al. (2023, ReinMax, arXiv 2304.08612), at their settings in the size full. The minimum, t^p, is
at b = 0 in all units. The value is the exact L above its minimum at the end, in percent of that at the start: 100 has learned
nothing. An estimator for Bernoulli units gets the difference of a unit's logits, and one for categorical units gets both."""
    metric: ClassVar = "exact loss above its minimum after training"
    unit: ClassVar = "% of that at the start"
    tuned: ClassVar = "nothing; the learning rate of Adam is fixed for all, and estimators have their default options."
    # the same path of Adam, learning rate times steps, in an eighth of the steps
    quick: ClassVar = {"steps": 1000, "learning_rate": 8e-3}
    seconds: ClassVar = 3

    power: float = Field(2.0, gt=0)
    units: int = Field(128, ge=1)
    target: float = Field(0.45, gt=0, lt=0.5)

    @property
    def name(self) -> str:
        """The name of the problem, with the power."""
        return f"polynomial-{self.power:g}"

    def neurons(self) -> list[Neuron]:
        """Return Bernoulli units, and units of two classes for estimators of one-hot outputs."""
        return [registry.neuron(_BINARY), registry.neuron(_TWO_CLASSES)]

    def probe(self, neuron: Neuron) -> Tensor:
        """Return pre-activations of one event."""
        return torch.zeros(self.units, *[2] * (neuron.event_ndim - 1))

    def begin(self, estimator: Estimator, seed: int) -> UnitRun:
        """Return the training from θ = 0."""
        return _Training(self, estimator, seed)

    def loss(self, neuron: Neuron, points: Tensor) -> Tensor:
        """Return mean |b - t|^p, `[K, batch]`, at outputs of the neuron."""
        b = points if neuron.event_ndim == 1 else points[..., 1]
        return ((b - self.target).abs() ** self.power).mean(-1)

    def excess(self, theta: Tensor) -> float:
        """Return the exact loss above its minimum, in % of that at θ = 0, where P(b = 1) is a half: it is linear in P(b = 1)."""
        share = torch.softmax(theta.detach().double(), -1)[:, 1].mean()
        return 100 * 2 * float(share)


class _Training(UnitRun):
    """The units in training."""

    def __init__(self, problem: Polynomial, estimator: Estimator, seed: int) -> None:
        self.problem, self.theta = problem, nn.Parameter(torch.zeros(problem.units, 2))
        super().__init__(problem, estimator, nn.ParameterList([self.theta]), derive_key(seed, _NOISE))

    def objective(self) -> tuple[Callable[[Tensor], Tensor], Tensor]:
        """Return the loss, and the logits once for each draw of the batch."""
        a = self.theta if self.neuron.event_ndim > 1 else self.theta[:, 1] - self.theta[:, 0]
        return partial(self.problem.loss, self.neuron), a.expand(self.problem.batch, *a.shape)

    def value(self) -> float:
        """Return the exact loss above its minimum."""
        return self.problem.excess(self.theta)
