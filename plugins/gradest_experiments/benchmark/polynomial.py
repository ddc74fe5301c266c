"""Training of binary units on polynomial losses."""

from __future__ import annotations

import math
from typing import Any, ClassVar

import torch
from pydantic import Field
from torch import Tensor, nn

from gradest.contract.estimator import Estimator, State
from gradest.contract.neuron import Neuron
from gradest.discovery.registry import registry
from gradest.errors import GradestError
from gradest.estimation.expectation import expect
from gradest_experiments.benchmark.problem import OnProgress, Outcome, UnitProblem
from gradest_experiments.engine.folder import MetricsWriter, RunFolder
from gradest_experiments.engine.loop import NoExamples, TrainingRun, fit
from gradest_experiments.engine.seeds import derive_key

__all__ = ["Polynomial"]

_NOISE = 0  # what a seed is for
_BINARY, _TWO_CLASSES = "bernoulli", "categorical"


class Polynomial(UnitProblem):
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
    batch: int = Field(64, ge=1)
    steps: int = Field(8000, ge=1)
    learning_rate: float = Field(1e-3, gt=0, allow_inf_nan=False)
    recorded: int = Field(20, ge=1, description="the number of points of a training curve")

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

    def run(self, folder: RunFolder, estimator: Estimator, seed: int, on_progress: OnProgress) -> Outcome:
        """Train, and return the excess loss at the end."""
        run = _Training(self, estimator, seed)
        fit(run, folder, on_step=lambda step: on_progress(step / self.steps))
        curve = tuple((row["step"], row["value"]) for row in folder.rows("curve"))
        evaluations = self.per_draw(estimator) * self.batch * self.steps
        return Outcome(self.excess(run.theta), evaluations, run.seconds, curve)

    def loss(self, neuron: Neuron, points: Tensor) -> Tensor:
        """Return mean |b - t|^p, `[K, batch]`, at outputs of the neuron."""
        b = points if neuron.event_ndim == 1 else points[..., 1]
        return ((b - self.target).abs() ** self.power).mean(-1)

    def excess(self, theta: Tensor) -> float:
        """Return the exact loss above its minimum, in % of that at θ = 0, where P(b = 1) is a half: it is linear in P(b = 1)."""
        share = torch.softmax(theta.detach().double(), -1)[:, 1].mean()
        return 100 * 2 * float(share)


class _Training(TrainingRun):
    """The units in training. memory: the estimator's state."""

    KEPT: ClassVar[tuple[str, ...]] = ("step", "memory", "seconds")

    def __init__(self, problem: Polynomial, estimator: Estimator, seed: int) -> None:
        self.problem, self.estimator, self.neuron = problem, estimator, problem.neuron_for(estimator)
        self.theta = nn.Parameter(torch.zeros(problem.units, 2))
        self.optimiser = torch.optim.Adam([self.theta], problem.learning_rate)
        self.memory: State | None = None
        self._key = derive_key(seed, _NOISE)
        parts = {"theta": nn.ParameterList([self.theta]), "optimiser": self.optimiser}
        super().__init__(NoExamples(), problem.steps, min(1000, problem.steps), parts)

    def learn(self, index: Tensor) -> None:
        """Take one step of Adam."""
        a = self.theta if self.neuron.event_ndim > 1 else self.theta[:, 1] - self.theta[:, 0]
        rows = a.expand(self.problem.batch, *a.shape)
        key = self._key.fold_in(self.step)
        value, self.memory = expect(
            lambda points: self.problem.loss(self.neuron, points), rows, self.neuron, self.estimator, key, self.memory
        )
        self.optimiser.zero_grad()
        value.mean().backward()  # type: ignore[no-untyped-call]
        self.optimiser.step()

    def record(self, metrics: MetricsWriter) -> None:
        """Write the exact loss now and then."""
        every = max(1, self.steps // self.problem.recorded)
        if self.step % every and self.step != self.steps:
            return
        value = self.problem.excess(self.theta)
        if not math.isfinite(value):
            raise GradestError(f"training diverged before step {self.step}")
        metrics.write("curve", self.step, value=value)

    def state(self) -> dict[str, Any]:
        """Return everything that a checkpoint holds."""
        return {**super().state(), "memory": None if self.memory is None else dict(self.memory)}
