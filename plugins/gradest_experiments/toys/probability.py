"""Variance against P(b = 1)."""

from __future__ import annotations

from functools import partial
from typing import Any, ClassVar

import torch
from pydantic import Field
from torch import Tensor

from gradest.analysis.charts import definition
from gradest.contract.estimator import Estimator
from gradest.contract.neuron import Neuron, event_shape
from gradest.discovery.registry import registry
from gradest_experiments.engine.plot import inline_data, line_encodings
from gradest_experiments.engine.tables import markdown_table
from gradest_experiments.toys.part import OnProgress, Part, Results, Task, measure

__all__ = ["ProbabilityPart"]

_SHOWN = ("disarm", "bitflip", "ugc")
_REFERENCES = ("rloo", "local_expectation")


class ProbabilityPart(Part):
    """Variance against p = P(b = 1): near 0, that of pairs of draws falls with p, that of flipped bits with p²."""

    name = "probability"
    title = "Units with probabilities near 0 and 1"
    text = """f(b) = (Σb - 30)²/50 of 50 Bernoulli units that all have the same p = P(b = 1). What is shown is the variance of one
draw, per coordinate, times K, the number of evaluations in a draw. Near p = 0 the variance of estimators that draw pairs (rloo,
disarm) falls with p. Kunes et al. (2022, arXiv 2208.06124) propose bitflip, whose variance falls with p², and ugc, which uses
for each unit the better of bitflip and disarm. local_expectation sums out each unit in turn, which takes D + 1 evaluations."""
    quick: ClassVar = {"draws": 500}

    units: int = Field(50, ge=1)
    target: float = 30.0
    places: int = Field(13, ge=2)
    least: float = Field(1e-3, gt=0, lt=0.5)
    draws: int = Field(20_000, ge=10)

    def tasks(self) -> dict[str, Task]:
        """Return one task per estimator."""
        neuron = registry.neuron("bernoulli")
        usual = [registry.estimator(name) for name in (*_SHOWN, *_REFERENCES)]
        chosen = self.choose(neuron, torch.zeros(self.units, dtype=torch.float64), usual)
        return {estimator.label(): partial(self._curve, neuron, estimator) for estimator in chosen}

    def table(self, results: Results) -> str:
        """Return a table of variance · K at some p."""
        places = range(0, self.places, max(1, (self.places - 1) // 6))
        rows = list(results.values())
        probabilities = [rows[0]["points"][place]["p"] for place in places] if rows else []
        head = ["estimator", "K", *(f"p = {p:.3g}" for p in probabilities)]
        cells = [
            [row["estimator"], row["evaluations"], *(row["points"][p]["variance_per_evaluation"] for p in places)]
            for row in rows
        ]
        return f"Variance · K:\n\n{markdown_table(head, cells)}"

    def chart(self, results: Results) -> Any:
        """Draw variance · K on a logarithmic axis against logit p."""
        import altair  # noqa: PLC0415  # an extra

        points = [
            {"estimator": row["estimator"], "logit": point["logit"], "cost": point["variance_per_evaluation"]}
            for row in results.values()
            for point in row["points"]
        ]
        ticks = [0.001, 0.01, 0.1, 0.5, 0.9, 0.99, 0.999]
        named = {f"{_logit(p):.3f}": f"{p:g}" for p in ticks}
        labels = " : ".join(f"abs(datum.value - {at}) < 0.01 ? '{name}'" for at, name in named.items()) + " : ''"
        x = altair.X("logit:Q", title="p = P(b = 1), logit scale").scale(nice=False)
        x = x.axis(values=[_logit(p) for p in ticks], labelExpr=labels, labelFlush=False)
        chart = altair.Chart.from_dict(definition("variance"))
        chart.data = inline_data(points)
        coloured = [row["estimator"] for row in results.values() if row["estimator"] not in _REFERENCES]
        grey = [row["estimator"] for row in results.values() if row["estimator"] in _REFERENCES]
        encoded = chart.encode(x=x, **line_encodings(coloured, grey))
        return encoded.properties(
            width=560, height=360, title=f"(Σb - {self.target:g})² / {self.units}, {self.units} units"
        )

    def _loss(self, points: Tensor) -> Tensor:
        return (points.contiguous().sum(-1) - self.target) ** 2 / self.units

    def _curve(self, neuron: Neuron, estimator: Estimator, on_progress: OnProgress) -> dict[str, Any]:
        """Measure an estimator at all p at once, each of which is a row of the batch."""
        edge = -_logit(self.least)
        logits = torch.linspace(-edge, edge, self.places, dtype=torch.float64)
        a = logits[:, None].expand(-1, self.units)
        measured = measure(self._loss, a, neuron, estimator, self.draws, self.seed, on_progress=on_progress)
        count = estimator.evaluations(neuron, event_shape(neuron, a))
        columns = zip(logits.tolist(), measured.variance.tolist(), measured.error.tolist(), strict=True)
        return {
            "estimator": estimator.label(),
            "evaluations": count,
            "points": [
                {
                    "p": float(torch.tensor(logit, dtype=torch.float64).sigmoid()),
                    "logit": logit,
                    "variance": variance,
                    "variance_error": error,
                    "variance_per_evaluation": variance * count,
                }
                for logit, variance, error in columns
            ],
        }


def _logit(p: float) -> float:
    return float(torch.logit(torch.tensor(p, dtype=torch.float64)))
