"""The error of gradients in the logits of a subset."""

from __future__ import annotations

from collections.abc import Callable
from typing import ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor

from gradest.analysis.comparison import compare
from gradest.contract.estimator import Estimator
from gradest.contract.neuron import Neuron
from gradest.discovery.registry import registry
from gradest.errors import GradestError
from gradest_experiments.benchmark.problem import OnProgress, Outcome, UnitProblem
from gradest_experiments.engine.folder import RunFolder
from gradest_experiments.engine.seeds import derive_key, derive_seed

__all__ = ["Subset"]

_LOGITS, _LOSS, _DRAWS = range(3)  # what a seed is for
_UNIT = "k_subset"


class Subset(UnitProblem):
    """Gradients in the logits by which k of n items are chosen, against the sum over all subsets."""

    title: ClassVar = "A subset of k of n items"
    text: ClassVar = """The synthetic problem of Ahmed et al. (2023, SIMPLE, arXiv 2210.01941) and of SFESS (ICLR 2025): n =
10 and k = 5, with normal logits that follow from the seed. The loss `distance` is |h - b|² to a normal b, which is linear on
subsets; the loss `pairs` is (wᵀh)² with normal w, in which items meet. The exact gradient is the sum over all subsets. The
value is the relative error, between 0 and 1, of the mean gradient of as many draws as the budget of evaluations pays for, at
least one, bias in direction and variance together; a wrong length does not count. Estimators that learn have taken 100 steps
at the same logits."""
    metric: ClassVar = "relative error of the mean gradient of 100 evaluations"
    unit: ClassVar = "shares of the gradient's size"
    quick: ClassVar = {"evaluations": 10_000}

    loss: Literal["distance", "pairs"] = "distance"
    items: int = Field(10, ge=2)
    chosen: int = Field(5, ge=1)
    budget: int = Field(100, ge=1, description="the evaluations for which the error holds")
    evaluations: int = Field(100_000, ge=100, description="the evaluations that are measured")

    @property
    def name(self) -> str:
        """The name of the problem, with the loss."""
        return f"subset-{self.loss}"

    def neurons(self) -> list[Neuron]:
        """Return the subset neuron."""
        return [registry.neuron(_UNIT, k=self.chosen)]

    def probe(self, neuron: Neuron) -> Tensor:
        """Return pre-activations of one event."""
        return torch.zeros(1, self.items, dtype=torch.float64)

    def run(self, folder: RunFolder, estimator: Estimator, seed: int, on_progress: OnProgress) -> Outcome:
        """Measure bias and variance, and return the error that they come to."""
        neuron, a = self.neuron_for(estimator), self._normal(seed, _LOGITS)
        draws = max(200, self.evaluations // self.per_draw(estimator))

        def report(label: str, done: int, of: int) -> None:
            on_progress(done / of)

        found = compare(
            self._loss(self._normal(seed, _LOSS)),
            a,
            neuron,
            [estimator],
            draws,
            derive_seed(seed, _DRAWS),
            progress=report,
        )
        if not found.rows:
            raise GradestError("; ".join(reason for one in (*found.failures, *found.skipped) for reason in one.reasons))
        (row,) = found.rows
        error = row.error(self.budget)
        assert error is not None
        details = {"cosine": row.cosine, "snr": row.snr, "bias_in_se": row.bias_in_se}
        return Outcome(error, draws * row.evaluations, row.seconds, details=details)

    def _normal(self, seed: int, purpose: int) -> Tensor:
        u = derive_key(seed, purpose).uniform((), (1, self.items), dtype=torch.float64)
        normal: Tensor = torch.special.ndtri(u)[0]
        return normal

    def _loss(self, weight: Tensor) -> Callable[[Tensor], Tensor]:
        if self.loss == "distance":
            return lambda h: (h - weight.to(h)).square().sum((-2, -1))
        return lambda h: (h * weight.to(h)).sum((-2, -1)).square()
