"""`run_belief`: one run with a progress bar, and the table of its epochs."""

from __future__ import annotations

from pathlib import Path

from rich.progress import TextColumn

from gradest_experiments.belief.settings import BeliefSettings
from gradest_experiments.belief.training import train_belief
from gradest_experiments.engine.display import progress_bar
from gradest_experiments.engine.folder import RunFolder
from gradest_experiments.engine.images import Images

__all__ = ["COLUMNS", "run_belief", "to_rows"]

COLUMNS = ("epoch", "ELBO, training", "bound, training", "bound, validation", "ms per step")


def run_belief(
    settings: BeliefSettings, images: Images, path: Path, *, progress: bool = False, tensorboard: bool = False
) -> RunFolder:
    """Train as `train_belief` does, which see, and return the folder of the run.

    progress: show a progress bar on standard error.
    """
    with progress_bar(progress, TextColumn("{task.percentage:>3.0f}%")) as bar:
        steps = settings.epochs * (len(images.train) // settings.batch)
        shown = bar.add_task(settings.describe(), total=steps)
        return train_belief(
            settings, images, path, lambda step: bar.update(shown, completed=step), tensorboard=tensorboard
        )


def to_rows(run: RunFolder) -> list[list[str]]:
    """Return the epochs of a run in the columns COLUMNS; ms per step is the average since the start."""
    return [
        [
            str(train["epoch"]),
            *(f"{number:.2f}" for number in (train["elbo"], train["bound"], valid["bound"])),
            f"{1000 * train['seconds'] / train['step']:.1f}",
        ]
        for train, valid in zip(run.rows("train"), run.rows("valid"), strict=True)
    ]
