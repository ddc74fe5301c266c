"""The ten commands of gradest itself."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from time import perf_counter
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from gradest.cli.arguments import SPEC, Json, Plugins, read_numbers, read_options, read_spec
from gradest.cli.plugins import list_failures
from gradest.errors import GradestError, InvalidInput

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["COMMANDS"]

_CHARTS = (".html", ".json", ".pdf", ".png", ".svg")

Kind = Literal["neuron", "estimator", "objective"]
Listing = Literal["neurons", "estimators", "objectives", "plugins"]
Dtype = Literal["float32", "float64", "bfloat16", "float16"]

Numbers = Annotated[
    str,
    typer.Option("--a", help='Pre-activations: "0.3,-1,2", a nested JSON array, a JSON file, or - for standard input.'),
]
Seed = Annotated[int | None, typer.Option(help="Seed of the noise. If omitted, a new seed is drawn and printed.")]
Url = Annotated[
    str | None,
    typer.Option("--url", help="Ask the service at this URL. If it needs an API key, set GRADEST_API_KEY."),
]
AsDtype = Annotated[Dtype, typer.Option(help="The floating-point type of the pre-activations.")]


def list_plugins(
    kind: Annotated[Listing | None, typer.Argument(help="What to list. If omitted, everything.")] = None,
    as_json: Json = False,
    markdown: Annotated[bool, typer.Option("--markdown", help="Print the estimators as a Markdown table.")] = False,
    kernels: Annotated[
        bool, typer.Option("--kernels", help="Show what computes each neuron on each device of this machine.")
    ] = False,
    url: Url = None,
) -> None:
    """Show what is registered, the plugins that did not load, and faults in the code of those that did."""
    from gradest.cli.backends import KINDS, find_backend
    from gradest.cli.display import print_json, show_catalog

    if markdown:
        from gradest.analysis.catalog import estimators_to_markdown

        if kind != "estimators" or url is not None:
            raise InvalidInput(
                "--markdown works for the estimators of this machine only: gradest list estimators --markdown, without --url"
            )
        print(estimators_to_markdown())
        return
    if kernels:
        from gradest.analysis.catalog import describe_kernels

        if kind is not None or url is not None:
            raise InvalidInput("--kernels works for all neurons of this machine only: gradest list --kernels")
        shown = describe_kernels()
    else:
        with find_backend(url) as backend:
            found = backend.catalog()
        if url is None:
            found["failures"] += [failure._asdict() for failure in list_failures(COMMANDS)]
        found["faults"] = [
            {"kind": of, "name": entry["name"], "fault": fault}
            for of in KINDS
            for entry in found[f"{of}s"]
            for fault in entry.get("faults", ())  # a service of an earlier version tells none
        ]
        shown = {name: rows for name, rows in found.items() if kind in (None, name) or name in ("failures", "faults")}
    if as_json:
        print_json(shown)
    else:
        show_catalog(shown)


def describe(
    name: Annotated[str, typer.Argument(help="The name of a neuron, an estimator or an objective.")],
    kind: Annotated[Kind | None, typer.Option(help="The kind of plugin, if several kinds have this name.")] = None,
    as_json: Json = False,
    url: Url = None,
) -> None:
    """Show one plugin: its formula, options, capabilities, bias and cost."""
    from gradest.cli.backends import KINDS, find_backend
    from gradest.cli.display import print_json, show_description

    with find_backend(url) as backend:
        catalog = backend.catalog()
        names = {of: [entry["name"] for entry in catalog[f"{of}s"]] for of in KINDS if kind in (None, of)}
        found = [of for of in names if name in names[of]]
        if len(found) > 1:
            raise InvalidInput(f"{name!r} is the name of {' and '.join(found)}: choose one with --kind")
        if not found:
            from gradest.discovery.registry import unknown_plugin

            raise unknown_plugin(kind or "plugin", name, sorted({known for of in names for known in names[of]}))
        (of,) = found
        description, text = backend.describe(of, name)
    description = {"kind": of, **description}
    if as_json:
        print_json(description)
    else:
        show_description(description, text)


def sample(
    neuron: Annotated[str, typer.Argument(help=f"The neuron: {SPEC}.")],
    a: Numbers,
    samples: Annotated[int, typer.Option(help="The number of samples of each unit.")] = 1,
    seed: Seed = None,
    option: Annotated[
        list[str] | None, typer.Option(help="An option of the neuron, key=value. It can be repeated.")
    ] = None,
    dtype: AsDtype = "float32",
    as_json: Json = False,
    url: Url = None,
) -> None:
    """Draw independent outputs of a neuron."""
    from gradest.cli.backends import find_backend
    from gradest.cli.display import print_json, show_samples
    from gradest.random import fresh_seed

    seed = fresh_seed() if seed is None else seed
    spec = {**read_spec(neuron), **read_options(option or [])}
    with find_backend(url) as backend:
        found = backend.sample(spec, _tensor(a, dtype), samples, seed)
    if as_json:
        print_json({"neuron": found.spec, "seed": seed, "h": found.h.tolist()})
    else:
        show_samples(found.label, seed, found.columns, found.h)


def compare(
    a: Numbers,
    neuron: Annotated[str, typer.Option(help=f"The neuron: {SPEC}.")] = "bernoulli",
    estimator: Annotated[
        list[str] | None,
        typer.Option(
            "--estimator",
            "--estimators",
            help=f"An estimator: {SPEC}. It can be repeated. If omitted, all that fit the neuron.",
        ),
    ] = None,
    objective: Annotated[str, typer.Option(help=f"The loss: {SPEC}.")] = "quadratic",
    draws: Annotated[int, typer.Option(help="The number of independent draws of each estimator.")] = 1000,
    seed: Seed = None,
    dtype: AsDtype = "float32",
    plot: Annotated[Path | None, typer.Option(help=f"Save a chart in this file, {', '.join(_CHARTS)}.")] = None,
    plugin: Plugins = None,
    as_json: Json = False,
    url: Url = None,
) -> None:
    """Compare estimators with the exact gradient: bias, variance and cost."""
    from gradest.cli.backends import find_backend
    from gradest.cli.display import Bars, print_json, show_comparison

    if plot is not None and plot.suffix not in _CHARTS:
        raise InvalidInput(f"--plot {plot}: the name of a chart must end in one of {', '.join(_CHARTS)}")
    unit, loss = read_spec(neuron), read_spec(objective)
    chosen = [read_spec(text) for text in estimator] if estimator else None
    with find_backend(url, plugin) as backend, Bars() as bars:
        comparison = backend.compare(
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
        except (ImportError, ValueError) as error:  # from altair, if a package that the format needs is not installed
            raise GradestError(f"--plot {plot}: {error}") from error


def recommend(
    neuron: Annotated[str, typer.Option(help=f"The neuron: {SPEC}.")] = "bernoulli",
    bring: Annotated[
        str,
        typer.Option(
            help="What your program can compute, separated by commas: loss, grad (dL/dh), relaxed (both also at points "
            "between the neuron's outputs)."
        ),
    ] = "loss",
    evaluations: Annotated[
        int | None, typer.Option(help="The most evaluations of the loss in a step. If omitted, any number.")
    ] = None,
    unbiased: Annotated[bool, typer.Option("--unbiased", help="Only unbiased estimators.")] = False,
    saturated: Annotated[
        bool, typer.Option("--saturated", help="Rank for saturated units, whose probabilities are near 0 or 1.")
    ] = False,
    units: Annotated[
        int | None, typer.Option(help="The number of units in an event, that is, of units with a joint loss.")
    ] = None,
    p: Annotated[
        float | None,
        typer.Option(help="For Bernoulli units, the probability of the rarer output, 0 or 1, mean over units."),
    ] = None,
    curvature: Annotated[
        float | None,
        typer.Option(
            help="For Bernoulli units, the share of the loss's variance that is not that of a sum over units: 1 - R² of a linear "
            "regression of the loss on the outputs."
        ),
    ] = None,
    objective: Annotated[
        str | None, typer.Option(help=f"Measure the estimators on this loss at the pre-activations --a: {SPEC}.")
    ] = None,
    a: Annotated[str | None, typer.Option(help="The pre-activations of the measurement, as for compare.")] = None,
    draws: Annotated[int, typer.Option(help="The number of draws of each estimator in the measurement.")] = 1000,
    seed: Seed = None,
    plugin: Plugins = None,
    as_json: Json = False,
    url: Url = None,
) -> None:
    """Rank the estimators that fit your case, with reasons: from certificates, the map of variance, or your own loss."""
    from gradest.cli.backends import find_backend
    from gradest.cli.display import print_json, show_recommendation

    with find_backend(url, plugin) as backend:
        found = backend.recommend(
            None if objective is None else read_spec(objective),
            neuron=read_spec(neuron),
            bring=[word.strip() for word in bring.split(",")],
            evaluations=evaluations,
            unbiased=unbiased,
            saturated=saturated,
            units=units,
            p=p,
            curvature=curvature,
            a=None if a is None else _tensor(a, "float32"),
            draws=draws,
            seed=seed,
        ).to_dict()
    if as_json:
        print_json(found)
    else:
        show_recommendation(found)


def certify(
    names: Annotated[list[str] | None, typer.Argument(help="Estimators to measure again.", metavar="NAME...")] = None,
    package: Annotated[
        str, typer.Option(help="The distribution, package or module that has the estimators or the neurons.")
    ] = "gradest_estimators",
    out: Annotated[Path, typer.Option(help="The folder in which certificates.md is written.")] = Path(),
    everything: Annotated[bool, typer.Option("--all", help="Measure all estimators again.")] = False,
    examples: Annotated[
        bool | None,
        typer.Option(
            help="Measure the package's plugins with each of their examples of options too. By default this is done for all "
            "packages but gradest's own."
        ),
    ] = None,
    as_json: Json = False,
) -> None:
    """Measure bias and variance of a package's estimators whose code has changed, and write certificates.

    Estimators of other packages are measured on the package's neurons. The package keeps the certificates in certificates.json,
    or a single module my_plugin.py beside it in my_plugin.certificates.json. After an interrupt, run the command again: it
    keeps what was measured.
    There is no --url: a certificate is of the code on this machine.
    """
    from gradest.cli.certifying import write_certificates

    write_certificates(names or [], package, out, everything, as_json, examples)


def docs(
    package: Annotated[
        str,
        typer.Option(help='The distribution, package or module that is described; "gradest" has all built-in plugins.'),
    ] = "gradest",
    out: Annotated[Path, typer.Option(help="The folder in which the pages are written.")] = Path("pages"),
) -> None:
    """Write a page in Markdown for each neuron, estimator and objective of a package, with pictures.

    A page has the formula, the options, what fits, an example, the measurements of the certificates and the source. The site of
    gradest has such pages of gradest's own plugins. There is no --url: the pages describe the code on this machine.
    """
    from gradest.analysis.pages.plugins import write_pages

    print(f"{len(write_pages(package, out))} pages are written in {out}")


def new_plugin(
    name: Annotated[str, typer.Argument(help="The name of the plugin's distribution, such as my-plugin.")],
    directory: Annotated[Path, typer.Option(help="The folder in which the plugin's folder is made.")] = Path(),
) -> None:
    """Write a package to start a plugin from: a neuron, an estimator, their tests and a CI file."""
    from gradest.cli.scaffold import write_plugin

    folder = write_plugin(name, directory)
    print(f"{folder} is written. Next: pip install -e '{folder}[test]', then `gradest check {folder}`")


def check(
    plugin: Annotated[
        str, typer.Argument(help="A .py file, a project's folder, an installed distribution or a module.")
    ],
    fast: Annotated[bool, typer.Option("--fast", help="Leave out the measurement of bias.")] = False,
    as_json: Json = False,
) -> None:
    """Run the conformance kit on a plugin. The exit code is 1 if a check fails.

    There is no --url: the plugin's code is on this machine, and a service runs only plugins that its owner installed.
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


def _tensor(text: str, dtype: Dtype) -> Tensor:
    import torch

    numbers = read_numbers(text)
    try:
        return torch.tensor(numbers, dtype=getattr(torch, dtype))
    except (TypeError, ValueError, RuntimeError, OverflowError) as error:
        raise InvalidInput("--a: give numbers, or a rectangular nested array of numbers") from error


def warm(as_json: Json = False) -> None:
    """Compile all kernels for the CPU and keep them on disk, so that no first use has to wait for them."""
    import os

    from gradest.cli.display import Bars, print_json

    os.environ["GRADEST_KERNELS"] = "cpu"
    try:
        from gradest.kernels.cpu.compilation.compiler import folder
        from gradest.kernels.cpu.compilation.warm import calls
    except ImportError as error:
        raise InvalidInput(f"the kernels for the CPU need numba, which cannot be imported: {error}") from error
    started, kernels = perf_counter(), calls()
    with Bars() as bars:
        for done, call in enumerate(kernels):
            bars.show("kernels", done, len(kernels))
            call()
    found = {"kernels": len(kernels), "folder": folder(), "seconds": round(perf_counter() - started, 1)}
    if as_json:
        print_json(found)
    else:
        typer.echo(f"{found['kernels']} kernels are ready after {found['seconds']} s, kept in {found['folder']}")


COMMANDS: dict[str, Callable[..., Any]] = {
    "list": list_plugins,
    "describe": describe,
    "sample": sample,
    "compare": compare,
    "recommend": recommend,
    "certify": certify,
    "docs": docs,
    "new-plugin": new_plugin,
    "check": check,
    "warm": warm,
}
"""The commands by name, in the order of `gradest --help`."""
