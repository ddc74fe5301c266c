"""The command line, `gradest`. Tables are for people; --json prints JSON, and nothing else, on standard output.

What a command needs is imported when it runs: torch takes seconds, and `gradest --help` should not.
"""

from __future__ import annotations

import sys
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from gradest.cli.arguments import Json, read_numbers, read_options, read_spec, settings_command
from gradest.errors import GradestError, InvalidInput

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["app", "main"]

_PASS_ON = {"allow_extra_args": True, "ignore_unknown_options": True}  # to a command line of the command's own
_CHARTS = (".html", ".json", ".pdf", ".png", ".svg")

app = typer.Typer(no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False)
reproduce = typer.Typer(no_args_is_help=True, help="Run again what papers report, with every estimator.")
app.add_typer(reproduce, name="reproduce")


Kind = Literal["neuron", "estimator", "objective"]
Listing = Literal["neurons", "estimators", "objectives", "plugins"]
Dtype = Literal["float32", "float64", "bfloat16", "float16"]

Numbers = Annotated[
    str,
    typer.Option("--a", help='Pre-activations: "0.3,-1,2", a nested JSON array, a JSON file, or - for standard input.'),
]
Seed = Annotated[int | None, typer.Option(help="Of the noise; a fresh one, which is reported, if not given.")]
Url = Annotated[
    str | None,
    typer.Option("--url", help="Ask the service there, with the API key in GRADEST_API_KEY if it needs one."),
]
AsDtype = Annotated[Dtype, typer.Option(help="The type in which --a is read.")]
_SPEC = "a name, name:key=value,key=value, or JSON"
Tensorboard = Annotated[bool, typer.Option("--tensorboard", help="Write event files of each run too.")]


def main() -> None:
    """Run the command line; an error that gradest raises on purpose is one line on standard error, and exit code 1."""
    try:
        app()
    except (GradestError, OSError) as error:
        sys.exit(f"gradest: {' '.join(str(error).split())}")


def _version(given: bool) -> None:
    if given:
        print(version("gradest"))
        raise typer.Exit


@app.callback()
def _global(
    _: Annotated[bool, typer.Option("--version", is_eager=True, callback=_version, help="Print the version.")] = False,
) -> None:
    """Stochastic neurons, estimators of their gradients, and how they compare.

    Commands with --url ask a service; the others work on code, files and processors that are here.
    """


@app.command("list")
def list_plugins(
    kind: Annotated[Listing | None, typer.Argument(help="All kinds if not given.")] = None,
    as_json: Json = False,
    markdown: Annotated[bool, typer.Option("--markdown", help="Print estimators as a Markdown table.")] = False,
    kernels: Annotated[
        bool, typer.Option("--kernels", help="Show what computes each neuron, on each device of this machine.")
    ] = False,
    url: Url = None,
) -> None:
    """Show what is registered, and the plugins that did not load."""
    from gradest.analysis.catalog import describe_kernels, estimators_to_markdown
    from gradest.cli.display import print_json, show_catalog
    from gradest.cli.source import find_source

    if markdown:
        if kind != "estimators" or url is not None:
            raise InvalidInput(
                "--markdown is for the estimators here: gradest list estimators --markdown, without --url"
            )
        print(estimators_to_markdown())
        return
    if kernels:
        if kind is not None or url is not None:
            raise InvalidInput("--kernels is for all neurons, on this machine: gradest list --kernels")
        shown = describe_kernels()
    else:
        with find_source(url) as source:
            found = source.catalog()
        shown = {name: rows for name, rows in found.items() if kind in (None, name) or name == "failures"}
    if as_json:
        print_json(shown)
    else:
        show_catalog(shown)


@app.command()
def describe(
    name: Annotated[str, typer.Argument(help="Of a neuron, an estimator or an objective.")],
    kind: Annotated[Kind | None, typer.Option(help="Which it is, where the name is of several kinds.")] = None,
    as_json: Json = False,
    url: Url = None,
) -> None:
    """Show one plugin: its formula, options, capabilities, bias and cost."""
    from gradest.cli.display import print_json, show_description
    from gradest.cli.source import KINDS, find_source
    from gradest.discovery.registry import unknown_plugin

    with find_source(url) as source:
        catalog = source.catalog()
        names = {of: [entry["name"] for entry in catalog[f"{of}s"]] for of in KINDS if kind in (None, of)}
        found = [of for of in names if name in names[of]]
        if len(found) > 1:
            raise InvalidInput(f"{name!r} is the name of {' and '.join(found)}: say which with --kind")
        if not found:
            raise unknown_plugin(kind or "plugin", name, sorted({known for of in names for known in names[of]}))
        (of,) = found
        description, text = source.describe(of, name)
    description = {"kind": of, **description}
    if as_json:
        print_json(description)
    else:
        show_description(description, text)


@app.command()
def sample(
    neuron: Annotated[str, typer.Argument(help=f"The neuron: {_SPEC}.")],
    a: Numbers,
    samples: Annotated[int, typer.Option(help="How many.")] = 1,
    seed: Seed = None,
    option: Annotated[
        list[str] | None, typer.Option(help="An option of the neuron, key=value; may be repeated.")
    ] = None,
    dtype: AsDtype = "float32",
    as_json: Json = False,
    url: Url = None,
) -> None:
    """Draw independent outputs of a neuron."""
    from gradest.cli.display import print_json, show_samples
    from gradest.cli.source import find_source
    from gradest.random import fresh_seed

    seed = fresh_seed() if seed is None else seed
    spec = {**read_spec(neuron), **read_options(option or [])}
    with find_source(url) as source:
        found = source.sample(spec, _tensor(a, dtype), samples, seed)
    if as_json:
        print_json({"neuron": found.spec, "seed": seed, "h": found.h.tolist()})
    else:
        show_samples(found.label, seed, found.columns, found.h)


@app.command()
def compare(
    a: Numbers,
    neuron: Annotated[str, typer.Option(help=f"The neuron: {_SPEC}.")] = "bernoulli",
    estimator: Annotated[
        list[str] | None, typer.Option(help=f"An estimator: {_SPEC}; may be repeated. All that fit, if not given.")
    ] = None,
    objective: Annotated[str, typer.Option(help=f"The loss: {_SPEC}.")] = "quadratic",
    draws: Annotated[int, typer.Option(help="Independent draws of each estimator.")] = 1000,
    seed: Seed = None,
    dtype: AsDtype = "float32",
    plot: Annotated[Path | None, typer.Option(help=f"Save a chart: a file in {', '.join(_CHARTS)}.")] = None,
    as_json: Json = False,
    url: Url = None,
) -> None:
    """Hold estimators against the exact gradient: bias, variance and cost."""
    from gradest.cli.display import Bars, print_json, show_comparison
    from gradest.cli.source import find_source

    if plot is not None and plot.suffix not in _CHARTS:
        raise InvalidInput(f"--plot {plot}: the name of a chart ends in {', '.join(_CHARTS)}")
    unit, loss = read_spec(neuron), read_spec(objective)
    chosen = [read_spec(text) for text in estimator] if estimator else None
    with find_source(url) as source, Bars() as bars:
        comparison = source.compare(
            loss,
            a=_tensor(a, dtype),
            neuron=unit,
            estimators=chosen,
            draws=draws,
            seed=seed,
            progress=bars.show,
        )
    if as_json:
        print_json(comparison.to_dict())
    else:
        show_comparison(comparison.to_dict())
    if plot is not None:
        try:
            comparison.chart().save(plot)
        except (ImportError, ValueError) as error:  # altair's, where what it needs for the format is not installed
            raise GradestError(f"--plot {plot}: {error}") from error


@app.command()
def recommend(
    neuron: Annotated[str, typer.Option(help=f"The neuron: {_SPEC}.")] = "bernoulli",
    bring: Annotated[
        str,
        typer.Option(
            help="What you can bring, with commas: loss, grad (dL/dh), relaxed (both between the neuron's outputs too)."
        ),
    ] = "loss",
    evaluations: Annotated[
        int | None, typer.Option(help="Of the loss, that a step may cost; any if not given.")
    ] = None,
    unbiased: Annotated[bool, typer.Option("--unbiased", help="Only estimators without bias.")] = False,
    saturated: Annotated[
        bool, typer.Option("--saturated", help="The units are sure of themselves: p near 0 or 1.")
    ] = False,
    units: Annotated[int | None, typer.Option(help="In an event.")] = None,
    objective: Annotated[str | None, typer.Option(help=f"Measure on this loss, at --a: {_SPEC}.")] = None,
    a: Annotated[str | None, typer.Option(help="Pre-activations to measure at, as for compare.")] = None,
    draws: Annotated[int, typer.Option(help="Of the measurement.")] = 1000,
    seed: Seed = None,
    as_json: Json = False,
    url: Url = None,
) -> None:
    """Rank the estimators that fit your case, with reasons, from their certificates or by measuring on your loss."""
    from gradest.cli.display import print_json, show_recommendation
    from gradest.cli.source import find_source

    with find_source(url) as source:
        found = source.recommend(
            None if objective is None else read_spec(objective),
            neuron=read_spec(neuron),
            bring=[word.strip() for word in bring.split(",")],
            evaluations=evaluations,
            unbiased=unbiased,
            saturated=saturated,
            units=units,
            a=None if a is None else _tensor(a, "float32"),
            draws=draws,
            seed=seed,
        ).to_dict()
    if as_json:
        print_json(found)
    else:
        show_recommendation(found)


@app.command()
def certify(
    names: Annotated[list[str] | None, typer.Argument(help="Estimators to measure again.", metavar="NAME...")] = None,
    package: Annotated[str, typer.Option(help="The package whose estimators are meant.")] = "gradest_estimators",
    out: Annotated[Path, typer.Option(help="The folder in which CERTIFICATES.md is written.")] = Path(),
    everything: Annotated[bool, typer.Option("--all", help="Measure all of them again.")] = False,
    as_json: Json = False,
) -> None:
    """Measure bias and variance of a package's estimators, where the code has changed since, and write certificates.

    The package keeps them in certificates.json. What is interrupted goes on when it is run again. There is no --url: a
    certificate is of the code that is here.
    """
    from gradest.cli.certifying import write_certificates

    write_certificates(names or [], package, out, everything, as_json)


@app.command("new-plugin")
def new_plugin(
    name: Annotated[str, typer.Argument(help="Of the plugin's distribution, such as my-plugin.")],
    directory: Annotated[Path, typer.Option(help="The folder in which a folder of that name is made.")] = Path(),
) -> None:
    """Write a package with a neuron, an estimator, their tests and a CI file, to start a plugin from."""
    from gradest.cli.scaffold import write_plugin

    folder = write_plugin(name, directory)
    print(f"{folder} is there. Next: pip install -e '{folder}[test]', then `gradest check {folder}`")


@app.command()
def check(
    plugin: Annotated[
        str, typer.Argument(help="A .py file, a project's folder, an installed distribution or a module.")
    ],
    fast: Annotated[bool, typer.Option("--fast", help="Leave out the measurement of bias.")] = False,
    as_json: Json = False,
) -> None:
    """Run the conformance kit on somebody's plugin; exit code 1 if anything fails.

    There is no --url: the plugin's code is here, and a service runs only plugins that its owner installed.
    """
    from gradest.cli.display import Bars, print_json, show_report
    from gradest.discovery.entry_points import find
    from gradest.testing.suite import run_checks

    source = find(plugin)
    with Bars() as bars:
        report = run_checks(source, bias=not fast, progress=partial(bars.show, source.distribution))
    if as_json:
        print_json(report.to_dict())
    else:
        show_report(report.to_dict())
    raise typer.Exit(not report.passed)


@app.command(context_settings=_PASS_ON, add_help_option=False)
def train(context: typer.Context) -> None:
    """Train the gated network of the source's experiment (arXiv 1308.3432, section 5) through any neuron and estimator."""
    from gradest.cli.training import train

    train(context.args, prog_name=context.command_path)


@app.command(context_settings=_PASS_ON, add_help_option=False)
def serve(context: typer.Context) -> None:
    """Serve the registry over HTTP."""
    from gradest.cli.display import show_settings
    from gradest_service.admit.auth import new_key
    from gradest_service.app import serve
    from gradest_service.host.configuration import list_settings, load_settings
    from gradest_service.settings import Settings

    def run(
        given: dict[str, Any],
        *,
        config: Annotated[
            Path | None, typer.Option(help="A TOML file of settings; GRADEST_SERVICE_CONFIG too.")
        ] = None,
        show: Annotated[bool, typer.Option("--show-settings", help="Show settings and their sources; stop.")] = False,
        name: Annotated[
            str | None, typer.Option("--new-api-key", help="Make a key of this name and its line for --api-keys; stop.")
        ] = None,
    ) -> None:
        """Serve the registry over HTTP. A setting comes from its flag, GRADEST_SERVICE_NAME, or a file, in this order."""
        if name is not None:
            key, line = new_key(name)
            print(f"The key, which is not shown again: {key}", file=sys.stderr)
            print(line)
            return
        found = load_settings(given, config)
        if show:
            show_settings(list_settings(found))
        else:
            serve(found.settings)

    settings_command(Settings, run)(context.args, prog_name=context.command_path)


@reproduce.command()
def toys(
    out: Annotated[Path, typer.Option(help="A folder for data (JSON), plots (SVG, PNG) and report.md.")] = Path(
        "runs/toys"
    ),
    part: Annotated[
        list[str] | None,
        typer.Option(help="quadratic, learning, probability or polynomial; may be repeated. All, if not given."),
    ] = None,
    quick: Annotated[bool, typer.Option("--quick", help="Few draws and steps: half a minute.")] = False,
    seed: Annotated[int, typer.Option(min=0, help="Of the noise.")] = 0,
) -> None:
    """The small problems by which papers compare estimators: variance, learning, bias. Some minutes.

    Run again into the same folder, it goes on where it stopped. There is no --url: what is learned is here.
    """
    from gradest_experiments.toys.run import choose, reproduce_toys

    print(reproduce_toys(out, choose(part, quick=quick, seed=seed), progress=True))


@reproduce.command("binary-vae")
def binary_vae(
    out: Annotated[Path, typer.Option(help="A folder for runs, plots (SVG, PNG) and report.md.")] = Path(
        "runs/binary-vae"
    ),
    data_dir: Annotated[Path | None, typer.Option(help="Where MNIST's IDX files are; else $GRADEST_DATA.")] = None,
    estimators: Annotated[
        list[str] | None, typer.Option(help=f"An estimator: {_SPEC}; may be repeated. Eight, if not given.")
    ] = None,
    network: Annotated[
        list[str] | None, typer.Option(help="linear or nonlinear; may be repeated. Both, if not given.")
    ] = None,
    steps: Annotated[int | None, typer.Option(help="Of each run. [default: 20000; --quick: 500]")] = None,
    samples: Annotated[int, typer.Option(min=2, help="K, of each estimator that takes a number of samples.")] = 2,
    seeds: Annotated[int, typer.Option(min=1, help="Runs of each estimator: seeds 0, 1, ...")] = 1,
    kl: Annotated[
        Literal["sampled", "analytic"], typer.Option(help="log q inside the loss, as published, or KL in closed form.")
    ] = "sampled",
    quick: Annotated[bool, typer.Option("--quick", help="Few steps, draws and test images: some minutes.")] = False,
    tensorboard: Tensorboard = False,
) -> None:
    """The field's benchmark: a variational autoencoder with 200 binary latents on MNIST. Hours.

    Run again into the same folder, it goes on where it stopped; with more --steps, where the runs ended.
    """
    from gradest.cli.training import reproduce_vae

    reproduce_vae(out, data_dir, estimators or [], network or [], steps, samples, seeds, kl, quick, tensorboard)


@app.command()
def report(
    runs: Annotated[list[Path], typer.Argument(help="Folders of runs, or that hold some.", metavar="RUN...")],
    out: Annotated[
        Path | None, typer.Option(help="The folder for report.html and PNG files; RUN itself, if there is one.")
    ] = None,
) -> None:
    """Show runs as one HTML page that needs nothing beside it: settings, versions, figures, charts of every metric."""
    from gradest_experiments.report import write_report

    if out is None and len(runs) > 1:
        raise InvalidInput("a report of several folders needs a place: give --out")
    print(write_report(runs, out or runs[0]))


@reproduce.command("block-gated")
def block_gated(
    out: Annotated[Path, typer.Option(help="A folder for runs, plots (SVG, PNG) and report.md.")] = Path(
        "runs/block-gated"
    ),
    data_dir: Annotated[Path | None, typer.Option(help="Where MNIST's IDX files are; else $GRADEST_DATA.")] = None,
    estimators: Annotated[
        list[str] | None, typer.Option(help=f"Of the policy's gradient: {_SPEC}; may be repeated. Five, if not given.")
    ] = None,
    size: Annotated[
        list[str] | None, typer.Option(help="Blocks x units, 16x16 or 64x64; may be repeated. 16x16, if not given.")
    ] = None,
    epochs: Annotated[int | None, typer.Option(help="Of each run. [default: 40; --quick: 2]")] = None,
    learning_rate: Annotated[
        float | None, typer.Option(help="By the sum over a minibatch. [default: 0.006; published: 0.001]")
    ] = None,
    policy_rate: Annotated[
        float | None, typer.Option(help="The same, of the policy. [default: 0.001; published: 0.00005]")
    ] = None,
    seeds: Annotated[int, typer.Option(min=1, help="Runs of each network: seeds 0, 1, ...")] = 1,
    quick: Annotated[bool, typer.Option("--quick", help="Few epochs and images: a minute.")] = False,
    tensorboard: Tensorboard = False,
) -> None:
    """Conditional computation: a policy opens few blocks of a layer for each MNIST image, beside dense networks. Half an hour.

    Run again into the same folder, it goes on where it stopped.
    """
    from gradest.cli.training import reproduce_blocks

    options = {"epochs": epochs, "learning_rate": learning_rate, "policy_rate": policy_rate}
    reproduce_blocks(out, data_dir, estimators or [], size or [], seeds, quick, tensorboard, **options)


@reproduce.command()
def bengio2013(
    out: Annotated[Path, typer.Option(help="A folder for runs, plots (SVG, PNG) and report.md.")] = Path(
        "runs/bengio2013"
    ),
    data_dir: Annotated[
        Path | None,
        typer.Option(help="Where MNIST's IDX files are; else $GRADEST_DATA, else it is fetched from OpenML."),
    ] = None,
    rows: Annotated[
        list[str] | None,
        typer.Option(help="A row of the table, such as straight_through; may be repeated. Seven, if not given."),
    ] = None,
    seeds: Annotated[int, typer.Option(min=1, help="Runs of each row: seeds 0, 1, ...")] = 1,
    epochs: Annotated[int | None, typer.Option(min=1, help="Of each run; what takes 15 minutes, if not given.")] = None,
    minutes: Annotated[
        float | None, typer.Option(min=0, help="Of each run: as many epochs as this machine does in them.")
    ] = None,
    search: Annotated[
        bool, typer.Option("--search", help="Choose each row's settings by validation error first, in short runs.")
    ] = False,
    quick: Annotated[bool, typer.Option("--quick", help="Two epochs of 20,000 images: three minutes.")] = False,
    device: Annotated[str, typer.Option(help="A torch device.")] = "cpu",
    tensorboard: Tensorboard = False,
) -> None:
    """The table of the paper in which these neurons were introduced: gates of 2000 experts on MNIST. Two hours.

    Run again into the same folder, it goes on where it stopped.
    """
    from gradest.cli.training import reproduce_table

    if epochs is not None and minutes is not None:
        raise InvalidInput("--epochs and --minutes both say how long a run is: give one of them")
    runs = {"seeds": seeds, "minutes": minutes, "search": search, "quick": quick, "device": device}
    reproduce_table(out, data_dir, rows or [], epochs, tensorboard=tensorboard, **runs)


@app.command()
def demo() -> None:
    """Show what gradest does, in about two minutes."""
    from gradest_experiments.demo import run

    run()


def _tensor(text: str, dtype: Dtype) -> Tensor:
    import torch

    numbers = read_numbers(text)
    try:
        return torch.tensor(numbers, dtype=getattr(torch, dtype))
    except (TypeError, ValueError, RuntimeError, OverflowError) as error:
        raise InvalidInput("--a: give numbers, or a rectangular nested array of them") from error
