"""Output of the command line: tables for people, and JSON for scripts."""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from rich.console import Console, RenderableType
from rich.markup import escape
from rich.measure import Measurement
from rich.progress import Progress, TaskID
from rich.table import Table
from rich.text import Text

from gradest.analysis.markdown import type_in_words
from gradest.analysis.results import COMPARISON_COLUMNS, RECOMMENDATION_COLUMNS

if TYPE_CHECKING:
    from torch import Tensor

__all__ = [
    "Bars",
    "print_json",
    "show",
    "show_catalog",
    "show_comparison",
    "show_description",
    "show_recommendation",
    "show_report",
    "show_rows",
    "show_samples",
]

_MOST_ROWS = 100  # units whose samples are shown
_MOST_SAMPLES = 16  # samples of a unit that are shown
_WIDTH = 160  # columns if the output is not a terminal, so that a file is not wrapped at 80

Cells = Sequence[Any]


def print_json(value: Any) -> None:
    """Print a line of strict JSON, in which numbers that are not finite are "NaN", "Infinity" and "-Infinity"."""
    print(json.dumps(_finite(value), allow_nan=False))


def show(what: RenderableType) -> None:
    """Print an object of rich on standard output. Rich takes square brackets in a str for markup, but not those in a Text."""
    _console().print(what)


def _console() -> Console:
    return Console(width=None if sys.stdout.isatty() else _WIDTH, highlight=False)


def show_rows(
    head: Sequence[str], rows: Iterable[Cells], title: str = "", caption: str = "", always: int | None = None
) -> None:
    """Print a table, or nothing if there are no rows.

    always: how many columns, from the left, any terminal gets; where one is too narrow for all, further ones are left out, which
    the caption then names. By default all columns are shown, in as many lines as they need.
    """
    rows, columns, console = list(rows), len(head), _console()
    table = _to_table(head, rows, title, caption)
    while always is not None and columns > always and _width_of(table, console) > console.width:
        columns -= 1
        left_out = f"{caption} Left out, as the terminal is narrow: {', '.join(head[columns:])}."
        table = _to_table(head[:columns], (row[:columns] for row in rows), title, left_out)
    if rows:
        console.print(table)


def _to_table(head: Sequence[str], rows: Iterable[Cells], title: str, caption: str) -> Table:
    table = Table(
        title=escape(title),
        caption=escape(caption),
        title_justify="left",
        caption_justify="left",
        title_style="bold",
    )
    for column in head:
        table.add_column(Text(column))
    for row in rows:
        table.add_row(*(Text(_show(cell)) for cell in row))
    return table


def _width_of(table: Table, console: Console) -> int:
    """Return the columns of a terminal in which no cell of the table is broken into lines."""
    return Measurement.get(console, console.options.update(max_width=sys.maxsize), table).maximum


def show_catalog(found: dict[str, list[dict[str, Any]]]) -> None:
    """Print a table of each kind of plugin, of the plugins that did not load, and of faults in the code of the others."""
    columns = {
        "neurons": ["name", "capabilities", "options", "summary"],
        "estimators": ["name", "needs", "neurons", "options", "summary"],
        "objectives": ["name", "options", "summary"],
        "plugins": ["distribution", "version", "neurons", "estimators", "objectives"],
        "failures": ["distribution", "version", "entry_point", "phase", "error"],
        "faults": ["kind", "name", "fault"],
        "devices": ["device", "kernels"],
        "kernels": ["neuron", "device", "forward", "backward"],
    }
    titles = {"failures": "plugins that did not load", "faults": "plugins whose code fails"}
    for kind, rows in found.items():
        title = titles.get(kind, kind)
        show_rows(columns[kind], ([row[column] for column in columns[kind]] for row in rows), title)


def show_description(description: dict[str, Any], text: str) -> None:
    """Print a plugin: its docstring, its options, and what else is known about it."""
    show(Text.assemble((description["name"], "bold"), f", {description['kind']}: {description['summary']}"))
    if text:
        show(Text(f"\n{text}\n"))
    options = description["options"]
    required = options.get("required", [])
    show_rows(
        ["option", "default", "type", "description"],
        (
            [
                name,
                "(required)" if name in required else option.get("default"),
                type_in_words(option),
                option.get("description"),
            ]
            for name, option in options.get("properties", {}).items()
        ),
    )
    show_rows(["option, in Python alone", "description"], options.get("x-python-only", {}).items())
    if "evaluations" in description:
        units = list(next(iter(description["evaluations"].values()), {}))
        show_rows(
            ["neuron", "claimed bias", *(f"K, D = {count}" for count in units)],
            ([name, bias, *description["evaluations"][name].values()] for name, bias in description["bias"].items()),
        )
    certificates = description.get("certificates", [])
    losses = list(dict.fromkeys(record["loss"] for found in certificates for record in found["records"]))
    show_rows(
        ["measured on", "logits", *(f"bias, {loss}" for loss in losses)],
        (
            [_measured_on(found), logits, *(_bias(record) for record in found["records"] if record["logits"] == logits)]
            for found in certificates
            for logits in dict.fromkeys(record["logits"] for record in found["records"])
        ),
    )
    hidden = {"name", "kind", "summary", "options", "evaluations", "bias", "neurons", "certificates"}
    for key, value in description.items():
        if key not in hidden and value not in ("", []):
            show(Text(f"{key.replace('_', ' ')}: {_show(value)}"))


def _measured_on(certificate: dict[str, Any]) -> str:
    """Return the neuron, and what options it and the estimator have beside the defaults."""
    of_neuron, own = (
        ", ".join(
            f"{name}={value}" for name, value in certificate.get(options, {}).items()
        )  # an older service sends none
        for options in ("neuron_options", "options")
    )
    text = f"{certificate['neuron']}({of_neuron})" if of_neuron else certificate["neuron"]
    return f"{text}, with {own}" if own else text


def _bias(record: dict[str, Any]) -> str:
    """Return the measured bias ± its standard error, in % of the gradient unless that is zero."""
    scale, unit = (100 / record["gradient"], " %") if record["gradient"] else (1, "")
    return f"{record['bias'] * scale:.2g} ± {record['standard_error'] * scale:.2g}{unit}"


def show_samples(neuron: str, seed: int, columns: Mapping[str, Tensor], samples: Tensor) -> None:
    """Print a row for each unit: the columns, which are tensors of one shape, the mean of its samples, and the first samples."""
    import torch

    shape, flat = samples.shape[1:], samples.flatten(1)
    columns = {**{name: values.flatten() for name, values in columns.items()}, "mean": flat.float().mean(0)}
    rows = (
        [
            ", ".join(str(int(place)) for place in torch.unravel_index(torch.tensor(unit), shape)),
            *(float(values[unit]) for values in columns.values()),
            " ".join(_show(h) for h in flat[:_MOST_SAMPLES, unit].tolist()),
        ]
        for unit in range(min(flat.shape[1], _MOST_ROWS))
    )
    cut = flat.shape[1] > _MOST_ROWS or len(flat) > _MOST_SAMPLES
    caption = f"{neuron}, samples: {len(samples)}, seed: {seed}{'; --json gives them all' if cut else ''}"
    show_rows(["unit", *columns, "samples"], rows, caption=caption)


def show_comparison(comparison: dict[str, Any]) -> None:
    """Print a row for each estimator."""
    exact = "the exact gradient is known" if comparison["exact"] is not None else "the exact gradient is not known"
    caption = f"{comparison['neuron']}, draws: {comparison['draws']}, seed: {comparison['seed']}; {exact}"
    show_rows(COMPARISON_COLUMNS, ([*row.values()] for row in comparison["rows"]), caption=caption)
    failures = ([failure["estimator"], "; ".join(failure["reasons"])] for failure in comparison["failures"])
    show_rows(["failed", "why"], failures)
    skipped = ([one["estimator"], "; ".join(one["reasons"])] for one in comparison["skipped"])
    show_rows(["left out", "why"], skipped)
    unresolved = ([one["estimator"], "; ".join(one["reasons"])] for one in comparison["unresolved"])
    show_rows(["bias not established", "why"], unresolved)


def show_recommendation(found: dict[str, Any]) -> None:
    """Print a row for each estimator that fits, best first, and the reasons why the others do not."""
    caption = (
        f"error: relative error, up to a factor, of the mean gradient of {found['evaluations']} evaluations;"
        f" {found['source']}"
    )
    columns = ["label", "claim", "evaluations", "error", "reasons"]
    rows = (
        [row[column] if column != "reasons" else "; ".join(row[column]) for column in columns] for row in found["rows"]
    )
    show_rows(RECOMMENDATION_COLUMNS, rows, found["neuron"], caption)
    others = ([row["estimator"], "; ".join(row["reasons"])] for row in found["rejected"])
    show_rows(["not for this case", "why"], others)


def show_report(report: dict[str, Any]) -> None:
    """Print a row for each neuron and objective, and for each estimator on a neuron; then the checks that failed."""
    results = report["results"]
    rows: dict[tuple[str, ...], list[dict[str, Any]]] = {}
    for result in results:
        rows.setdefault((result["kind"], result["plugin"], result["neuron"]), []).append(result)
    table = (
        [
            *key,
            f"{sum(result['passed'] for result in row)} of {len(row)}",
            f"{sum(result['seconds'] for result in row):.1f}",
            "passes" if all(result["passed"] for result in row) else "FAILS",
        ]
        for key, row in rows.items()
    )
    show_rows(["kind", "plugin", "neuron", "checks passed", "seconds", ""], table, report["plugin"])
    wrong = ["plugin", "neuron", "check", "diagnosis"]
    show_rows(wrong, ([row[name] for name in wrong] for row in results if not row["passed"]), "what is wrong")
    show_catalog({"failures": report["failures"]})
    verdict = "conforms" if report["passed"] else "does not conform" if results else "did not load"
    passed = sum(row["passed"] for row in results)
    show(Text(f"{report['plugin']} {verdict}: {passed} of {len(results)} checks passed"))


class Bars(Progress):
    """A progress bar for each estimator, on standard error. None is shown if that is not a terminal."""

    def __init__(self) -> None:
        console = Console(stderr=True)
        super().__init__(console=console, transient=True, disable=not console.is_terminal)
        self._tasks_of: dict[str, TaskID] = {}

    def show(self, estimator: str, done: int, draws: int) -> None:
        """Show that so many of the draws are done."""
        if estimator not in self._tasks_of:
            self._tasks_of[estimator] = self.add_task(estimator, total=draws)
        self.update(self._tasks_of[estimator], completed=done)


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return "NaN" if math.isnan(value) else "Infinity" if value > 0 else "-Infinity"
    return value


def _show(value: Any) -> str:
    if value is None:
        return "-"
    if isinstance(value, float):
        return f"{value:.4g}"
    if isinstance(value, dict):
        return ", ".join(value.get("properties", {}))  # the schema of options
    if isinstance(value, (list, tuple)):
        return ", ".join(map(_show, value))
    return str(value)
