"""`reproduce_binary_vae`: every estimator, network and seed, and the report."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from gradest.errors import InvalidInput
from gradest.estimation.distributed import rank
from gradest_experiments.engine.display import do_in_turn
from gradest_experiments.engine.images import Images
from gradest_experiments.engine.plot import check_plots
from gradest_experiments.vae.report import REPORT, write_report
from gradest_experiments.vae.settings import NETWORKS, QUICK, VaeSettings, choose_estimators, default_estimators
from gradest_experiments.vae.training import train_vae

__all__ = ["list_runs", "reproduce_binary_vae"]


def list_runs(
    estimators: Iterable[dict[str, Any]] | None = None,
    networks: Sequence[str] | None = None,
    *,
    samples: int = 2,
    seeds: int = 1,
    quick: bool = False,
    **options: Any,
) -> list[VaeSettings]:
    """Return the settings of every run: of eight estimators if none are named, and of both networks if none are named.

    options: of `VaeSettings`. Raises what `choose_estimators` raises, InvalidOptions, and InvalidInput for another network.
    """
    chosen = default_estimators(samples) if estimators is None else choose_estimators(estimators, samples)
    if unknown := sorted({*(networks or ())} - {*NETWORKS}):
        raise InvalidInput(f"no network is named {unknown[0]!r}; there are: {', '.join(NETWORKS)}")
    return [
        VaeSettings.build(estimator=estimator, network=network, seed=seed, **{**(QUICK if quick else {}), **options})
        for network in NETWORKS
        if networks is None or network in networks
        for seed in range(seeds)
        for estimator in chosen
    ]


def reproduce_binary_vae(
    out: Path, runs: Sequence[VaeSettings], images: Images, *, progress: bool = False, tensorboard: bool = False
) -> Path:
    """Do the runs, each in a folder of its own under `out`, and return the path of the report on all runs in `out`.

    Called again with the same settings, it continues from the last checkpoint, with the same numbers on the same machine. More
    estimators, seeds or steps may be added later; other estimators and seeds may run in another process at the same time.

    progress: show a progress bar on standard error. tensorboard: write the metrics of each run as event files too.

    Raises GradestError if plots cannot be written or a run diverges, and InvalidInput if a folder holds other settings.
    """
    check_plots()
    out = Path(out)
    do_in_turn(
        runs,
        lambda run, show: train_vae(run, images, out / run.folder(), show, tensorboard=tensorboard),
        lambda run: f"{run.network} {run.build_estimator().label()}, seed {run.seed}",
        lambda run: run.steps,
        progress=progress,
    )
    return out / REPORT if rank() else write_report(out)
