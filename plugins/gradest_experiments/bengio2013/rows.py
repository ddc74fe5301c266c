"""The seven rows of the source's table: what it states, what it reports, and what a search chose here."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import product
from typing import Any

from gradest.errors import InvalidInput
from gradest_experiments.bengio2013.settings import RowSettings
from gradest_experiments.gaters import GATERS, Gater

__all__ = ["QUICK", "ROWS", "Row", "choose_rows"]

_MNIST: dict[str, Any] = {"data": "mnist", "hidden": 400, "gates": 2000, "batch": 32, "sparsity": 0.1, "max_norm": 2.0}

QUICK: dict[str, Any] = {"epochs": 2, "images": 20_000}
"""The settings of a run of seconds."""


@dataclass(frozen=True)
class Row:
    """A row of the table.

    gater: its pair, and the errors that the source reports. criterion: the training criterion that it reports. epochs: what 15
    minutes buy, about. stated: its own settings by the source. grid: what is searched, values by setting. chosen: what the
    search chose from it, which goes before what is stated; where it is empty, the defaults are the source's.
    """

    gater: Gater
    title: str
    criterion: float
    epochs: int
    stated: Mapping[str, Any]
    grid: Mapping[str, Sequence[float]]
    chosen: Mapping[str, Any] = field(default_factory=dict)

    @property
    def name(self) -> str:
        """As on the command line."""
        return self.gater.name

    def settings(self, **options: Any) -> RowSettings:
        """A run of the row; the options go before its own."""
        pair = {"neuron": self.gater.neuron, "estimator": self.gater.estimator, **self.gater.options}
        given = {**_MNIST, "learning_rate": 0.1, "epochs": self.epochs, **pair, **self.stated, **self.chosen, **options}
        return RowSettings.of(self.name, **given)

    def source(self) -> dict[str, Any]:
        """The settings that the source states, of those that a run has; the learning rate stays what it is."""
        return {"learning_rate": 0.1, "decay": 0.0, "max_norm": _MNIST["max_norm"], **self.stated}

    def trials(self) -> list[dict[str, float]]:
        """The points of the grid."""
        return [dict(zip(self.grid, values, strict=True)) for values in product(*self.grid.values())]


_NOISY_RECTIFIER, _STRAIGHT_THROUGH, _TIMES_SMOOTH, _BINARY, _RECTIFIER, _NOISY_SIGMOID, _SIGMOID = GATERS
_L1: dict[str, Any] = {
    "penalty": "l1",
    "penalty_weight": 1e-5,
    "penalty_rate": 0.1,
    "momentum": 0.0,
    "gater_scale": 1.0,
}
_DENSE: dict[str, Any] = {"penalty": "none", "momentum": 0.0, "gater_scale": 1.0, "experts": "dense"}

ROWS = (
    Row(
        _NOISY_RECTIFIER,
        "noisy rectifier",
        criterion=6.7e-4,
        epochs=50,
        stated=_L1,
        # 0.3 was chosen by one seed; by another its gates close in the first epochs, and stay closed
        grid={"learning_rate": (0.03, 0.1, 0.3)},
    ),
    Row(
        _STRAIGHT_THROUGH,
        "straight-through",
        criterion=3.3e-3,
        epochs=60,
        stated={"penalty": "kl", "penalty_weight": 0.1, "momentum": 0.0, "gater_scale": 1.0},
        # by trials of 25 epochs and more: those of the search favour what learns fast
        grid={"penalty_weight": (0.03, 0.1), "gater_scale": (0.1, 1.0), "max_norm": (2.0, 4.0)},
        chosen={"penalty_weight": 0.03, "gater_scale": 0.1, "max_norm": 4.0, "learning_rate": 0.3},
    ),
    Row(
        _TIMES_SMOOTH,
        "stochastic times smooth",
        criterion=4.4e-3,
        epochs=50,
        stated={"penalty": "kl", "penalty_weight": 0.001, "momentum": 0.5, "gater_scale": 1.0, "input_noise": 40.0},
        grid={"penalty_weight": (0.001, 0.01), "learning_rate": (0.1, 0.3)},
        chosen={"penalty_weight": 0.001, "learning_rate": 0.3},
    ),
    Row(
        _BINARY,
        "stochastic binary, unbiased",
        criterion=9.9e-3,
        epochs=60,
        stated={"penalty": "kl", "penalty_weight": 1.0, "momentum": 0.0, "gater_scale": 0.01},
        # the norm by a trial of 30 epochs
        grid={"penalty_weight": (0.03, 1.0), "gater_scale": (0.01, 0.03), "max_norm": (2.0, 4.0)},
        chosen={"penalty_weight": 0.03, "gater_scale": 0.03, "max_norm": 4.0, "learning_rate": 0.3},
    ),
    Row(
        _RECTIFIER,
        "rectifier without noise",
        criterion=6.3e-5,
        epochs=50,
        stated=_L1,
        grid={"learning_rate": (0.03, 0.1, 0.3)},
        chosen={"learning_rate": 0.3},
    ),
    Row(
        _NOISY_SIGMOID,
        "sigmoid + noise, 200 units",
        criterion=1.8e-3,
        epochs=100,
        stated=_DENSE,
        grid={"learning_rate": (0.1, 0.3)},
        chosen={"learning_rate": 0.3},
    ),
    Row(
        _SIGMOID,
        "sigmoid, 200 units",
        criterion=3.2e-3,
        epochs=100,
        stated=_DENSE,
        grid={"learning_rate": (0.1, 0.3)},
        chosen={"learning_rate": 0.3},
    ),
)
"""In the order of the source."""


def choose_rows(names: Sequence[str] | None = None) -> list[Row]:
    """The rows of these names, all if None, in the order of the source. Raises InvalidInput for a name that is none."""
    known = [row.name for row in ROWS]
    if unknown := [name for name in names or () if name not in known]:
        raise InvalidInput(f"no row is named {unknown[0]!r}; there are: {', '.join(known)}")
    return [row for row in ROWS if names is None or row.name in names]
