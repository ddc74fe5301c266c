"""`reproduce_experts`: every network and seed, and the report."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from gradest_experiments.engine.data import Dataset
from gradest_experiments.engine.display import do_in_turn
from gradest_experiments.engine.plot import check_plots
from gradest_experiments.experts.report import write_report
from gradest_experiments.experts.settings import ExpertSettings
from gradest_experiments.experts.training import train_experts

__all__ = ["reproduce_experts"]


def reproduce_experts(
    out: Path,
    runs: Sequence[ExpertSettings],
    data: Dataset,
    *,
    progress: bool = False,
    tensorboard: bool = False,
) -> Path:
    """Do the runs, each in a folder of its own under `out`, and return the path of the report on all runs in `out`.

    Called again with the same settings, it continues from the last checkpoint, with the same numbers on the same machine. More
    seeds or epochs may be added later.

    progress: show a progress bar on standard error. tensorboard: write the metrics of each run as event files too.

    Raises GradestError if plots cannot be written or a run diverges, and InvalidInput if a folder holds other settings.
    """
    check_plots()
    out = Path(out)
    do_in_turn(
        runs,
        lambda run, show: train_experts(run, data, out / run.folder(), show, tensorboard=tensorboard),
        lambda run: f"{run.label()}, seed {run.seed}",
        lambda run: run.epochs,
        progress=progress,
    )
    return write_report(out)
