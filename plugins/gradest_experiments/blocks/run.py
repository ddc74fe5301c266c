"""`reproduce_block_gated`: every network and seed, their speed, and the report."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from gradest_experiments.blocks.network import BlockNetwork
from gradest_experiments.blocks.report import SPEED, write_report
from gradest_experiments.blocks.settings import BlockSettings, Size
from gradest_experiments.blocks.speed import measure_speed
from gradest_experiments.blocks.training import train_blocks
from gradest_experiments.engine.checkpoint import write_atomically
from gradest_experiments.engine.data import Dataset
from gradest_experiments.engine.display import do_in_turn
from gradest_experiments.engine.plot import check_plots

__all__ = ["reproduce_block_gated"]


def reproduce_block_gated(
    out: Path,
    runs: Sequence[tuple[Size, BlockSettings]],
    data: Dataset,
    *,
    progress: bool = False,
    tensorboard: bool = False,
) -> Path:
    """Do the runs, each in a folder of its own under `out`, and return the path of the report on all runs in `out`.

    The speed of the first seed's networks is measured afterwards. Called again with the same settings, it continues from the
    last checkpoint, with the same numbers on the same machine, and measures speed again. More estimators, sizes, seeds or
    epochs may be added later.

    progress: show a progress bar on standard error. tensorboard: write the metrics of each run as event files too.

    Raises GradestError if plots cannot be written or a run diverges, and InvalidInput if a folder holds other settings.
    """
    check_plots()
    out = Path(out)
    trained = do_in_turn(
        runs,
        lambda one, show: train_blocks(one[1], data, out / one[1].folder(one[0]), show, tensorboard=tensorboard),
        lambda one: f"{one[0]} {one[1].label()}, seed {one[1].seed}",
        lambda one: one[1].epochs,
        progress=progress,
    )
    networks: dict[Size, dict[str, BlockNetwork]] = {}
    for (size, run), network in zip(runs, trained, strict=True):
        networks.setdefault(size, {}).setdefault(run.label(), network)
    for size, group in networks.items():
        _save(out / size / SPEED, measure_speed(group, data.test.x))
    return write_report(out)


def _save(path: Path, rows: list[dict[str, Any]]) -> None:
    write_atomically(path, lambda new: new.write_text(json.dumps(rows) + "\n", encoding="utf-8"))
