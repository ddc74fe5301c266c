"""The variance and the bias of every estimator on a subset of k of n items."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, ClassVar

import torch
from pydantic import Field
from torch import Tensor

from gradest.analysis.comparison import comparable_estimators, within_point_limit
from gradest.contract.estimator import Estimator
from gradest.contract.neuron import Neuron, event_shape
from gradest.discovery.registry import registry
from gradest.estimation.exact import exact
from gradest_experiments.engine.plot import colour_encoding, inline_data
from gradest_experiments.engine.seeds import derive_key
from gradest_experiments.engine.tables import markdown_table
from gradest_experiments.toys.part import OnProgress, Part, Results, Task, measure

__all__ = ["SubsetsPart"]

_LOGITS, _TARGET, _PAIRS = range(3)  # what a seed is for
_ROUNDING = 1e-20  # a relative variance below this is due to rounding, and counts as 0


class SubsetsPart(Part):
    """Bias and variance on k of n items, the toy of the papers on SIMPLE and SFESS."""

    name = "subsets"
    title = "k of n items"
    text = """Gradients in the logits of `k_subset`, by which k of n items are chosen, as in the synthetic experiments of Ahmed
et al. (2023, SIMPLE, arXiv 2210.01941) and of SFESS (ICLR 2025): n = 10, k = 5, normal logits, and the squared distance |h - b|²
to a normal target b. Only abstracts and summaries of these papers could be read, so their numbers are not set beside ours. On
subsets that loss is linear, because h² = h, though dL/dh = 2(h - b) is not what an item adds. The second loss, (wᵀh)² with normal
w, has products of items. The exact gradient g is the sum over all subsets. Bias is |E ĝ - g| / |g|, with the standard error that
chance alone would give, and cosine that of the angle between them. Variance is that of one draw, summed over coordinates and
divided by |g|²; K is the number of evaluations of the loss in a draw. Estimators that learn have taken some steps first."""
    quick: ClassVar = {"draws": 400, "warm_up": 20}

    items: int = Field(10, ge=2)
    chosen: int = Field(5, ge=1)
    draws: int = Field(20_000, ge=10)
    warm_up: int = Field(500, ge=0)

    def tasks(self) -> dict[str, Task]:
        """Return one task per loss and estimator."""
        neuron, a = self._neuron(), self._logits()
        return {
            f"{loss}: {estimator.label()}": partial(self._row, loss, estimator)
            for loss in self._losses()
            for estimator in self.choose(neuron, a, comparable_estimators(neuron))
            if within_point_limit(estimator, neuron, a)
        }

    def table(self, results: Results) -> str:
        """Return a table per loss, the least error of one evaluation first."""
        head = ["estimator", "needs", "claimed bias", "K", "bias", "± SE", "cosine", "variance", "± SE", "variance · K"]
        parts = []
        for loss in self._losses():
            rows = [
                [
                    row["estimator"],
                    ", ".join(row["needs"]),
                    row["claim"],
                    row["evaluations"],
                    row["bias"],
                    row["bias_error"],
                    row["cosine"],
                    row["variance"],
                    row["variance_error"],
                    row["variance"] * row["evaluations"],
                ]
                for row in _by_variance(results, loss)
            ]
            parts.append(f"**{loss}**\n\n{markdown_table(head, rows)}")
        return "\n\n".join(parts)

    def chart(self, results: Results) -> Any:
        """Draw variance · K against bias, a panel per loss."""
        import altair  # noqa: PLC0415  # an extra

        panels = []
        for loss in self._losses():
            rows = [
                {**row, "x": row["variance"] * row["evaluations"], "y": max(row["bias"], row["bias_error"], 1e-4)}
                for row in _by_variance(results, loss)
                if row["variance"] > 0
            ]
            claims = ["none", *sorted({row["claim"] for row in rows} - {"none"})]
            base = altair.Chart(inline_data(rows)).encode(
                x=altair.X("x:Q", title="variance of one draw · K / |g|²").scale(type="log"),
                y=altair.Y("y:Q", title="bias / |g|, or its standard error").scale(type="log"),
            )
            shade = colour_encoding(claims, field="claim").legend(title="claimed bias", symbolType="circle")
            names = base.mark_text(align="left", dx=7, fontSize=9).encode(text="estimator:N")
            points = base.mark_point(filled=True, size=70, opacity=1).encode(color=shade)
            panels.append((points + names).properties(width=420, height=260, title=loss))
        return altair.vconcat(*panels)

    def _neuron(self) -> Neuron:
        return registry.neuron("k_subset", k=self.chosen)

    def _normal(self, purpose: int) -> Tensor:
        """Return a standard normal number for each item, `[1, items]`."""
        u = derive_key(self.seed, purpose).uniform((), (1, self.items), dtype=torch.float64)
        normal: Tensor = torch.special.ndtri(u)[0]
        return normal

    def _logits(self) -> Tensor:
        return self._normal(_LOGITS)

    def _losses(self) -> dict[str, Callable[[Tensor], Tensor]]:
        """Return the losses by name, from `[..., 1, items]` to `[...]`."""
        target, weight = self._normal(_TARGET), self._normal(_PAIRS)
        return {
            "distance": lambda h: (h - target.to(h)).square().sum((-2, -1)),
            "pairs": lambda h: (h * weight.to(h)).sum((-2, -1)).square(),
        }

    def _row(self, loss: str, estimator: Estimator, on_progress: OnProgress) -> dict[str, Any]:
        f, a, neuron = self._losses()[loss], self._logits(), self._neuron()
        _, gradient = exact(f, a, neuron)
        evaluations = estimator.evaluations(neuron, event_shape(neuron, a))
        draws = max(100, self.draws // max(1, evaluations // 10))
        measured = measure(f, a, neuron, estimator, draws, self.seed, warm_up=self.warm_up, on_progress=on_progress)
        found, size = measured.estimate, float(gradient.norm())
        bias = found.gradient - gradient
        variance = float(found.variance.sum()) / size**2
        variance = variance if variance > _ROUNDING else 0.0
        cosine = float((found.gradient * gradient).sum() / (size * found.gradient.norm().clamp_min(1e-300)))
        return {
            "loss": loss,
            "estimator": estimator.label(),
            "needs": sorted(estimator.needs, reverse=True),
            "claim": str(estimator.bias(neuron)),
            "evaluations": found.evaluations,
            "draws": found.draws,
            "bias": float(bias.norm()) / size,
            "bias_error": (variance / found.draws) ** 0.5,
            "cosine": cosine,
            "variance": variance,
            "variance_error": float(measured.error) * self.items / size**2 if variance else 0.0,
        }


def _by_variance(results: Results, loss: str) -> list[dict[str, Any]]:
    rows = [row for row in results.values() if row["loss"] == loss]
    return sorted(rows, key=lambda row: row["variance"] * row["evaluations"])
