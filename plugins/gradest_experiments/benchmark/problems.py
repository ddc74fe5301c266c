"""The list of all problems."""

from __future__ import annotations

from collections.abc import Iterable

from gradest.errors import InvalidInput
from gradest_experiments.benchmark.networks import (
    BeliefProblem,
    BinaryVaeProblem,
    CategoricalVaeProblem,
    RouterProblem,
)
from gradest_experiments.benchmark.polynomial import Polynomial
from gradest_experiments.benchmark.problem import Problem, Size
from gradest_experiments.benchmark.select import Selection
from gradest_experiments.benchmark.subsets import Subset
from gradest_experiments.benchmark.variance import VarianceMap

__all__ = ["PROBLEMS", "choose_problems"]

PROBLEMS: dict[str, Problem] = {
    problem.name: problem
    for problem in (
        Polynomial(power=1.5),
        Polynomial(power=2),
        Polynomial(power=3),
        Subset(loss="distance"),
        Subset(loss="pairs"),
        Selection(kind="orange-skin"),
        Selection(kind="xor"),
        VarianceMap(),
        BinaryVaeProblem(),
        CategoricalVaeProblem(classes=8, latents=4),
        CategoricalVaeProblem(classes=4, latents=24, optimiser="radam", temperature=1.5),
        CategoricalVaeProblem(classes=8, latents=16, optimiser="radam", learning_rate=7e-4, temperature=1.5),
        CategoricalVaeProblem(classes=16, latents=12, optimiser="radam", learning_rate=7e-4, temperature=1.5),
        CategoricalVaeProblem(classes=64, latents=8, optimiser="radam", temperature=1.5),
        CategoricalVaeProblem(classes=10, latents=30, optimiser="radam"),
        BeliefProblem(),
        RouterProblem(),
    )
}
"""The problems by name, in the size "full"."""


def choose_problems(names: Iterable[str] | None, size: Size) -> list[Problem]:
    """Return the named problems at a size; if none are named, all that need no data.

    Raises InvalidInput for an unknown name.
    """
    wanted = [name for name, problem in PROBLEMS.items() if problem.data is None] if names is None else list(names)
    if unknown := sorted({*wanted} - PROBLEMS.keys()):
        raise InvalidInput(f"no problem is named {unknown[0]!r}; there are: {', '.join(PROBLEMS)}")
    return [problem.at(size) for name, problem in PROBLEMS.items() if name in wanted]
