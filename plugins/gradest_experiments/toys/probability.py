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
from gradest_experiments.part import Part, Results, Task, Tick, markdown, measure
from gradest_experiments.plot import lines, values

__all__ = ["Probability"]

_SHOWN = ("disarm", "bitflip", "ugc")
_REFERENCES = ("rloo", "local_expectation")


class Probability(Part):
    """The variance of pairs falls with p near 0 and that of flips with p²: Kunes et al. 2022 take the one or the other."""

    name = "probability"
    title = "Units that are sure of themselves"
    text = """f(b) = (Σb - 30)²/50 of 50 Bernoulli units, all with the same p = P(b = 1). Variance of one draw, per coordinate,
times the K evaluations that it takes. Kunes et al. 2022 (arXiv 2208.06124) propose bitflip, whose variance falls with p² near 0
where that of pairs (rloo, disarm) falls with p, and ugc, which takes the better of bitflip and disarm for each unit.
local_expectation sums out each unit in turn, at D + 1 evaluations."""
    quick: ClassVar = {"draws": 500}

    units: int = Field(50, ge=1)
    target: float = 30.0
    places: int = Field(13, ge=2)
    least: float = Field(1e-3, gt=0, lt=0.5)
    draws: int = Field(20_000, ge=10)

    def tasks(self) -> dict[str, Task]:
        """One an estimator."""
        neuron = registry.neuron("bernoulli")
        return {name: partial(self._curve, neuron, registry.estimator(name)) for name in (*_SHOWN, *_REFERENCES)}

    def table(self, results: Results) -> str:
        """Variance · K at some p."""
        places = range(0, self.places, max(1, (self.places - 1) // 6))
        rows = list(results.values())
        probabilities = [rows[0]["points"][place]["p"] for place in places] if rows else []
        head = ["estimator", "K", *(f"p = {p:.3g}" for p in probabilities)]
        cells = [
            [row["estimator"], row["evaluations"], *(row["points"][p]["variance_per_evaluation"] for p in places)]
            for row in rows
        ]
        return f"Variance · K:\n\n{markdown(head, cells)}"

    def chart(self, results: Results) -> Any:
        """Variance · K against logit p, on a logarithmic axis."""
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
        chart.data = values(points)
        encoded = chart.encode(x=x, **lines(_SHOWN, _REFERENCES))
        return encoded.properties(
            width=560, height=360, title=f"(Σb - {self.target:g})² / {self.units}, {self.units} units"
        )

    def _loss(self, points: Tensor) -> Tensor:
        return (points.contiguous().sum(-1) - self.target) ** 2 / self.units

    def _curve(self, neuron: Neuron, estimator: Estimator, tick: Tick) -> dict[str, Any]:
        """All p at once: a row of the batch is a p."""
        edge = -_logit(self.least)
        logits = torch.linspace(-edge, edge, self.places, dtype=torch.float64)
        a = logits[:, None].expand(-1, self.units)
        measured = measure(self._loss, a, neuron, estimator, self.draws, self.seed, tick=tick)
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
