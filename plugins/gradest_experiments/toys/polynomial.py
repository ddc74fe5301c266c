"""Straight-through estimators on polynomial losses."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any, ClassVar

import torch
from pydantic import Field
from torch import Tensor

from gradest.contract.estimator import Estimator
from gradest.contract.objective import Loss
from gradest.discovery.registry import registry
from gradest.estimation.expectation import expect
from gradest.random import Key
from gradest_experiments.engine.plot import inline_data, line_encodings
from gradest_experiments.engine.seeds import derive_seed
from gradest_experiments.engine.tables import markdown_table
from gradest_experiments.toys.part import OnProgress, Part, Results, Task, measure

__all__ = ["PolynomialPart"]

_ESTIMATORS: Mapping[str, dict[str, Any]] = {
    "straight-through": {"name": "straight_through", "derivative": "sigmoid"},
    "straight-through, identity": {"name": "straight_through"},
    "straight-through Gumbel": {"name": "straight_through_gumbel"},
    "Gumbel-Rao": {"name": "gumbel_rao"},
    "ReinMax": {"name": "reinmax"},
    "rloo (unbiased)": {"name": "rloo"},
}
_EXACT = "exact gradient"
_MEASUREMENT, _TRAINING = 0, 1


class PolynomialPart(Part):
    """Straight-through estimators on L(θ) = E[(1/D) Σ |x_i - c|^n] over x_i in {0, 1}, drawn from a softmax of two classes."""

    name = "polynomial"
    title = "Polynomial losses"
    text = """L(θ) = E[(1/D) Σ |x_i - c|^n], where x_i in {0, 1} is the second entry of a categorical unit of two classes: the
polynomial programming of Liu et al. (2023, ReinMax, arXiv 2304.08612). The minimum, c^n, is at P(x = 1) = 0. The upper charts
show training by Adam from θ = 0, each step on the mean of a batch of draws, by the exact loss. The lower charts show the mean of
an estimator divided by the exact gradient, for units of a given P(x = 1): 1 is unbiased, and below 0 the estimate points away
from the minimum. Straight-through stalls where the ratio is 0. ReinMax is exact for n = 2. Gumbel-Rao has the mean of
straight-through Gumbel, so their lines coincide. Every estimator has its default options, temperature 1 included, which papers
tune."""
    quick: ClassVar = {"steps": 20, "batch": 4, "draws": 50}

    units: int = Field(128, ge=1)
    target: float = Field(0.45, gt=0, lt=0.5)
    powers: tuple[float, ...] = (1.5, 2.0, 3.0)
    steps: int = Field(500, ge=1)
    batch: int = Field(32, ge=1)
    learning_rate: float = Field(0.01, gt=0)
    draws: int = Field(2000, ge=10)
    recorded: int = Field(80, ge=1, description="the number of points of a training curve")

    def tasks(self) -> dict[str, Task]:
        """Return one task per power and estimator."""
        return {
            f"n = {power:g}: {label}": partial(self._row, power, label)
            for power in self.powers
            for label in (*self._specs(), _EXACT)
            if self._specs()
        }

    def table(self, results: Results) -> str:
        """Return a table per power: the distance of the loss to its minimum, and the bias."""
        parts = []
        for power in self.powers:
            rows = [row for row in results.values() if row["power"] == power]
            probabilities = [point["p"] for point in rows[0]["bias"][::2]] if rows else []
            head = ["estimator", f"excess loss, step {self.steps}", "variance at θ = 0"]
            head += [f"mean / exact, p = {p:.2g}" for p in probabilities]
            cells = [
                [
                    row["estimator"],
                    row["curve"][-1]["excess"],
                    row["variance"],
                    *([point["ratio"] for point in row["bias"][::2]] or [None] * len(probabilities)),
                ]
                for row in rows
            ]
            parts.append(f"**n = {power:g}**: L - {self.target:g}^{power:g}\n\n{markdown_table(head, cells)}")
        return "\n\n".join(parts)

    def chart(self, results: Results) -> Any:
        """Draw a column per power: training curves above, bias below."""
        import altair  # noqa: PLC0415  # an extra

        styles = line_encodings(list(self._specs()), [_EXACT])
        rows = list(results.values())

        def line(points: list[dict[str, Any]], x: Any, y: Any, title: str) -> Any:
            chart = altair.Chart(inline_data(points)).mark_line(strokeWidth=2, clip=True)
            return chart.encode(x=x, y=y, **styles).properties(width=250, height=220, title=title)

        above, below = [], []
        for power in self.powers:
            mine = [row for row in rows if row["power"] == power]
            curve = [{"estimator": row["estimator"], **point} for row in mine for point in row["curve"]]
            x = altair.X("step:Q", title="steps").axis(tickCount=4).scale(nice=False)
            y = altair.Y("excess:Q", title="loss above its minimum").scale(type="log").axis(format="~e", tickCount=5)
            above.append(line(curve, x, y, f"n = {power:g}"))
            bias = [{"estimator": row["estimator"], **point} for row in mine for point in row["bias"]]
            x = altair.X("p:Q", title="P(x = 1)").scale(domain=[0, 1]).axis(tickCount=5)
            y = altair.Y("ratio:Q", title="mean / exact gradient").scale(type="symlog")
            y = y.axis(values=[-30, -10, -3, -1, 0, 1, 3, 10, 30], tickCount=20, labelOverlap=False)
            zero = altair.Chart(inline_data([{"y": 0}])).mark_rule(color="#999").encode(y="y:Q")
            below.append(zero + line(bias, x, y, f"n = {power:g}"))
        return altair.vconcat(altair.hconcat(*above), altair.hconcat(*below))

    def _specs(self) -> Mapping[str, dict[str, Any]]:
        """Return the estimators by the names that tables and charts give them."""
        if self.estimators is None:
            return _ESTIMATORS
        neuron, a = registry.neuron("categorical"), torch.zeros(self.units, 2, dtype=torch.float64)
        return {estimator.label(): estimator.spec() for estimator in self.choose(neuron, a, [])}

    def _loss(self, power: float) -> Loss:
        return lambda points: ((points[..., 1] - self.target).abs() ** power).mean(-1)

    def _exact(self, power: float, a: Tensor) -> Tensor:
        """Return E[loss], `[*batch]`, differentiable in a."""
        high, low = (1 - self.target) ** power, self.target**power
        mean: Tensor = (low + (high - low) * torch.softmax(a, -1)[..., 1]).mean(-1)
        return mean

    def _row(self, power: float, label: str, on_progress: OnProgress) -> dict[str, Any]:
        estimator = None if label == _EXACT else registry.estimator(self._specs()[label])
        variance, bias = (None, []) if estimator is None else self._bias(power, estimator)
        return {
            "estimator": label,
            "spec": None if estimator is None else estimator.spec(),
            "power": power,
            "variance": variance,
            "bias": bias,
            "curve": self._curve(power, estimator, on_progress),
        }

    def _bias(self, power: float, estimator: Estimator) -> tuple[float, list[dict[str, float]]]:
        """Return the variance at θ = 0 and, at several P(x = 1), the ratio of the estimator's mean to the exact gradient."""
        p = torch.linspace(0.1, 0.9, 9, dtype=torch.float64)
        a = torch.stack([torch.zeros_like(p), torch.logit(p)], -1)[:, None].expand(-1, self.units, -1)
        exact = a.clone().requires_grad_()
        (gradient,) = torch.autograd.grad(self._exact(power, exact).sum(), exact)
        seed = derive_seed(self.seed, _MEASUREMENT)
        measured = measure(self._loss(power), a, registry.neuron("categorical"), estimator, self.draws, seed)
        along = (measured.estimate.gradient * gradient).sum((-2, -1)) / gradient.square().sum((-2, -1))
        points = [{"p": at, "ratio": ratio} for at, ratio in zip(p.tolist(), along.tolist(), strict=True)]
        return float(measured.variance[len(p) // 2]), points

    def _curve(self, power: float, estimator: Estimator | None, on_progress: OnProgress) -> list[dict[str, float]]:
        """Train, and return the distance of the exact loss to its minimum by step."""
        theta = torch.zeros(self.units, 2, dtype=torch.float64, requires_grad=True)
        optimiser, key = torch.optim.Adam([theta], lr=self.learning_rate), Key(derive_seed(self.seed, _TRAINING))
        neuron, f, state, points = registry.neuron("categorical"), self._loss(power), None, []
        every = max(1, self.steps // self.recorded)
        for step in range(self.steps + 1):
            exact = self._exact(power, theta)
            if step % every == 0 or step == self.steps:
                points.append({"step": step, "excess": float(exact.detach()) - self.target**power})
            if estimator is None:
                loss = exact
            else:
                rows = theta.expand(self.batch, -1, -1)
                value, state = expect(f, rows, neuron, estimator, key.fold_in(step), state)
                loss = value.mean()
            optimiser.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            optimiser.step()
            on_progress(step / self.steps)
        return points
