"""What a run shows while it goes on."""

from __future__ import annotations

from types import TracebackType
from typing import Self

from rich.console import Console
from rich.progress import BarColumn, Progress, ProgressColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from gradest.estimation.distributed import rank
from gradest_experiments.settings import ResolvedSettings

__all__ = ["Display", "bars"]


def bars(enabled: bool, *columns: ProgressColumn, width: int = 30) -> Progress:
    """Bars on standard error, of the first process alone, with the time since the start and the time left."""
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(bar_width=width),
        *columns,
        TimeElapsedColumn(),
        TimeRemainingColumn(),
        console=Console(stderr=True),
        disable=not enabled or rank() > 0,
    )


class Display:
    """A bar with the epoch, the training loss, the validation error, the open gates, and the time left."""

    def __init__(self, settings: ResolvedSettings, done: int, enabled: bool) -> None:
        neuron, estimator = settings.pair()
        self._progress = bars(
            enabled,
            TextColumn("{task.fields[epoch]}/{task.total:g}  loss {task.fields[loss]:.3f}"),
            TextColumn("valid {task.fields[valid]}  open {task.fields[opened]:.1%}"),
            width=20,
        )
        self._done = done
        self._task = self._progress.add_task(
            f"{neuron.label()} + {estimator.label()}",
            total=settings.epochs,
            completed=done,
            epoch=done,
            loss=float("nan"),
            valid="-",
            opened=0.0,
        )

    def minibatch(self, part: float, loss: float, open_share: float) -> None:
        """part: of the epoch that is done."""
        self._progress.update(self._task, completed=self._done + part, loss=loss, opened=open_share)

    def epoch(self, valid_error: float) -> None:
        """The end of an epoch, and the share of wrong answers in validation."""
        self._done += 1
        self._progress.update(self._task, completed=self._done, epoch=self._done, valid=f"{valid_error:.2%}")

    def __enter__(self) -> Self:
        self._progress.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._progress.stop()
