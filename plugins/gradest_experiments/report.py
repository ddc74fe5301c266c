"""`write_report`: runs as one self-contained HTML page, and as PNG files."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import Any

from gradest.errors import InvalidInput
from gradest_experiments.engine.folder import MetricsRow, RunFolder, list_folders
from gradest_experiments.engine.html import draw, inline_svg, write_page
from gradest_experiments.engine.plot import PALETTE, check_plots, colour_encoding, inline_data, write_png

__all__ = ["PAGE", "write_report"]

PAGE = "report.html"

_MANY = 40  # a line of fewer points has each of them marked
_WIDE = 100.0  # an axis is logarithmic if its largest value is more than so many times its smallest
_DRAWING = "chart.svg"  # the file of a run that draws its own chart


@dataclass(frozen=True)
class _ShownRun:
    """A run as the page shows it, with a name and a colour of its own."""

    name: str
    colour: str
    folder: RunFolder
    rows: list[MetricsRow]

    def facts(self) -> dict[str, Any]:
        """Return settings and versions."""
        return _flat({**self.folder.settings, **self.folder.versions})

    def figures(self) -> dict[str, Any]:
        """Return the results, and the last value of each metric."""
        last: dict[str, Any] = {}
        for row in self.rows:
            found = {_metric(row["kind"], name): value for name, value in _numbers(row)}
            last |= {"steps": row["step"], **found} if found else {}
        return {**_flat(self.folder.results), **last}


def write_report(paths: Sequence[Path], out: Path) -> Path:
    """Write report.html on all runs at and below the paths, and report-METRIC.png for each metric, into the folder `out`.

    The page has a table of the runs with their settings, versions and numbers, a chart of every metric, and the runs as JSON in
    the element `runs`. It loads nothing from outside. Runs that are not finished are shown as far as they are.

    Returns the path of the page. Raises InvalidInput if there is no run or a folder is damaged, and GradestError if plots
    cannot be drawn.
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
    title = runs[0].name if len(runs) == 1 else f"{len(runs)} runs"
    write_page(out / PAGE, title, body, _data(runs))
    return out / PAGE


def _read(paths: Sequence[Path]) -> list[_ShownRun]:
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
        runs.append(_ShownRun(name, PALETTE[place % len(PALETTE)], folder, folder.rows()))
    return runs


def _by_experiment(runs: Iterable[_ShownRun]) -> dict[str, list[_ShownRun]]:
    groups: dict[str, list[_ShownRun]] = {}
    for run in runs:
        groups.setdefault(run.folder.experiment, []).append(run)
    return groups


def _common(runs: Sequence[_ShownRun]) -> str:
    """Return, as HTML, the settings and versions that all runs have in common."""
    shared = {
        name: value for name, value in runs[0].facts().items() if all(run.facts().get(name) == value for run in runs)
    }
    return f"<p>{', '.join(f'{escape(name)} {escape(_cell(value))}' for name, value in shared.items())}</p>"


def _table(runs: Sequence[_ShownRun]) -> str:
    """Return a table with a row per run: the settings in which the runs differ, and their numbers."""
    facts, figures = [run.facts() for run in runs], [run.figures() for run in runs]
    apart = [name for name in _names(facts) if len({_cell(one.get(name)) for one in facts}) > 1]
    rows = [
        {name: {**made, **came}.get(name) for name in [*apart, *_names(figures)]}
        for made, came in zip(facts, figures, strict=True)
    ]
    heads = [f'<span class="swatch" style="background:{run.colour}"></span>{escape(run.name)}' for run in runs]
    return _html_table("run", heads, rows)


def _tasks(run: _ShownRun) -> str:
    """Return, as HTML, the chart that a run drew itself, and a table of its tasks, if it has any."""
    parts = []
    drawing = run.folder.path / _DRAWING if run.folder.path else None
    if drawing and drawing.exists():
        svg = inline_svg(drawing.read_text(encoding="utf-8"), f"{escape(run.name)}-")
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
    """Return a table as HTML. corner: the head of the first column. heads: the first cell of each row, as HTML."""
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


def _metrics(runs: Sequence[_ShownRun]) -> list[str]:
    return _names(
        {_metric(row["kind"], name): value for name, value in _numbers(row)} for run in runs for row in run.rows
    )


def _chart(runs: Sequence[_ShownRun], metric: str, legend: bool) -> Any:
    """Draw a metric against steps, a line per run."""
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
    shade = colour_encoding(names, "run", shades)
    line = altair.Chart(inline_data(points)).mark_line(strokeWidth=1.8, point=len(points) < _MANY * len(runs))
    return line.encode(
        x=altair.X(
            "step:Q", title=None, axis=altair.Axis(format="~s", tickCount=5, grid=False), scale=altair.Scale(nice=False)
        ),
        y=altair.Y("value:Q", title=None, axis=axis, scale=scale),
        color=shade if legend else shade.legend(None),
        detail="run:N",
    ).properties(width=340, height=200)


def _figure(runs: Sequence[_ShownRun], metric: str, prefix: str) -> str:
    """Return a chart as HTML, without a legend: the colours are in the page's table."""
    return f"<figure><figcaption>{escape(metric)}</figcaption>{draw(_chart(runs, metric, legend=False), prefix, metric)}</figure>"


def _data(runs: Sequence[_ShownRun]) -> list[dict[str, Any]]:
    return [
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


def _numbers(row: MetricsRow) -> Iterator[tuple[str, float]]:
    """Yield the names and numbers of a line of metrics."""
    for name, value in row.items():
        if name not in ("kind", "step") and isinstance(value, int | float):
            yield name, value


def _metric(kind: str, name: str) -> str:
    return f"{kind}: {name.replace('_', ' ')}"


def _names(rows: Iterable[Mapping[str, Any]]) -> list[str]:
    """Return all keys, in the order of their first appearance."""
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
