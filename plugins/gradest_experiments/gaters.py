"""The source's table: four gaters, and as their baselines the rectifier and two dense layers of sigmoids, on one network."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rich.table import Table

from gradest.errors import UnknownPlugin
from gradest_experiments.data import DatasetName
from gradest_experiments.settings import Settings
from gradest_experiments.training import Result, train

__all__ = ["GATERS", "Gater", "compare_gaters", "to_table"]


@dataclass(frozen=True)
class Gater:
    """A row: how it is called, its pair, and the validation and test error that the source reports for MNIST (single runs).

    options: fields of Settings that are the row's own.
    """

    name: str
    neuron: str | Mapping[str, Any]
    estimator: str | Mapping[str, Any]
    published: tuple[float, float]
    options: Mapping[str, Any] = field(default_factory=dict)

    def settings(self, **options: Any) -> Settings:
        """A run of the row; the options are further fields of Settings, and go before the row's."""
        return Settings.build(neuron=self.neuron, estimator=self.estimator, **{**self.options, **options})


_DENSE = {"gates": 200, "penalty": "none", "experts": "dense"}

GATERS = (
    Gater(
        "noisy_rectifier",
        {"name": "noisy_rectifier", "distribution": "gaussian", "std": 1.0},
        "pathwise",
        (0.0152, 0.0187),
    ),
    Gater("straight_through", "bernoulli", "straight_through", (0.0142, 0.0139)),
    Gater("stochastic_times_smooth", "stochastic_times_smooth", "held_noise", (0.0186, 0.0196)),
    Gater("stochastic_binary", "bernoulli", "reinforce_centered", (0.0178, 0.0189)),
    Gater("rectifier", "rectifier", "pathwise", (0.0166, 0.0160)),
    Gater("noisy_sigmoid", "noisy_sigmoid", "pathwise", (0.0188, 0.0187), _DENSE),
    Gater("sigmoid", "sigmoid", "pathwise", (0.0197, 0.0192), _DENSE),
)
"""The source's four gaters, its sparse baseline without noise, and its dense ones: every gate is open, a tenth of them there."""


def compare_gaters(
    data: DatasetName = "digits",
    epochs: int | None = None,
    seed: int = 0,
    *,
    names: Iterable[str] | None = None,
    out: Path | None = None,
    resume: bool = False,
    progress: bool = False,
    tensorboard: bool = False,
    **options: Any,
) -> list[Result]:
    """Train the rows of GATERS, or those named, one after the other; every row with the same data, sizes and seed.

    out: each run gets the folder out/NAME. options: further fields of `Settings`, for every row. Raises UnknownPlugin for a
    name that is not in GATERS, and what `train` raises.
    """
    rows = {gater.name: gater for gater in GATERS}
    wanted = list(rows if names is None else names)
    if missing := [name for name in wanted if name not in rows]:
        raise UnknownPlugin(f"no gater is named {missing[0]!r}; there are: {', '.join(rows)}")
    plan = [(name, rows[name].settings(data=data, epochs=epochs, seed=seed, **options)) for name in wanted]
    return [
        train(
            settings,
            out=None if out is None else Path(out) / name,
            resume=resume,
            progress=progress,
            tensorboard=tensorboard,
        )
        for name, settings in plan
    ]


def to_table(results: Sequence[Result]) -> Table:
    """The results as a rich table; for MNIST with the source's figures beside them."""
    on_mnist = any(result.settings.data == "mnist" for result in results)
    table = Table(title="Gated network", caption="errors of the network with the best validation error")
    table.add_column("neuron + estimator")
    columns = ["train loss", "train %", "valid %", "test %", "open %", "epoch", "seconds"]
    skipping = any(result.settings.experts == "sparse" for result in results)
    columns += ["computed %", "speed-up"] * skipping
    for name in columns + ["source: valid %", "test %"] * on_mnist:
        table.add_column(name, justify="right")
    for result in results:
        neuron, estimator = result.settings.pair()
        cells = [
            f"{neuron.label()} + {estimator.label()}",
            f"{result.train.loss:.2g}",
            *(f"{100 * share:.2f}" for share in (result.train.error, result.valid.error, result.test.error)),
            f"{100 * result.test.open_share:.1f}",
            f"{result.best_epoch}/{len(result.epochs)}",
            f"{result.seconds:.0f}",
        ]
        if skipping:
            cells += [f"{100 * result.computed:.1f}", f"{result.speedup:.1f}"]
        if on_mnist:
            pair = (result.settings.neuron, result.settings.estimator)
            figures = next((gater.published for gater in GATERS if (gater.neuron, gater.estimator) == pair), ())
            cells += [f"{100 * error:.2f}" for error in figures] or ["", ""]
        table.add_row(*cells)
    return table
