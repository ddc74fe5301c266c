"""The commands `gradest train`, `reproduce`, `benchmark`, `leaderboard`, `report` and `demo`.

They are entry points of the group `gradest.commands`. A command imports what it needs when it runs, so that `gradest demo --help`
does not wait for torch.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from gradest.cli.arguments import SPEC, Json, Plugins, build_settings, command, read_spec, settings_command
from gradest.errors import InvalidInput

__all__ = ["benchmark", "demo", "leaderboard", "report", "reproduce", "train"]

DataDir = Annotated[Path | None, typer.Option(help="The folder of MNIST's IDX files. If omitted, $GRADEST_DATA.")]
Out = Annotated[Path, typer.Option(help="The folder for runs, plots (SVG, PNG) and report.md.")]
Seeds = Annotated[int, typer.Option(min=1, help="The number of runs of each kind; their seeds are 0, 1, ...")]
Tensorboard = Annotated[bool, typer.Option("--tensorboard", help="Also write TensorBoard event files of each run.")]


def train(arguments: Sequence[str], *, prog_name: str) -> None:
    """Train the gated network of Bengio et al. (2013), or with `belief` a sigmoid belief network, by any estimator."""
    from gradest_experiments.belief.settings import BeliefSettings
    from gradest_experiments.gated.settings import GatedSettings

    if [*arguments[:1]] == ["belief"]:
        settings_command(BeliefSettings, _train_belief)(arguments[1:], prog_name=f"{prog_name} belief")
    else:
        settings_command(GatedSettings, _train)(arguments, prog_name=prog_name)


def _train(
    given: dict[str, Any],
    *,
    out: Annotated[Path | None, typer.Option(help="The folder for checkpoints, results and weights.")] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Continue from the checkpoint in --out.")] = False,
    gaters: Annotated[
        bool, typer.Option("--gaters", help="Train the gaters of Bengio et al. (2013) one after the other.")
    ] = False,
    tensorboard: Annotated[
        bool, typer.Option("--tensorboard", help="Also write TensorBoard event files into --out.")
    ] = False,
    plugin: Plugins = None,
    as_json: Json = False,
) -> None:
    """Train the gated network of Bengio et al. (2013) (arXiv 1308.3432, section 5) through any neuron and estimator.

    `gradest train belief` trains a sigmoid belief network instead: see its --help.

    There is no --url: the network, its data and its loss are on this machine.
    """
    from gradest.cli.display import print_json, show
    from gradest_experiments.gated.gaters import compare_gaters, to_table
    from gradest_experiments.gated.settings import GatedSettings
    from gradest_experiments.gated.training import train as train_gated

    specs: dict[str, Any] = {name: read_spec(given[name]) for name in ("neuron", "estimator") if name in given}
    settings = build_settings(GatedSettings, {**given, **specs})
    if gaters and specs:
        raise InvalidInput(f"--gaters has its own neurons and estimators: omit --{' and --'.join(specs)}")
    if tensorboard and out is None:
        raise InvalidInput("--tensorboard needs a folder to write to: give --out")
    if gaters:
        options = {name: getattr(settings, name) for name in given}
        results = compare_gaters(**options, out=out, resume=resume, progress=True, tensorboard=tensorboard)
    else:
        results = [train_gated(settings, out=out, resume=resume, progress=True, tensorboard=tensorboard)]
    if as_json:
        runs = [result.model_dump(mode="json") for result in results]
        print_json(runs if gaters else runs[0])
    else:
        show(to_table(results))


def _train_belief(
    given: dict[str, Any],
    *,
    out: Annotated[Path, typer.Option(help="The folder for runs, each in a folder of its own.")] = Path("runs/belief"),
    data_dir: DataDir = None,
    tensorboard: Tensorboard = False,
    plugin: Plugins = None,
) -> None:
    """Train a sigmoid belief network on MNIST, with several stochastic layers and K whole-path samples.

    It is the benchmark of Mnih and Gregor (2014), arXiv 1402.0030, and of Mnih and Rezende (2016), arXiv 1602.06725.

    Run again with the same folder, it continues where it stopped; with more --epochs, where the run ended.

    There is no --url: the network, its data and its loss are on this machine.
    """
    from gradest.cli.display import show_rows
    from gradest_experiments.belief.run import COLUMNS, run_belief, to_rows
    from gradest_experiments.belief.settings import BeliefSettings
    from gradest_experiments.engine.images import load_images

    spec = {name: read_spec(given[name]) for name in ("estimator",) if name in given}
    settings = build_settings(BeliefSettings, {**given, **spec})
    path = out / settings.folder()
    run = run_belief(settings, load_images(data_dir), path, progress=True, tensorboard=tensorboard)
    show_rows(COLUMNS, to_rows(run), title=settings.describe(), caption=str(path))


reproduce = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    help="Reproduce published experiments with every estimator.",
)


@reproduce.command()
def toys(
    out: Annotated[Path, typer.Option(help="The folder for data (JSON), plots (SVG, PNG) and report.md.")] = Path(
        "runs/toys"
    ),
    part: Annotated[
        list[str] | None,
        typer.Option(
            help="The part to run: quadratic, learning, probability, polynomial or subsets. It can be repeated. If omitted, all."
        ),
    ] = None,
    estimators: Annotated[
        list[str] | None,
        typer.Option(
            "--estimators",
            "--estimator",
            help=f"An estimator: {SPEC}. It can be repeated. If omitted, those of each part. A part that none fits is left out.",
        ),
    ] = None,
    quick: Annotated[bool, typer.Option("--quick", help="Use few draws and steps: half a minute.")] = False,
    seed: Annotated[int, typer.Option(min=0, help="Seed of the noise.")] = 0,
    plugin: Plugins = None,
) -> None:
    """Run the small problems by which papers compare estimators: variance, learning, bias. This takes some minutes.

    Run again with the same folder, it continues after the last task that was done. There is no --url: training happens on this
    machine.
    """
    from gradest_experiments.toys.run import choose, reproduce_toys

    specs = [read_spec(text) for text in estimators or []] or None
    print(reproduce_toys(out, choose(part, quick=quick, seed=seed, estimators=specs), progress=True))


@reproduce.command("binary-vae")
def binary_vae(
    out: Out = Path("runs/binary-vae"),
    data_dir: DataDir = None,
    estimators: Annotated[
        list[str] | None,
        typer.Option(
            "--estimators", "--estimator", help=f"An estimator: {SPEC}. It can be repeated. If omitted, eight of them."
        ),
    ] = None,
    network: Annotated[
        list[str] | None, typer.Option(help="linear or nonlinear. It can be repeated. If omitted, both.")
    ] = None,
    steps: Annotated[
        int | None, typer.Option(help="The training steps of each run.", show_default="20000; with --quick 500")
    ] = None,
    samples: Annotated[
        int, typer.Option(min=2, help="The number K of samples, for each estimator that has this option.")
    ] = 2,
    seeds: Seeds = 1,
    kl: Annotated[
        Literal["sampled", "analytic"],
        typer.Option(help="Whether log q is part of the loss, as published, or KL is computed in closed form."),
    ] = "sampled",
    quick: Annotated[bool, typer.Option("--quick", help="Use few steps, draws and test images: some minutes.")] = False,
    tensorboard: Tensorboard = False,
    plugin: Plugins = None,
) -> None:
    """Train a variational autoencoder with 200 binary latents on MNIST, the common benchmark. This takes hours.

    Run again with the same folder, it continues where it stopped; with a larger --steps, where the runs ended.
    """
    from gradest_experiments.engine.images import load_images
    from gradest_experiments.vae.run import list_runs, reproduce_binary_vae

    specs = [read_spec(text) for text in estimators or []] or None
    given = {} if steps is None else {"steps": steps}
    runs = list_runs(specs, network or None, samples=samples, seeds=seeds, quick=quick, kl=kl, **given)
    print(reproduce_binary_vae(out, runs, load_images(data_dir), progress=True, tensorboard=tensorboard))


@reproduce.command("block-gated")
def block_gated(
    out: Out = Path("runs/block-gated"),
    data_dir: DataDir = None,
    estimators: Annotated[
        list[str] | None,
        typer.Option(
            "--estimators",
            "--estimator",
            help=f"An estimator of the policy's gradient: {SPEC}. It can be repeated. If omitted, those of five that fit.",
        ),
    ] = None,
    neuron: Annotated[
        str,
        typer.Option(
            help="The gates: independent units, or categorical (one block is open) or k_subset:k=2 (two are)."
        ),
    ] = "bernoulli",
    size: Annotated[
        list[str] | None,
        typer.Option(help="Blocks x units of a block, 16x16 or 64x64. It can be repeated. If omitted, 16x16."),
    ] = None,
    epochs: Annotated[
        int | None, typer.Option(help="The epochs of each run.", show_default="40; with --quick 2")
    ] = None,
    learning_rate: Annotated[
        float | None,
        typer.Option(
            help="The learning rate, for losses summed over a minibatch.", show_default="0.006; published 0.001"
        ),
    ] = None,
    policy_rate: Annotated[
        float | None,
        typer.Option(help="The learning rate of the policy, likewise.", show_default="0.001; published 0.00005"),
    ] = None,
    sparsity: Annotated[
        float | None, typer.Option(help="The weight of the penalty on how many blocks are open.", show_default="200")
    ] = None,
    variance: Annotated[
        float | None,
        typer.Option(help="The weight of the variance over images, which is to be large.", show_default="200"),
    ] = None,
    dense: Annotated[
        list[int] | None,
        typer.Option(help="The units of another dense network. It can be repeated."),
    ] = None,
    seeds: Seeds = 1,
    quick: Annotated[bool, typer.Option("--quick", help="Use few epochs and images: a minute.")] = False,
    tensorboard: Tensorboard = False,
    plugin: Plugins = None,
) -> None:
    """Train networks in which a policy opens few blocks of a layer for each MNIST image, beside dense networks. Half an hour.

    Run again with the same folder, it continues where it stopped.
    """
    from gradest_experiments.blocks.run import reproduce_block_gated
    from gradest_experiments.blocks.settings import list_runs
    from gradest_experiments.engine.data import load

    specs = [read_spec(text) for text in estimators or []] or None
    rates = {"learning_rate": learning_rate, "policy_rate": policy_rate}
    options = {"epochs": epochs, **rates, "sparsity": sparsity, "variance": variance}
    given: dict[str, Any] = {name: value for name, value in options.items() if value is not None}
    runs = list_runs(specs, size or None, dense or (), neuron=read_spec(neuron), seeds=seeds, quick=quick, **given)
    print(reproduce_block_gated(out, runs, load("mnist", data_dir), progress=True, tensorboard=tensorboard))


@reproduce.command()
def experts(
    out: Out = Path("runs/experts"),
    data_dir: DataDir = None,
    estimators: Annotated[
        list[str] | None,
        typer.Option(
            "--estimators",
            "--estimator",
            help=f"An estimator of the router's gradient: {SPEC}. It can be repeated. If omitted, five of them.",
        ),
    ] = None,
    epochs: Annotated[
        int | None, typer.Option(help="The epochs of each run.", show_default="10; with --quick 2")
    ] = None,
    balance: Annotated[
        float | None, typer.Option(help="The weight of the penalty on unequal loads.", show_default="0.1")
    ] = None,
    seeds: Seeds = 1,
    quick: Annotated[bool, typer.Option("--quick", help="Use few epochs and images: half a minute.")] = False,
    tensorboard: Tensorboard = False,
    plugin: Plugins = None,
) -> None:
    """Train routers that send each MNIST image to one or two of 16 experts, beside dense networks. Ten minutes.

    Run again with the same folder, it continues where it stopped.
    """
    from gradest_experiments.engine.data import load
    from gradest_experiments.experts.run import reproduce_experts
    from gradest_experiments.experts.settings import list_runs

    specs = [read_spec(text) for text in estimators or []] or None
    options = {"epochs": epochs, "balance": balance}
    given: dict[str, Any] = {name: value for name, value in options.items() if value is not None}
    runs = list_runs(specs, seeds=seeds, quick=quick, **given)
    print(reproduce_experts(out, runs, load("mnist", data_dir), progress=True, tensorboard=tensorboard))


@reproduce.command()
def bengio2013(
    out: Out = Path("runs/bengio2013"),
    data_dir: Annotated[
        Path | None,
        typer.Option(
            help="The folder of MNIST's IDX files. If omitted, $GRADEST_DATA; without that, they are fetched from OpenML."
        ),
    ] = None,
    rows: Annotated[
        list[str] | None,
        typer.Option(
            help="A row of the table, such as straight_through. It can be repeated. If omitted, seven of them."
        ),
    ] = None,
    estimators: Annotated[
        list[str] | None,
        typer.Option(
            "--estimators",
            "--estimator",
            help=f"An estimator of the gates' gradient: {SPEC}. It can be repeated, and has a row of its own. With it, only the "
            "rows that are named by --rows are run beside it.",
        ),
    ] = None,
    as_stated: Annotated[
        bool,
        typer.Option(
            "--as-stated",
            help="Use the settings of the paper, with a constant learning rate, in place of those of trials.",
        ),
    ] = False,
    seeds: Seeds = 1,
    epochs: Annotated[
        int | None, typer.Option(min=1, help="The epochs of each run. If omitted, as many as take 15 minutes.")
    ] = None,
    minutes: Annotated[
        float | None, typer.Option(min=0, help="The length of each run: as many epochs as this machine does in it.")
    ] = None,
    search: Annotated[
        bool, typer.Option("--search", help="First choose each row's settings by validation error, in short runs.")
    ] = False,
    quick: Annotated[bool, typer.Option("--quick", help="Train two epochs of 20,000 images: three minutes.")] = False,
    device: Annotated[str, typer.Option(help="A torch device.")] = "cpu",
    tensorboard: Tensorboard = False,
    plugin: Plugins = None,
) -> None:
    """Reproduce the table of Bengio et al. (2013), who introduced these neurons: 2000 gated experts on MNIST. Two hours.

    Run again with the same folder, it continues where it stopped.
    """
    from gradest_experiments.bengio2013.rows import choose_rows, row_for
    from gradest_experiments.bengio2013.run import reproduce_bengio2013
    from gradest_experiments.engine.data import load_or_fetch

    if epochs is not None and minutes is not None:
        raise InvalidInput("--epochs and --minutes both set the length of a run: give one of them")
    options: dict[str, Any] = {} if epochs is None else {"epochs": epochs}
    options |= {"seeds": seeds, "minutes": minutes, "search": search, "quick": quick, "device": device}
    specs = [read_spec(text) for text in estimators or []]
    chosen = choose_rows(rows or ([] if specs else None))
    if as_stated:
        chosen = [row.as_stated() for row in chosen]
    chosen += [row_for(spec) for spec in specs]
    data = load_or_fetch(data_dir)
    print(reproduce_bengio2013(out, chosen, data, progress=True, tensorboard=tensorboard, **options))


@command
def benchmark(
    estimators: Annotated[
        list[str] | None,
        typer.Option(
            "--estimators",
            "--estimator",
            help=f"An estimator: {SPEC}. It can be repeated. If omitted, all that fit, with their default options.",
        ),
    ] = None,
    problem: Annotated[
        list[str] | None,
        typer.Option(help="A problem, such as polynomial-2. It can be repeated. If omitted, all that need no data."),
    ] = None,
    quick: Annotated[bool, typer.Option("--quick", help="Use small sizes: minutes for one estimator.")] = False,
    seeds: Seeds = 3,
    out: Annotated[Path, typer.Option(help="The folder for runs, results (JSON), plots and report.md.")] = Path(
        "runs/benchmark"
    ),
    kept: Annotated[
        Path | None, typer.Option(help="The folder of the results to stand beside.", show_default="gradest's own")
    ] = None,
    keep: Annotated[bool, typer.Option("--keep", help="Add the results to the kept ones.")] = False,
    plugin: Plugins = None,
) -> None:
    """Run estimators on a fixed set of problems, and rank them among the results that are kept with gradest.

    For example: gradest benchmark --quick --estimators mine --plugin my.py

    Run again with the same folder, it continues where it stopped; more estimators, problems and seeds can be added. `gradest
    leaderboard` shows the kept results without running anything.
    """
    from gradest.analysis.leaderboard import kept_results
    from gradest_experiments.benchmark.problems import choose_problems
    from gradest_experiments.benchmark.run import list_benchmark_runs, run_benchmark

    specs = [read_spec(text) for text in estimators or []] or None
    size: Literal["quick", "full"] = "quick" if quick else "full"
    runs, reasons = list_benchmark_runs(choose_problems(problem or None, size), size, specs, seeds)
    home = kept_results() if kept is None else kept
    page = run_benchmark(out, runs, home, keep=keep, progress=True)
    if specs is not None:
        for place, reason in reasons.items():
            print(f"not run on {place}: {reason}")
    print(page)


@command
def leaderboard(
    problem: Annotated[
        list[str] | None,
        typer.Option(help="A problem, such as polynomial-2. It can be repeated. If omitted, all."),
    ] = None,
    results: Annotated[
        Path | None,
        typer.Option(
            help="A folder of results to show beside the kept ones, such as runs/benchmark/results.", metavar="PATH"
        ),
    ] = None,
    as_json: Json = False,
) -> None:
    """Show the results that are kept with gradest: the place of each estimator on each problem."""
    from gradest.analysis.leaderboard import (
        STANDING_COLUMNS,
        board_to_dict,
        join_boards,
        kept_results,
        read_boards,
        standings,
        to_row,
    )
    from gradest.cli.display import print_json, show_rows

    own = [] if results is None else read_boards(results)
    if results is not None and not own:
        raise InvalidInput(f"there are no results in {results}; give the folder results of a benchmark's --out")
    boards = join_boards(read_boards(kept_results()), own)
    known = {board.problem.name for board in boards}
    if unknown := sorted({*(problem or ())} - known):
        raise InvalidInput(
            f"there are no results on {unknown[0]!r}; there are on: {', '.join(sorted(known)) or 'none'}"
        )
    shown = [board for board in boards if not problem or board.problem.name in problem]
    if as_json:
        print_json([board_to_dict(board) for board in shown])
        return
    for board in shown:
        about = board.problem
        caption = f"{about.metric}, in {about.unit}; the {about.better} the better. Tuned: {about.tuned}"
        show_rows(STANDING_COLUMNS, map(to_row, standings(board)), f"{about.key}: {about.title}", caption, always=3)


@command
def report(
    runs: Annotated[
        list[Path], typer.Argument(help="Folders of runs, or folders that contain some.", metavar="RUN...")
    ],
    out: Annotated[
        Path | None,
        typer.Option(help="The folder for report.html and PNG files. If omitted, RUN itself, if there is only one."),
    ] = None,
) -> None:
    """Write a self-contained HTML page of runs: settings, versions, results and a chart of every metric."""
    from gradest_experiments.report import write_report

    if out is None and len(runs) > 1:
        raise InvalidInput("a report of several folders needs a folder of its own: give --out")
    print(write_report(runs, out or runs[0]))


@command
def demo(
    out: Annotated[Path, typer.Option(help="The folder for the page with the pictures.")] = Path("runs/demo"),
    seed: Annotated[int, typer.Option(min=0, help="Seed of all noise.")] = 0,
    full: Annotated[
        bool, typer.Option("--full", help="Also print tables of all plugins, of samples, and of many estimators.")
    ] = False,
) -> None:
    """Show in a minute what gradest does, in four scenes, and write a page with their pictures."""
    from gradest_experiments.demo.run import run

    run(out, seed, full=full)
