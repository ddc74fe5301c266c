"""The search: a small grid a row, in short runs, judged by validation images alone."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from pydantic import BaseModel

from gradest_experiments.bengio2013.rows import Row
from gradest_experiments.bengio2013.training import train_row
from gradest_experiments.data import Dataset
from gradest_experiments.folder import RunFolder

__all__ = ["TOLERANCE", "Search", "choose", "name_trial", "search_row"]

EXPERIMENT = "bengio2013-search"
TOLERANCE = 0.01
"""How far from the wanted share that of the open gates may be."""


class Search(BaseModel):
    """What a search is made of: the values that it tries, by setting, and the other settings of all its trials."""

    grid: dict[str, list[float]]
    options: dict[str, Any]


def search_row(
    row: Row, data: Dataset, path: Path, tick: Callable[[int], object] = lambda step: None, **options: Any
) -> dict[str, float]:
    """The settings that `choose` takes from the row's grid; trials that are done are not done again.

    options: of every trial, such as its epochs. Results of the folder are each trial's error and loss on the validation
    images, its open share over the minibatches of the last epoch, and what was chosen. tick(step) is told how far a trial is.
    Raises what `train_row` raises.
    """
    given = Search(grid={name: list(values) for name, values in row.grid.items()}, options=options)
    folder = RunFolder.enter(path, EXPERIMENT, given)
    trials = {name_trial(trial): trial for trial in row.trials()}
    for name, trial in trials.items():
        if name not in folder.results:
            run = train_row(row.settings(**{**options, **trial}), data, path / name, tick, test=False)
            valid, last = run.results["valid"], run.rows("epoch")[-1]
            folder.add(**{name: {"error": valid["error"], "loss": valid["loss"], "open": last["open"]}})
    best = choose({name: folder.results[name] for name in trials}, row.settings().target())
    folder.add(chosen=best)
    return trials[best]


def name_trial(trial: Mapping[str, float]) -> str:
    """Of its folder."""
    return ",".join(f"{name}={value:g}" for name, value in trial.items())


def choose(scores: Mapping[str, Mapping[str, float]], target: float | None) -> str:
    """The name with the least validation error, then loss, of those whose open share is, in whole %, within 1 of the target.

    If none is, of those nearest to it. A target of None is any share.
    """

    def rank(name: str) -> tuple[float, ...]:
        found = scores[name]
        away = 0.0 if target is None else max(TOLERANCE, round(abs(round(found["open"], 2) - target), 2))
        return away, found["error"], found["loss"]

    return min(scores, key=rank)
