"""Learning to select the features that matter."""

from __future__ import annotations

from typing import Any, ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from gradest.contract.estimator import Estimator, State
from gradest.contract.neuron import Neuron
from gradest.discovery.registry import registry
from gradest.errors import GradestError, InvalidInput
from gradest.estimation.expectation import expect
from gradest.random import Key
from gradest_experiments.benchmark.problem import OnProgress, Outcome, UnitProblem
from gradest_experiments.engine.folder import MetricsWriter, RunFolder
from gradest_experiments.engine.loop import NoExamples, TrainingRun, fit
from gradest_experiments.engine.seeds import derive_key, derive_seed

__all__ = ["Selection"]

_WEIGHTS, _DATA, _NOISE, _TEST = range(4)  # what a seed is for
_UNIT = "k_subset"


class Selection(UnitProblem):
    """A network selects k of ten features for each example, and another predicts the class from these alone."""

    title: ClassVar = "Learning to select"
    text: ClassVar = """The synthetic data of Chen et al. (2018, L2X, arXiv 1802.07814): ten normal features, of which some
determine the probability of the class, by the logit x₁x₂ (`xor`, k = 2) or Σ x² - 4 of the first four (`orange-skin`, k = 4). A
network of one hidden layer gives logits by which k features are selected for each example; a second one sees these features alone
and is trained, together with the first, by Adam on the cross-entropy of fresh examples. The value is the share of the features
selected on test examples, at the largest logits, that do determine the class: k / 10 has learned nothing."""
    metric: ClassVar = "selected features that determine the class"
    unit: ClassVar = "%"
    better: ClassVar = "higher"
    tuned: ClassVar = "nothing; the learning rate of Adam is 1e-3 for all, and estimators have their default options."
    quick: ClassVar = {"steps": 1000}
    seconds: ClassVar = 6
    most_evaluations: ClassVar[int] = 50

    kind: Literal["xor", "orange-skin"] = "orange-skin"
    features: int = Field(10, ge=4)
    hidden: int = Field(64, ge=1)
    batch: int = Field(128, ge=1)
    steps: int = Field(8000, ge=1)
    learning_rate: float = Field(1e-3, gt=0, allow_inf_nan=False)
    test: int = Field(2000, ge=1)
    recorded: int = Field(20, ge=1)

    @property
    def name(self) -> str:
        """The name of the problem, with the kind of data."""
        return f"select-{self.kind}"

    @property
    def relevant(self) -> int:
        """The number k of features that determine the class, which are the first ones."""
        return 2 if self.kind == "xor" else 4

    def neurons(self) -> list[Neuron]:
        """Return the subset neuron."""
        return [registry.neuron(_UNIT, k=self.relevant)]

    def probe(self, neuron: Neuron) -> Tensor:
        """Return pre-activations of one event."""
        return torch.zeros(1, self.features)

    def examples(self, key: Key, count: int) -> tuple[Tensor, Tensor]:
        """Return features `[count, features]` and classes `[count]`."""
        x = torch.special.ndtri(key.uniform((count,), (self.features,), dtype=torch.float64)[0])
        logit = x[:, 0] * x[:, 1] if self.kind == "xor" else x[:, :4].square().sum(-1) - 4
        u = key.with_stream(1).uniform((count,), (), dtype=torch.float64)[0]
        return x.float(), (u < logit.sigmoid()).long()

    def run(self, folder: RunFolder, estimator: Estimator, seed: int, on_progress: OnProgress) -> Outcome:
        """Train both networks, and return how often the first one is right."""
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(derive_seed(seed, _WEIGHTS))
            run = _Training(self, estimator, seed)
        fit(run, folder, on_step=lambda step: on_progress(step / self.steps))
        curve = tuple((row["step"], row["value"]) for row in folder.rows("curve"))
        return Outcome(run.score(), self.per_draw(estimator) * self.batch * self.steps, run.seconds, curve)


class _Training(TrainingRun):
    """The two networks in training. memory: the estimator's state."""

    KEPT: ClassVar[tuple[str, ...]] = ("step", "memory", "seconds")

    def __init__(self, problem: Selection, estimator: Estimator, seed: int) -> None:
        self.problem, self.estimator, self.neuron = problem, estimator, problem.neuron_for(estimator)
        wide = problem.hidden
        self.selector = nn.Sequential(nn.Linear(problem.features, wide), nn.ReLU(), nn.Linear(wide, problem.features))
        self.predictor = nn.Sequential(nn.Linear(problem.features, wide), nn.ReLU(), nn.Linear(wide, 2))
        networks = nn.ModuleList([self.selector, self.predictor])
        self.optimiser = torch.optim.Adam(networks.parameters(), problem.learning_rate)
        self.memory: State | None = None
        self._data, self._noise = derive_key(seed, _DATA), derive_key(seed, _NOISE)
        self._test = problem.examples(derive_key(seed, _TEST), problem.test)[0]
        parts = {"networks": networks, "optimiser": self.optimiser}
        super().__init__(NoExamples(), problem.steps, min(1000, problem.steps), parts)

    def learn(self, index: Tensor) -> None:
        """Take one step of Adam on fresh examples."""
        x, y = self.problem.examples(self._data.fold_in(self.step), self.problem.batch)

        def loss(h: Tensor) -> Tensor:
            logits = self.predictor(h[..., 0, :].to(x) * x)
            return cross_entropy(logits.flatten(0, 1), y.repeat(len(h)), reduction="none").view(h.shape[:2])

        a, key = self.selector(x)[:, None], self._noise.fold_in(self.step)
        try:
            value, self.memory = expect(loss, a, self.neuron, self.estimator, key, self.memory)
        except InvalidInput as error:  # numbers that are not finite: the first steps had none
            raise GradestError(f"training diverged in step {self.step + 1}: {error}") from error
        self.optimiser.zero_grad()
        value.mean().backward()  # type: ignore[no-untyped-call]
        self.optimiser.step()

    @torch.no_grad()
    def score(self) -> float:
        """Return the share of the selected features that determine the class, in %."""
        k = self.problem.relevant
        return 100 * float((self.selector(self._test).topk(k, -1).indices < k).double().mean())

    def record(self, metrics: MetricsWriter) -> None:
        """Write the score now and then."""
        every = max(1, self.steps // self.problem.recorded)
        if self.step % every == 0 or self.step == self.steps:
            metrics.write("curve", self.step, value=self.score())

    def state(self) -> dict[str, Any]:
        """Return everything that a checkpoint holds."""
        return {**super().state(), "memory": None if self.memory is None else dict(self.memory)}
