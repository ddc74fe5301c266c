"""Problems in which units are trained by Adam, with the loss's gradient in their pre-activations by an estimator."""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Callable
from typing import Any, ClassVar

from pydantic import Field
from torch import Tensor, nn
from torch.optim import Adam

from gradest.contract.estimator import Estimator, State
from gradest.errors import GradestError, InvalidInput
from gradest.estimation.expectation import expect
from gradest.random import Key
from gradest_experiments.benchmark.problem import OnProgress, Outcome, UnitProblem
from gradest_experiments.engine.folder import MetricsWriter, RunFolder
from gradest_experiments.engine.loop import NoExamples, TrainingRun, fit

__all__ = ["TrainedProblem", "UnitRun"]

_CHECKPOINT = 1000  # steps from one checkpoint to the next


class TrainedProblem(UnitProblem):
    """A problem whose value is that of units after training. A subclass implements `begin`."""

    batch: int = Field(64, ge=1)
    steps: int = Field(8000, ge=1)
    learning_rate: float = Field(1e-3, gt=0, allow_inf_nan=False)
    recorded: int = Field(20, ge=1, description="the number of points of a training curve")

    @abstractmethod
    def begin(self, estimator: Estimator, seed: int) -> UnitRun:
        """Return the training of a run before its first step."""

    def run(self, folder: RunFolder, estimator: Estimator, seed: int, on_progress: OnProgress) -> Outcome:
        """Train, or continue, and return the value at the end."""
        run = self.begin(estimator, seed)
        fit(run, folder, on_step=lambda step: on_progress(step / self.steps))
        curve = tuple((row["step"], row["value"]) for row in folder.rows("curve"))
        return Outcome(run.value(), self.per_draw(estimator) * self.batch * self.steps, run.seconds, curve)


class UnitRun(TrainingRun):
    """Units in training. A subclass implements `objective` and `value`.

    networks: what is trained. noise: the key from which each step has its noise. memory: the estimator's state.
    """

    KEPT: ClassVar[tuple[str, ...]] = ("step", "memory", "seconds")

    def __init__(self, problem: TrainedProblem, estimator: Estimator, networks: nn.Module, noise: Key) -> None:
        self.estimator, self.neuron, self.noise = estimator, problem.neuron_for(estimator), noise
        self.optimiser = Adam(networks.parameters(), problem.learning_rate)
        self.memory: State | None = None
        self._every = max(1, problem.steps // problem.recorded)
        parts = {"networks": networks, "optimiser": self.optimiser}
        super().__init__(NoExamples(), problem.steps, min(_CHECKPOINT, problem.steps), parts)

    @abstractmethod
    def objective(self) -> tuple[Callable[[Tensor], Tensor], Tensor]:
        """Return the loss of the next step, `[K, batch, *event]` to `[K, batch]`, and pre-activations `[batch, *event]`."""

    @abstractmethod
    def value(self) -> float:
        """Return the value of the problem at the present parameters."""

    def learn(self, index: Tensor) -> None:
        """Take one step of Adam."""
        loss, a = self.objective()
        try:
            key = self.noise.fold_in(self.step)
            mean, self.memory = expect(loss, a, self.neuron, self.estimator, key, self.memory)
        except InvalidInput as error:  # numbers that are not finite: the first steps had none
            raise GradestError(f"training diverged in step {self.step + 1}: {error}") from error
        self.optimiser.zero_grad()
        mean.mean().backward()  # type: ignore[no-untyped-call]
        self.optimiser.step()

    def record(self, metrics: MetricsWriter) -> None:
        """Write the value now and then."""
        if self.step % self._every and self.step != self.steps:
            return
        value = self.value()
        if not math.isfinite(value):
            raise GradestError(f"training diverged before step {self.step}")
        metrics.write("curve", self.step, value=value)

    def state(self) -> dict[str, Any]:
        """Return everything that a checkpoint holds."""
        return {**super().state(), "memory": None if self.memory is None else dict(self.memory)}
