"""The progress bar of a gated network in training."""

from __future__ import annotations

import math
from types import TracebackType
from typing import Self

from rich.progress import TextColumn

from gradest_experiments.engine.display import progress_bar
from gradest_experiments.gated.settings import ResolvedGatedSettings

__all__ = ["Display"]


class Display:
    """A bar with the epoch, the training loss, the validation error, the share of open gates, and the time left."""

    def __init__(self, settings: ResolvedGatedSettings, *, enabled: bool) -> None:
        neuron, estimator = settings.pair()
        self._progress = progress_bar(
            enabled,
            TextColumn("{task.fields[epoch]}/{task.total:g}  loss {task.fields[loss]:.3f}"),
            TextColumn("valid {task.fields[valid]}  open {task.fields[opened]:.1%}"),
            width=20,
        )
        self._task = self._progress.add_task(
            f"{neuron.label()} + {estimator.label()}",
            total=settings.epochs,
            epoch=0,
            loss=math.nan,
            valid="-",
            opened=math.nan,
        )

    def update(self, epochs: float, loss: float, open_share: float, valid_error: float | None) -> None:
        """Show the epochs that are done, training loss, share of open gates, and the validation error of the last epoch."""
        valid = "-" if valid_error is None else f"{valid_error:.2%}"
        self._progress.update(
            self._task, completed=epochs, epoch=int(epochs), loss=loss, opened=open_share, valid=valid
        )

    def __enter__(self) -> Self:
        self._progress.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._progress.stop()
