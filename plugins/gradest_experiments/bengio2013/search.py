"""A search over a small grid of settings of a row, in short runs that are judged by the validation images alone."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pydantic import BaseModel

from gradest_experiments.bengio2013.rows import TableRow
from gradest_experiments.bengio2013.training import train_row
from gradest_experiments.engine.data import Dataset
from gradest_experiments.engine.folder import RunFolder
from gradest_experiments.engine.loop import OnStep

__all__ = ["TOLERANCE", "SearchSettings", "choose", "name_trial", "search_row"]

EXPERIMENT = "bengio2013-search"
TOLERANCE = 0.01
"""How far the share of open gates may be from the wanted one."""


class SearchSettings(BaseModel):
    """The settings of a search. grid: the values to try, by setting. options: the other settings of all trials."""

    grid: dict[str, list[float]]
    options: dict[str, Any]


def search_row(
    row: TableRow, data: Dataset, path: Path, on_step: OnStep = lambda step: None, **options: Any
) -> dict[str, float]:
    """Try the points of the row's grid that have not been tried yet, and return the settings that `choose` takes.

    options: settings of every trial, such as its epochs. The results of the folder are each trial's error and loss on the
    validation images, its share of open gates over the minibatches of the last epoch, and the name of the chosen trial.
    on_step: called with the number of steps done in a trial. Raises what `train_row` raises.
    """
    given = SearchSettings(grid={name: list(values) for name, values in row.grid.items()}, options=options)
    folder = RunFolder.open(path, EXPERIMENT, given)
    trials = {name_trial(trial): trial for trial in row.trials()}
    for name, trial in trials.items():
        if name not in folder.results:
            run = train_row(row.settings(**{**options, **trial}), data, path / name, on_step, test=False)
            valid, last = run.results["valid"], run.rows("epoch")[-1]
            folder.add_results(**{name: {"error": valid["error"], "loss": valid["loss"], "open": last["open"]}})
    best = choose({name: folder.results[name] for name in trials}, row.settings().target())
    folder.add_results(chosen=best)
    return trials[best]


def name_trial(trial: Mapping[str, float]) -> str:
    """Return the name of a trial, which is that of its folder."""
    return ",".join(f"{name}={value:g}" for name, value in trial.items())


def choose(scores: Mapping[str, Mapping[str, float]], target: float | None) -> str:
    """Return the name of the trial with the least validation error, or with the least loss among equal errors.

    Only trials whose share of open gates, in whole %, is within 1 of the target count or, if there is none, those nearest to
    it. If the target is None, all count.
    """

    def rank(name: str) -> tuple[float, ...]:
        found = scores[name]
        away = 0.0 if target is None else max(TOLERANCE, round(abs(round(found["open"], 2) - target), 2))
        return away, found["error"], found["loss"]

    return min(scores, key=rank)
