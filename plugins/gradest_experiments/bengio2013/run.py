"""`reproduce_bengio2013`: the search if asked for, every row and seed, and the report."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

from rich.progress import Progress, TaskID, TextColumn

from gradest.errors import GradestError
from gradest_experiments.bengio2013.report import write_report
from gradest_experiments.bengio2013.rows import QUICK, TableRow
from gradest_experiments.bengio2013.search import search_row
from gradest_experiments.bengio2013.settings import RowSettings
from gradest_experiments.bengio2013.training import time_step, train_row
from gradest_experiments.engine.data import Dataset
from gradest_experiments.engine.display import progress_bar
from gradest_experiments.engine.folder import RunFolder
from gradest_experiments.engine.plot import check_plots

__all__ = ["reproduce_bengio2013"]

_SEARCH_EPOCHS = 3


def reproduce_bengio2013(
    out: Path,
    rows: Sequence[TableRow],
    data: Dataset,
    *,
    seeds: int = 1,
    search: bool = False,
    minutes: float | None = None,
    quick: bool = False,
    progress: bool = False,
    tensorboard: bool = False,
    **options: Any,
) -> Path:
    """Train the rows, each seed in a folder of its own under `out`, and return the path of the report on all runs in `out`.

    search: first choose the settings of each row that has a grid, in runs of three epochs. minutes: train for as many epochs as
    this machine does in that time, instead of the row's number; a run that has begun keeps its number. quick: two epochs of
    20,000 images, and one in a trial. progress: show a progress bar on standard error. tensorboard: write the metrics of each run
    except trials as event files too. options: of `TableRow.settings`, for every run.

    Called again with the same arguments, it continues from the last checkpoint, with the same numbers on the same machine.
    Raises GradestError if plots cannot be written or a run diverges, and InvalidInput if a folder holds other settings.
    """
    check_plots()
    out, device = Path(out), options.get("device", "cpu")
    data = data.to(device)
    given = {**(QUICK if quick else {}), **options}
    with progress_bar(progress, TextColumn("{task.percentage:>3.0f}%")) as bar:
        for place, (row, seed) in enumerate((row, seed) for seed in range(seeds) for row in rows):
            name = f"{row.name}, seed {seed}"
            shown = bar.add_task(f"{place + 1}/{len(rows) * seeds} {name}", total=None)
            try:
                found: dict[str, Any] = {}
                if search and row.grid:
                    few = {**given, "epochs": 1 if quick else _SEARCH_EPOCHS}
                    found = search_row(row, data, out / row.name / "search", **few)
                settings = row.settings(**{**given, **found, "seed": seed})
                folder = out / row.name / f"seed-{seed}"
                if minutes is not None:
                    epochs = _begun(folder) or _epochs(settings, data, minutes)
                    settings = settings.model_copy(update={"epochs": epochs})
                bar.update(shown, total=settings.epochs * settings.steps(data))
                train_row(settings, data, folder, partial(_show, bar, shown), tensorboard=tensorboard)
            except GradestError as error:
                raise GradestError(f"{name}: {error}") from error
            bar.remove_task(shown)
    return write_report(out)


def _show(bar: Progress, shown: TaskID, step: int) -> None:
    bar.update(shown, completed=step)


def _epochs(settings: RowSettings, data: Dataset, minutes: float) -> int:
    """Return the number of epochs that this machine does in the time, at least one."""
    return max(1, round(60 * minutes / (time_step(settings, data) * settings.steps(data))))


def _begun(folder: Path) -> int | None:
    """Return the number of epochs of the run in the folder, if there is one."""
    return int(RunFolder.read(folder).settings["epochs"]) if RunFolder.exists(folder) else None
