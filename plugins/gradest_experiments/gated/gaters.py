"""The table of Bengio et al. (2013): four gaters, and as baselines the rectifier and two dense layers of sigmoids."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rich.table import Table

from gradest.errors import UnknownPlugin
from gradest_experiments.engine.data import DatasetName
from gradest_experiments.gated.settings import GatedSettings
from gradest_experiments.gated.training import Result, train

__all__ = ["GATERS", "Gater", "compare_gaters", "to_table"]


@dataclass(frozen=True)
class Gater:
    """A row of the table: a neuron and an estimator.

    published: validation and test error on MNIST that Bengio et al. (2013) report, of single runs; None if it is not one of
    their rows. options: further fields of `GatedSettings` that belong to the row.
    """

    name: str
    neuron: str | Mapping[str, Any]
    estimator: str | Mapping[str, Any]
    published: tuple[float, float] | None
    options: Mapping[str, Any] = field(default_factory=dict)

    def settings(self, **options: Any) -> GatedSettings:
        """Return the settings of a run of the row. options: fields of `GatedSettings`, which override those of the row."""
        return GatedSettings.build(neuron=self.neuron, estimator=self.estimator, **{**self.options, **options})


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
"""The four gaters, the sparse baseline without noise, and the two dense baselines: a tenth of the gates, all of them open."""


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
    """Train the rows of GATERS, or the named ones, one after the other, each with the same data, sizes and seed.

    out: the folder in which each run has the folder NAME. options: further fields of `GatedSettings`, for every row. Raises
    UnknownPlugin for a name that is not in GATERS, and what `train` raises.
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
    """Return the results as a rich table; for MNIST, with the errors that Bengio et al. (2013) report."""
    on_mnist = any(result.settings.data == "mnist" for result in results)
    table = Table(title="Gated network", caption="Errors are of the epoch with the least validation error.")
    table.add_column("neuron + estimator")
    columns = ["train loss", "train %", "valid %", "test %", "open %", "epoch", "seconds"]
    skipping = any(result.settings.experts == "sparse" for result in results)
    columns += ["computed %", "speed-up"] * skipping
    for name in columns + ["published valid %", "published test %"] * on_mnist:
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
            figures = next((gater.published for gater in GATERS if (gater.neuron, gater.estimator) == pair), None)
            cells += [f"{100 * error:.2f}" for error in figures or ()] or ["", ""]
        table.add_row(*cells)
    return table
