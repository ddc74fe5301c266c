"""`write_report`: runs as one HTML page that needs nothing beside it, and as PNG files."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from html import escape
from importlib.resources import files
from io import StringIO
from pathlib import Path
from string import Template
from typing import Any

from gradest.errors import InvalidInput
from gradest_experiments.checkpoint import write_atomically
from gradest_experiments.folder import MetricsRow, RunFolder, list_folders
from gradest_experiments.plot import PALETTE, check_plots, colour, styled, values, write_png

__all__ = ["PAGE", "write_report"]

PAGE = "report.html"

_MANY = 40  # points of a line from which on they are not marked one by one
_WIDE = 100.0  # the ratio of the largest to the smallest value from which on an axis is logarithmic
_DRAWING = "chart.svg"  # of a run that draws its own


@dataclass(frozen=True)
class _Run:
    """A run as the page shows it, under a name and in a colour of its own."""

    name: str
    colour: str
    folder: RunFolder
    rows: list[MetricsRow]

    def facts(self) -> dict[str, Any]:
        """What it was made of."""
        return _flat({**self.folder.settings, **self.folder.versions})

    def figures(self) -> dict[str, Any]:
        """What came of it: its results, and the last value of each metric."""
        last: dict[str, Any] = {}
        for row in self.rows:
            found = {_metric(row["kind"], name): value for name, value in _numbers(row)}
            last |= {"steps": row["step"], **found} if found else {}
        return {**_flat(self.folder.results), **last}


def write_report(paths: Sequence[Path], out: Path) -> Path:
    """Write report.html, of all runs at and below the paths, and report-METRIC.png of each metric, into the folder `out`.

    The page has a table of the runs with their settings, versions and figures, a chart of every metric, and the runs as JSON
    in the element `runs`. It refers to nothing outside. Runs that have not ended are shown as far as they are.

    Raises InvalidInput where there are no runs or a folder is damaged, GradestError if plots cannot be drawn.
    """
    check_plots()
    runs = _read(paths)
    body = []
    for experiment, several in _by_experiment(runs).items():
        body.append(f"<h2>{escape(experiment)}</h2>\n{_common(several)}\n{_table(several)}")
        metrics = _metrics(several)
        for metric in metrics:
            name = "-".join(["report", *re.findall(r"\w+", f"{experiment} {metric}")])
            write_png(_chart(several, metric, legend=True).properties(title=metric), out, name)
        figures = [_figure(several, metric, f"c{len(body)}-{place}-") for place, metric in enumerate(metrics)]
        if figures:
            body.append('<div class="charts">\n' + "\n".join(figures) + "\n</div>")
        body += [_tasks(run) for run in several]
    page = Template(files("gradest_experiments").joinpath("templates/report.html.template").read_text(encoding="utf-8"))
    title = runs[0].name if len(runs) == 1 else f"{len(runs)} runs"
    text = page.substitute(title=escape(title), body="\n".join(body), data=_data(runs))
    write_atomically(out / PAGE, lambda new: new.write_text(text, encoding="utf-8"))
    return out / PAGE


def _read(paths: Sequence[Path]) -> list[_Run]:
    folders: dict[Path, None] = {}
    for path in paths:
        found = list_folders(path)
        if not found:
            raise InvalidInput(f"{path} holds no run: there is no run.json at or below it")
        folders |= dict.fromkeys(folder.resolve() for folder in found)
    top = Path(os.path.commonpath(folders))
    runs = []
    for place, path in enumerate(folders):
        folder = RunFolder.read(path)
        name = path.name if path == top else path.relative_to(top).as_posix()
        runs.append(_Run(name, PALETTE[place % len(PALETTE)], folder, folder.rows()))
    return runs


def _by_experiment(runs: Iterable[_Run]) -> dict[str, list[_Run]]:
    groups: dict[str, list[_Run]] = {}
    for run in runs:
        groups.setdefault(run.folder.experiment, []).append(run)
    return groups


def _common(runs: Sequence[_Run]) -> str:
    """The settings and versions that all have."""
    shared = {
        name: value for name, value in runs[0].facts().items() if all(run.facts().get(name) == value for run in runs)
    }
    return f"<p>{', '.join(f'{escape(name)} {escape(_cell(value))}' for name, value in shared.items())}</p>"


def _table(runs: Sequence[_Run]) -> str:
    """A row a run: the settings that not all have in common, and figures."""
    facts, figures = [run.facts() for run in runs], [run.figures() for run in runs]
    apart = [name for name in _names(facts) if len({_cell(one.get(name)) for one in facts}) > 1]
    rows = [
        {name: {**made, **came}.get(name) for name in [*apart, *_names(figures)]}
        for made, came in zip(facts, figures, strict=True)
    ]
    heads = [f'<span class="swatch" style="background:{run.colour}"></span>{escape(run.name)}' for run in runs]
    return _html_table("run", heads, rows)


def _tasks(run: _Run) -> str:
    """What a run that is made of tasks found, and its drawing."""
    parts = []
    drawing = run.folder.path / _DRAWING if run.folder.path else None
    if drawing and drawing.exists():
        svg = _inline(drawing.read_text(encoding="utf-8"), f"{escape(run.name)}-")
        parts.append(f'<figure class="drawn">{svg}</figure>')
    tasks = [row for row in run.rows if "result" in row]
    if tasks:
        found = [
            {name: value for name, value in _flat(row["result"]).items() if not isinstance(value, list)}
            for row in tasks
        ]
        parts.append(_html_table("task", [escape(str(row["name"])) for row in tasks], found))
    return "\n".join(parts)


def _html_table(corner: str, heads: Sequence[str], rows: Sequence[Mapping[str, Any]]) -> str:
    """heads: of the rows, as HTML."""
    names = _names(rows)
    top = "".join(f'<th scope="col"{_right(rows, name)}>{escape(name)}</th>' for name in names)
    lines = [
        f'<tr><th scope="row">{head}</th>'
        + "".join(f"<td{_right(rows, name)}>{escape(_cell(row.get(name)))}</td>" for name in names)
        + "</tr>"
        for head, row in zip(heads, rows, strict=True)
    ]
    return (
        f'<div class="scroll"><table><thead><tr><th scope="col">{corner}</th>{top}</tr></thead>\n'
        f"<tbody>{chr(10).join(lines)}</tbody></table></div>"
    )


def _right(rows: Sequence[Mapping[str, Any]], name: str) -> str:
    numeric = all(isinstance(row.get(name), int | float | None) for row in rows)
    return ' class="number"' if numeric else ""


def _metrics(runs: Sequence[_Run]) -> list[str]:
    return _names(
        {_metric(row["kind"], name): value for name, value in _numbers(row)} for run in runs for row in run.rows
    )


def _chart(runs: Sequence[_Run], metric: str, legend: bool) -> Any:
    """A line a run, against steps."""
    import altair  # noqa: PLC0415  # an extra

    points = [
        {"run": run.name, "step": row["step"], "value": value}
        for run in runs
        for row in run.rows
        for name, value in _numbers(row)
        if _metric(row["kind"], name) == metric
    ]
    found = [point["value"] for point in points]
    logarithmic = min(found) > 0 and max(found) > _WIDE * min(found)
    scale = altair.Scale(type="log", nice=False) if logarithmic else altair.Scale(zero=False)
    axis = altair.Axis(format="~g", tickCount=5) if logarithmic else altair.Axis(tickCount=5)
    names = [run.name for run in runs]
    shades = [run.colour for run in runs]
    shade = colour(names, "run", shades)
    line = altair.Chart(values(points)).mark_line(strokeWidth=1.8, point=len(points) < _MANY * len(runs))
    return line.encode(
        x=altair.X(
            "step:Q", title=None, axis=altair.Axis(format="~s", tickCount=5, grid=False), scale=altair.Scale(nice=False)
        ),
        y=altair.Y("value:Q", title=None, axis=axis, scale=scale),
        color=shade if legend else shade.legend(None),
        detail="run:N",
    ).properties(width=340, height=200)


def _figure(runs: Sequence[_Run], metric: str, prefix: str) -> str:
    """A chart in the page, whose table is the legend."""
    text = StringIO()
    styled(_chart(runs, metric, legend=False).properties(background="transparent")).save(text, format="svg")
    name = escape(metric)
    return f"<figure><figcaption>{name}</figcaption>{_inline(text.getvalue(), prefix, name)}</figure>"


def _inline(svg: str, prefix: str, label: str = "") -> str:
    """An SVG document as an element of a page: no namespaces, and names that no other drawing has."""
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r'\sxmlns(:\w+)?="[^"]*"', "", svg)
    svg = re.sub(r'(\bid="|url\(#|href="#)', rf"\g<1>{prefix}", svg)
    return svg.replace("<svg", f'<svg role="img" aria-label="{label}"' if label else "<svg", 1)


def _data(runs: Sequence[_Run]) -> str:
    found = [
        {
            "name": run.name,
            "experiment": run.folder.experiment,
            "settings": run.folder.settings,
            "versions": run.folder.versions,
            "results": run.folder.results,
            "metrics": run.rows,
        }
        for run in runs
    ]
    return json.dumps(found, separators=(",", ":")).replace("<", "\\u003c")  # which would end the element


def _numbers(row: MetricsRow) -> Iterator[tuple[str, float]]:
    """What was measured."""
    for name, value in row.items():
        if name not in ("kind", "step") and isinstance(value, int | float):
            yield name, value


def _metric(kind: str, name: str) -> str:
    return f"{kind}: {name.replace('_', ' ')}"


def _names(rows: Iterable[Mapping[str, Any]]) -> list[str]:
    """All keys, in the order in which they come up."""
    return list(dict.fromkeys(name for row in rows for name in row))


def _flat(found: Mapping[str, Any], before: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for name, value in found.items():
        flat |= _flat(value, f"{before}{name} ") if isinstance(value, dict) else {before + name: value}
    return flat


def _cell(value: Any) -> str:
    if value is None:
        return "-"
    return f"{value:.4g}" if isinstance(value, float) else str(value)
