"""The variance of every estimator on the quadratic of many units."""

from __future__ import annotations

import math
from functools import partial
from typing import Any, ClassVar

import torch
from pydantic import Field
from torch import Tensor

from gradest.analysis.comparison import comparable_estimators, within_point_limit
from gradest.contract.estimator import Estimator
from gradest.contract.neuron import Neuron, event_shape
from gradest.discovery.registry import registry
from gradest.estimation.exact import closed_form
from gradest_experiments.engine.plot import colour_encoding, inline_data
from gradest_experiments.engine.tables import markdown_table
from gradest_experiments.toys.part import OnProgress, Part, Results, Task, measure

__all__ = ["QuadraticPart"]

_PUBLISHED = {"rloo": 1.25e-9, "disarm": 1.25e-9, "reinforce(samples=2)": 7.8e-3}
"""The published variance for D = 200, by label."""

_ROUNDING = 1e-20  # a variance below this part of the squared gradient is due to rounding, and counts as 0


class QuadraticPart(Part):
    """Variances on f = (1/D) Σ (b_i - t)² at θ = 0, the toy of Titsias and Shi (2021), beside those that are published."""

    name = "quadratic"
    title = "Quadratic of many units"
    text = """f(b) = (1/D) Σ (b_i - t)² of D Bernoulli units at θ = 0 (Titsias and Shi 2021, arXiv 2111.05300). The table has
every registered estimator that fits the neuron and is feasible at this size, with its default options. Variance is that of one
draw, per coordinate; K is the number of evaluations of the loss in a draw, and efficiency is 1 / (variance · K). Bias is the root
mean square over coordinates of the distance to the closed form, in standard errors: it is near 1 if no bias can be seen. On
binary units this loss is linear, so estimators that sum out a unit are exact here and have no variance. Estimators that learn
have taken some steps first."""
    quick: ClassVar = {"draws": 500, "warm_up": 20}

    units: int = Field(200, ge=1)
    target: float = 0.499
    draws: int = Field(20_000, ge=10)
    warm_up: int = Field(500, ge=0)

    def tasks(self) -> dict[str, Task]:
        """Return one task per estimator."""
        neuron = registry.neuron("bernoulli")
        usual = [*comparable_estimators(neuron), registry.estimator("reinforce", samples=2)]
        return {
            estimator.label(): partial(self._row, neuron, estimator)
            for estimator in self.choose(neuron, self._at(), usual)
            if within_point_limit(estimator, neuron, self._at())
        }

    def table(self, results: Results) -> str:
        """Return a table with a row per estimator, the most efficient first."""
        head = ["estimator", "needs", "claimed bias", "K", "variance", "± SE", "published"]
        head += ["variance · K", "efficiency", "bias / SE"]
        rows = [
            [
                row["estimator"],
                ", ".join(row["needs"]),
                row["claim"],
                row["evaluations"],
                row["variance"],
                row["variance_error"],
                row["published"],
                row["variance_per_evaluation"],
                "∞" if row["efficiency"] is None else f"{row['efficiency']:.3g}",
                row["bias_in_se"],
            ]
            for row in _by_efficiency(results)
        ]
        exact = closed_form(*self._problem(), registry.neuron("bernoulli"))
        assert exact is not None
        return f"Exact gradient: {float(exact[1][0]):.3g} in each coordinate.\n\n{markdown_table(head, rows)}"

    def chart(self, results: Results) -> Any:
        """Draw variance · K on a logarithmic axis, a line per estimator."""
        import altair  # noqa: PLC0415  # an extra

        rows = [row for row in _by_efficiency(results) if row["efficiency"] is not None]
        order = [row["estimator"] for row in rows]
        none = [row["estimator"] for row in _by_efficiency(results) if row["efficiency"] is None]
        published = [{**row, "x": row["published"] * row["evaluations"]} for row in rows if row["published"]]
        x_axis = altair.X("variance_per_evaluation:Q", title="variance of one draw × K evaluations")
        x = x_axis.scale(type="log").axis(format="~e", tickCount=8)
        y = altair.Y("estimator:N", sort=order, title=None).axis(grid=True, labelLimit=0)
        claims = ["none", *sorted({row["claim"] for row in rows} - {"none"})]
        shade = colour_encoding(claims, field="claim").legend(title="claimed bias", symbolType="circle")
        points = (
            altair.Chart(inline_data(rows)).mark_point(filled=True, size=110, opacity=1).encode(x=x, y=y, color=shade)
        )
        ring = altair.Chart(inline_data(published)).mark_point(
            shape="diamond", size=260, color="black", strokeWidth=1.5
        )
        gradient = [{"square": rows[0]["square"], "label": "squared exact gradient"}] if rows else []
        rule = altair.Chart(inline_data(gradient)).mark_rule(strokeDash=[5, 4], color="#888").encode(x="square:Q")
        label = altair.Chart(inline_data(gradient)).mark_text(align="left", dx=5, color="#666")
        label = label.encode(x="square:Q", y=altair.value(20 * len(rows) - 10), text="label:N")
        title = altair.TitleParams(
            f"Variance on (1/D) Σ (b - {self.target})², D = {self.units}, θ = 0",
            subtitle=[
                "diamonds: published values" + (f"; without variance here: {', '.join(none)}" if none else ""),
            ],
        )
        return (rule + label + ring.encode(x="x:Q", y=y) + points).properties(
            width=560, height=altair.Step(20), title=title
        )

    def _at(self) -> Tensor:
        return torch.zeros(self.units, dtype=torch.float64)

    def _problem(self) -> tuple[Any, Tensor]:
        return registry.objective("quadratic", target=self.target), self._at()

    def _row(self, neuron: Neuron, estimator: Estimator, on_progress: OnProgress) -> dict[str, Any]:
        f, a = self._problem()
        exact = closed_form(f, a, neuron)
        assert exact is not None
        gradient = exact[1]
        draws = max(100, self.draws // max(1, estimator.evaluations(neuron, event_shape(neuron, a)) // 10))
        measured = measure(f, a, neuron, estimator, draws, self.seed, warm_up=self.warm_up, on_progress=on_progress)
        found, variance = measured.estimate, float(measured.variance)
        square = float(gradient.square().mean())
        if variance <= _ROUNDING * square:
            variance = 0.0
        cost = variance * found.evaluations
        bias, error = float((found.gradient - gradient).square().mean().sqrt()), (variance / found.draws) ** 0.5
        rounding = 8 * torch.finfo(gradient.dtype).eps * float(found.loss)
        published = _PUBLISHED.get(estimator.label()) if self.units == 200 and self.target == 0.499 else None
        return {
            "estimator": estimator.label(),
            "spec": estimator.spec(),
            "needs": sorted(estimator.needs, reverse=True),
            "claim": str(estimator.bias(neuron)),
            "evaluations": found.evaluations,
            "draws": found.draws,
            "variance": variance,
            "variance_error": float(measured.error) if variance else 0.0,
            "published": published,
            "variance_per_evaluation": cost,
            "efficiency": 1 / cost if cost else None,
            "bias": bias,
            "bias_in_se": bias / max(error, rounding),
            "square": square,
        }


def _by_efficiency(results: Results) -> list[dict[str, Any]]:
    return sorted(results.values(), key=lambda row: -(math.inf if row["efficiency"] is None else row["efficiency"]))
