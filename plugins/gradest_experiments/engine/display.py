"""The progress bar of every experiment."""

from __future__ import annotations

from rich.console import Console
from rich.progress import BarColumn, Progress, ProgressColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from gradest.estimation.distributed import rank

__all__ = ["progress_bar"]


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
