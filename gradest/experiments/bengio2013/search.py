"""The search: a small grid a row, in short runs, judged by validation images alone."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from gradest.experiments.bengio2013.rows import Row
from gradest.experiments.bengio2013.training import METRICS, RECORD, train_row
from gradest.experiments.data import Dataset
from gradest.experiments.toys.record import Record
from gradest.experiments.vae.metrics import read_metrics

__all__ = ["SEARCH", "TOLERANCE", "choose", "name_trial", "search_row"]

SEARCH = "search.json"
TOLERANCE = 0.01
"""How far from the wanted share that of the open gates may be."""


def search_row(
    row: Row, data: Dataset, folder: Path, tick: Callable[[int], object] = lambda step: None, **options: Any
) -> dict[str, float]:
    """The settings that `choose` takes from the row's grid; trials that are done are not done again.

    options: of every trial, such as its epochs. search.json in the folder has each trial's error and loss on the validation
    images, its open share over the minibatches of the last epoch, and what was chosen. tick(step) is told how far a trial is.
    Raises what `train_row` raises.
    """
    record = Record(folder / SEARCH, {"grid": {name: list(values) for name, values in row.grid.items()}, **options})
    trials = {name_trial(trial): trial for trial in row.trials()}
    for name, trial in trials.items():
        if name not in record.results:
            settings = row.settings(**{**options, **trial})
            train_row(settings, data, folder / name, tick, test=False)
            valid, last = Record(folder / name / RECORD).results["valid"], read_metrics(folder / name / METRICS)[-1]
            record.add(name, {"error": valid["error"], "loss": valid["loss"], "open": last["open"]})
    best = choose({name: record.results[name] for name in trials}, row.settings().target())
    record.add("chosen", best)
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
