"""Learning to select the features that matter."""

from __future__ import annotations

from collections.abc import Callable
from typing import ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from gradest.contract.estimator import Estimator
from gradest.contract.neuron import Neuron
from gradest.discovery.registry import registry
from gradest.random import Key
from gradest_experiments.benchmark.training import TrainedProblem, UnitRun
from gradest_experiments.engine.seeds import derive_key, derive_seed

__all__ = ["Selection"]

_WEIGHTS, _DATA, _NOISE, _TEST = range(4)  # what a seed is for
_UNIT = "k_subset"


class Selection(TrainedProblem):
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
    test: int = Field(2000, ge=1)

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

    def begin(self, estimator: Estimator, seed: int) -> UnitRun:
        """Return the training from weights that follow from the seed."""
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(derive_seed(seed, _WEIGHTS))
            return _Training(self, estimator, seed)


class _Training(UnitRun):
    """The two networks in training."""

    def __init__(self, problem: Selection, estimator: Estimator, seed: int) -> None:
        self.problem = problem
        wide = problem.hidden
        self.selector = nn.Sequential(nn.Linear(problem.features, wide), nn.ReLU(), nn.Linear(wide, problem.features))
        self.predictor = nn.Sequential(nn.Linear(problem.features, wide), nn.ReLU(), nn.Linear(wide, 2))
        self._data = derive_key(seed, _DATA)
        self._test = problem.examples(derive_key(seed, _TEST), problem.test)[0]
        networks = nn.ModuleList([self.selector, self.predictor])
        super().__init__(problem, estimator, networks, derive_key(seed, _NOISE))

    def objective(self) -> tuple[Callable[[Tensor], Tensor], Tensor]:
        """Return the cross-entropy of fresh examples by their selected features, and the logits of the selection."""
        x, y = self.problem.examples(self._data.fold_in(self.step), self.problem.batch)

        def loss(h: Tensor) -> Tensor:
            logits = self.predictor(h[..., 0, :].to(x) * x)
            return cross_entropy(logits.flatten(0, 1), y.repeat(len(h)), reduction="none").view(h.shape[:2])

        return loss, self.selector(x)[:, None]

    @torch.no_grad()
    def value(self) -> float:
        """Return the share of the selected features that determine the class, in %."""
        k = self.problem.relevant
        return 100 * float((self.selector(self._test).topk(k, -1).indices < k).double().mean())
