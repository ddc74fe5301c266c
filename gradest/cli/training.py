"""`gradest train`, whose flags are the settings of a run, and `gradest reproduce`, where it trains."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from gradest.cli.arguments import Json, build_settings, read_spec, settings_command
from gradest.cli.display import print_json, show
from gradest.errors import InvalidInput
from gradest_experiments import training
from gradest_experiments.bengio2013.rows import choose_rows
from gradest_experiments.bengio2013.run import reproduce_bengio2013
from gradest_experiments.blocks.run import reproduce_block_gated
from gradest_experiments.blocks.settings import list_runs as list_block_runs
from gradest_experiments.data import load, load_or_fetch
from gradest_experiments.gaters import compare_gaters, to_table
from gradest_experiments.settings import Settings
from gradest_experiments.vae.images import load_images
from gradest_experiments.vae.run import list_runs, reproduce_binary_vae
from gradest_experiments.vae.settings import Kl

__all__ = ["reproduce_blocks", "reproduce_table", "reproduce_vae", "train"]


def _train(
    given: dict[str, Any],
    *,
    out: Annotated[Path | None, typer.Option(help="A folder for checkpoints, results and weights.")] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on from the checkpoint in --out.")] = False,
    gaters: Annotated[bool, typer.Option("--gaters", help="Train the source's gaters, one after the other.")] = False,
    tensorboard: Annotated[bool, typer.Option("--tensorboard", help="Write event files into --out too.")] = False,
    as_json: Json = False,
) -> None:
    """Train the gated network of the source's experiment (arXiv 1308.3432, section 5) through any neuron and estimator.

    There is no --url: the network, its data and its loss are here.
    """
    specs: dict[str, Any] = {name: read_spec(given[name]) for name in ("neuron", "estimator") if name in given}
    settings = build_settings(Settings, {**given, **specs})
    if gaters and specs:
        raise InvalidInput(f"--gaters brings its own neurons and estimators: leave out --{' and --'.join(specs)}")
    if tensorboard and out is None:
        raise InvalidInput("--tensorboard needs a folder to write to: give --out")
    if gaters:
        options = {name: getattr(settings, name) for name in given}
        results = compare_gaters(**options, out=out, resume=resume, progress=True, tensorboard=tensorboard)
    else:
        results = [training.train(settings, out=out, resume=resume, progress=True, tensorboard=tensorboard)]
    if as_json:
        runs = [result.model_dump(mode="json") for result in results]
        print_json(runs if gaters else runs[0])
    else:
        show(to_table(results))


train = settings_command(Settings, _train)


def reproduce_vae(
    out: Path,
    data_dir: Path | None,
    estimators: list[str],
    networks: list[str],
    steps: int | None,
    samples: int,
    seeds: int,
    kl: Kl,
    quick: bool,
    tensorboard: bool,
) -> None:
    """Do the runs, and print the report's path."""
    specs = [read_spec(text) for text in estimators] or None
    given = {} if steps is None else {"steps": steps}
    runs = list_runs(specs, networks or None, samples=samples, seeds=seeds, quick=quick, kl=kl, **given)
    print(reproduce_binary_vae(out, runs, load_images(data_dir), progress=True, tensorboard=tensorboard))


def reproduce_blocks(
    out: Path,
    data_dir: Path | None,
    estimators: list[str],
    sizes: list[str],
    seeds: int,
    quick: bool,
    tensorboard: bool,
    **given: Any,
) -> None:
    """Do the runs, and print the report's path. given: of `BlockSettings`; what is None has its default."""
    specs = [read_spec(text) for text in estimators] or None
    options = {name: value for name, value in given.items() if value is not None}
    runs = list_block_runs(specs, sizes or None, seeds=seeds, quick=quick, **options)
    print(reproduce_block_gated(out, runs, load("mnist", data_dir), progress=True, tensorboard=tensorboard))


def reproduce_table(out: Path, data_dir: Path | None, rows: list[str], epochs: int | None, **options: Any) -> None:
    """Do the runs, and print the report's path."""
    given = options if epochs is None else {**options, "epochs": epochs}
    chosen = choose_rows(rows or None)
    print(reproduce_bengio2013(out, chosen, load_or_fetch(data_dir), progress=True, **given))
