"""The progress bar of every experiment."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeVar

from rich.console import Console
from rich.progress import BarColumn, Progress, ProgressColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from gradest.errors import GradestError
from gradest.estimation.distributed import rank

__all__ = ["do_in_turn", "progress_bar"]

Run = TypeVar("Run")
Result = TypeVar("Result")


def progress_bar(enabled: bool, *columns: ProgressColumn, width: int = 30) -> Progress:
    """Return a progress bar on standard error, with the elapsed and the remaining time; only the first process shows it."""
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(bar_width=width),
        *columns,
        TimeElapsedColumn(),
        TimeRemainingColumn(),
        console=Console(stderr=True),
        disable=not enabled or rank() > 0,
    )


def do_in_turn(
    runs: Sequence[Run],
    do: Callable[[Run, Callable[[float], object]], Result],
    name: Callable[[Run], str],
    length: Callable[[Run], int],
    *,
    progress: bool,
) -> list[Result]:
    """Do the runs one after the other under one progress bar, and return what they return.

    do: does a run, and calls its second argument with how much of the run's length is done. name: of a run, for the bar.

    Raises what `do` raises; a GradestError names the run.
    """
    results = []
    with progress_bar(progress, TextColumn("{task.percentage:>3.0f}%")) as bar:
        shown = bar.add_task("", total=sum(map(length, runs)))
        done = 0
        for place, run in enumerate(runs, 1):
            bar.update(shown, description=f"{place}/{len(runs)} {name(run)}")

            def show(part: float, before: int = done) -> None:
                bar.update(shown, completed=before + part)

            try:
                results.append(do(run, show))
            except GradestError as error:
                raise GradestError(f"{name(run)}: {error}") from error
            done += length(run)
    return results
