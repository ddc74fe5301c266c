"""Variance against steps, for the estimators that learn."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from pydantic import Field
from torch import Tensor

from gradest.analysis.comparison import comparable_estimators
from gradest.contract.estimator import Estimator
from gradest.contract.neuron import Neuron
from gradest.contract.objective import Loss
from gradest.discovery.registry import registry
from gradest.estimation.exact import closed_form
from gradest.estimation.expectation import expect
from gradest.random import Key
from gradest_experiments.engine.plot import inline_data, line_encodings
from gradest_experiments.engine.seeds import derive_seed
from gradest_experiments.engine.tables import markdown_table
from gradest_experiments.toys.part import OnProgress, Part, Results, Task, log_spaced, measure

__all__ = ["LearningPart"]

_REFERENCES = ("reinforce", "rloo", "disarm")
_MEASUREMENT, _TRAINING = 0, 1  # what a seed is for: estimators do not learn from the draws that are measured


@dataclass(frozen=True)
class _Problem:
    """A loss, its least value, the number of units, and the learning rate of Adam on θ, or None if θ does not move."""

    title: str
    f: Loss
    units: int
    least: float = 0.0
    learning_rate: float | None = None

    def start(self) -> Tensor:
        """Return θ before the first step."""
        return torch.zeros(self.units, dtype=torch.float64)


def _sum(points: Tensor) -> Tensor:
    """Return (Σb - 30)² / 50, which for 50 units is of order 1, as the estimators' learning rates assume."""
    return (points.contiguous().sum(-1) - 30) ** 2 / 50


class LearningPart(Part):
    """Variance against steps, for every estimator that has a state (a non-empty `init`), and for some references."""

    name = "learning"
    title = "Estimators that learn"
    text = """Variance of one draw, per coordinate, at the state that an estimator has after a number of steps, measured on other
draws than it learned from. On two problems θ stays at 0: the quadratic of the part before, (1/200) Σ (b_i - .499)², and
(Σb - 30)²/50 of 50 units. On binary units the first loss is linear, which its derivative dL/dh does not show, so an estimator
that uses the derivative can gain little; on the second it can gain much. The other two are the toy of Tucker et al. (2017, arXiv
1703.07370) and Grathwohl et al. (2018, arXiv 1711.00123): one unit and (b - t)², with θ moved from 0 by Adam along the
estimator's own gradient, one draw per step. The loss there is exact, and shown as the distance to its minimum, t² at
P(b = 1) = 0. Estimators have their default options; K, the number of evaluations, is not the same for all."""
    quick: ClassVar = {"steps": 20, "checkpoints": 3, "draws": 100}

    steps: int = Field(1000, ge=1)
    checkpoints: int = Field(12, ge=2)
    draws: int = Field(1000, ge=10)
    learning_rate: float = Field(0.01, gt=0)

    def tasks(self) -> dict[str, Task]:
        """Return one task per problem and estimator."""
        neuron = registry.neuron("bernoulli")
        probe = torch.zeros(1, dtype=torch.float64)
        learners = [estimator for estimator in comparable_estimators(neuron) if estimator.init(neuron, probe)]
        references = [registry.estimator(name) for name in _REFERENCES]
        return {
            f"{name}: {estimator.label()}": self._task(name, problem, neuron, estimator)
            for name, problem in self._problems().items()
            for estimator in self.choose(neuron, problem.start(), [*learners, *references])
        }

    def table(self, results: Results) -> str:
        """Return a table per problem: variance at some steps and, if θ moves, the distance of the loss to its minimum."""
        parts = []
        for name, problem in self._problems().items():
            rows = [row for row in results.values() if row["problem"] == name]
            steps = [step for step in self._shown() if any(step in _by_step(row) for row in rows)]
            moves = problem.learning_rate is not None
            head = ["estimator", "K", *(f"variance, step {step}" for step in steps)]
            cells = []
            for row in rows:
                found, last = _by_step(row), row["points"][-1]
                at = [(found.get(step) or last)["variance"] for step in steps]
                cells.append(
                    [row["estimator"], row["evaluations"], *at, *([last["loss"] - problem.least] if moves else [])]
                )
            table = markdown_table([*head, *([f"loss - t², step {self.steps}"] if moves else [])], cells)
            parts.append(f"**{problem.title}**\n\n{table}")
        return "\n\n".join(parts)

    def chart(self, results: Results) -> Any:
        """Draw a panel per problem, with variance against steps and, if θ moves, a second one with the loss."""
        import altair  # noqa: PLC0415  # an extra

        learners = sorted({row["estimator"] for row in results.values()} - {*_REFERENCES})
        grey = [name for name in _REFERENCES if any(row["estimator"] == name for row in results.values())]
        panels = {name: self._panel(results, name, learners, grey, "variance") for name in self._problems()}
        moving = [name for name, problem in self._problems().items() if problem.learning_rate is not None]
        still = [panels[name] for name in panels if name not in moving]
        losses = [self._panel(results, name, learners, grey, "loss") for name in moving]
        grid = (altair.hconcat(*still), altair.hconcat(*(panels[name] for name in moving)), altair.hconcat(*losses))
        return altair.vconcat(*grid)

    def _problems(self) -> dict[str, _Problem]:
        toys = {
            f"toy {target}": _Problem(
                f"(b - {target})², one unit, θ moving",
                registry.objective("quadratic", target=target),
                1,
                target**2,
                self.learning_rate,
            )
            for target in (0.45, 0.499)
        }
        quadratic = registry.objective("quadratic", target=0.499)
        return {
            "quadratic": _Problem("(1/200) Σ (b - .499)², 200 units, θ = 0", quadratic, 200),
            "sum": _Problem("(Σb - 30)² / 50, 50 units, θ = 0", _sum, 50),
            **toys,
        }

    def _shown(self) -> list[int]:
        """Return the steps of the table: the first, the last, and the one nearest to 100."""
        steps = self._checkpoints()
        return sorted({steps[0], min(steps, key=lambda step: abs(step - 100)), steps[-1]})

    def _task(self, name: str, problem: _Problem, neuron: Neuron, estimator: Estimator) -> Task:
        def run(on_progress: OnProgress) -> dict[str, Any]:
            a = problem.start()
            learns = bool(estimator.init(neuron, a))
            # if neither the estimator nor θ changes, variance is the same at every step
            checkpoints = [0] if problem.learning_rate is None and not learns else self._checkpoints()
            return {
                "problem": name,
                "estimator": estimator.label(),
                "learns": learns,
                "evaluations": estimator.evaluations(neuron, (problem.units,)),
                "points": self._follow(problem, a, neuron, estimator, checkpoints, on_progress),
            }

        return run

    def _checkpoints(self) -> list[int]:
        return log_spaced(self.steps, self.checkpoints)

    def _follow(
        self,
        problem: _Problem,
        a: Tensor,
        neuron: Neuron,
        estimator: Estimator,
        checkpoints: list[int],
        on_progress: OnProgress,
    ) -> list[dict[str, Any]]:
        """Take steps from `a` and the initial state, and measure at the checkpoints."""
        theta, state, points = a.clone().requires_grad_(), estimator.init(neuron, a), []
        optimiser = torch.optim.Adam([theta], lr=problem.learning_rate or 0.0)
        training = Key(derive_seed(self.seed, _TRAINING))
        for step in range(checkpoints[-1] + 1):
            if step in checkpoints:
                seed, at = derive_seed(self.seed, _MEASUREMENT, step), theta.detach().clone()
                measured = measure(problem.f, at, neuron, estimator, self.draws, seed, state=state)
                exact = None if problem.learning_rate is None else closed_form(problem.f, at, neuron)
                points.append(
                    {
                        "step": step,
                        "variance": float(measured.variance),
                        "variance_error": float(measured.error),
                        "loss": None if exact is None else float(exact[0]),
                    }
                )
            if step == checkpoints[-1]:
                break
            value, state = expect(problem.f, theta, neuron, estimator, training.fold_in(step), state)
            if problem.learning_rate is not None:
                optimiser.zero_grad()
                value.backward()  # type: ignore[no-untyped-call]
                optimiser.step()
            on_progress((step + 1) / checkpoints[-1])
        return points

    def _panel(self, results: Results, problem: str, learners: list[str], grey: list[str], field: str) -> Any:
        import altair  # noqa: PLC0415  # an extra

        least = self._problems()[problem].least
        points = [
            {"estimator": row["estimator"], "step": max(step, 0.5 * (field == "variance")), "value": value}
            for row in results.values()
            if row["problem"] == problem
            for point in row["points"]
            # an estimator measured at one step alone is drawn as a line over all steps
            for step in ([point["step"]] if len(row["points"]) > 1 else [0, self.steps])
            if (value := (point[field] or 0.0) - (least if field == "loss" else 0.0)) > 0
        ]
        if field == "variance":
            x = altair.X("step:Q", title="steps (0 at the left edge)")
            x = x.scale(type="log", domain=[0.5, self.steps], nice=False).axis(
                format="~s", values=[1, 10, 100, 1e3, 1e4]
            )
            y = altair.Y("value:Q", title="variance of one draw").scale(type="log")
        else:
            x = altair.X("step:Q", title="steps").scale(domain=[0, self.steps], nice=False).axis(tickCount=6)
            y = altair.Y("value:Q", title="exact loss above t²").scale(type="log", nice=False)
        y = y.axis(format="~e", tickCount=6)
        chart = altair.Chart(inline_data(points)).mark_line(strokeWidth=2, clip=True)
        encoded = chart.encode(x=x, y=y, **line_encodings(learners, grey))
        return encoded.properties(width=380, height=230, title=self._problems()[problem].title)


def _by_step(row: dict[str, Any]) -> dict[int, dict[str, Any]]:
    return {point["step"]: point for point in row["points"]}
