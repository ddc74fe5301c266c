"""Turns results.json into a document with a table and charts: `python tests/benchmarks/report.py FOLDER DOCUMENT`.

FOLDER holds results.json; the charts are written into the folder `images` beside DOCUMENT.
"""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from gradest.analysis.charts import definition
from gradest.analysis.markdown import table

HEAD = """# Benchmarks

`make bench` writes this document: it installs the libraries that gradest is compared with, measures everything and draws the
charts.

The implementations of one benchmark are run in turns, so that a machine that slows down for a while slows all of them alike.
Each number is a median, with the quartiles in brackets. *Speed-up* is the time of the other implementation divided by gradest's
in the same round (for a rate, such as requests/s, gradest's divided by the other's): below 1 the other is faster. *Target* is the
bound that was set beforehand. A slope is the exponent s in the fit overhead + c·sizeˢ: 1 means linear growth. Sizes are rows x
units, and K is the number of loss evaluations of one estimate.
"""
IMAGES = "images"
"""The folder of the charts, beside the document."""


def markdown(results: dict[str, Any]) -> str:
    """Return the text of the document."""
    about = {**results["machine"], "date": results["date"], "command": f"`{results['command']}`"}
    about["versions"] = ", ".join(f"{name} {version}" for name, version in results["versions"].items())
    lines = [HEAD, *(f"- {name}: {value}" for name, value in about.items())]
    lines += ["", f"![Speed-up of gradest over each other implementation, beside the targets]({IMAGES}/ratios.svg)"]
    rows: list[list[str]] = []
    title = None
    for row in results["rows"]:
        cells = ["" if row["title"] == title else row["title"], row["name"], spread(row["quartiles"], row["unit"])]
        cells += [times(row), asked(row), {None: "", True: "yes", False: "**no**"}[reached(row)]]
        rows.append(cells)
        title = row["title"]
    head = ["benchmark", "implementation", "median (quartiles)", "speed-up", "target", "met"]
    lines += ["", table(head, rows, "l" * len(head))]
    lines += ["", f"![Growth of time and memory with the number of units, rows and draws]({IMAGES}/growth.svg)"]
    return "\n".join(lines) + "\n"


def spread(quartiles: list[float], unit: str) -> str:
    """Return the median, with the quartiles in brackets if they differ."""
    low, middle, high = (f"{x:.3g}" if abs(x) < 1000 else f"{x:.0f}" for x in quartiles)
    return f"{middle} {unit}".strip() + (f" ({low} to {high})" if low != high else "")


def times(row: dict[str, Any]) -> str:
    """Return the speed-up with its quartiles, or an empty string for a row that is not compared."""
    return spread(row["ratio"], "×") if row["ratio"] else ""


def asked(row: dict[str, Any]) -> str:
    """Return the target, such as `at least 5`, or an empty string if none was set."""
    return "".join(f"{name.replace('_', ' ')} {bound:g}" for name, bound in (row["asked"] or {}).items())


def reached(row: dict[str, Any]) -> bool | None:
    """Return whether the median meets the target; None if none was set."""
    match row["asked"]:
        case {"at_least": bound}:
            return row["ratio"][1] >= bound
        case {"at_most": bound}:
            return row["quartiles"][1] <= bound
    return None


def bars(rows: list[dict[str, Any]], width: int = 20) -> str:
    """Draw the speed-ups as bars on a logarithmic scale: to the right if gradest is faster, to the left if the other is."""
    compared = [row for row in rows if row["ratio"]]
    names = [f"{row['title']}: {row['name']}" for row in compared]
    longest = max(map(len, names), default=0)
    most = max((abs(math.log(row["ratio"][1])) for row in compared), default=1) or 1
    lines = []
    for name, row in zip(names, compared, strict=True):
        length = round(width * math.log(row["ratio"][1]) / most)
        left, right = ("█" * max(0, -length)).rjust(width), ("█" * max(0, length)).ljust(width)
        verdict = {None: "", True: f", {asked(row)}: reached", False: f", {asked(row)}: MISSED"}[reached(row)]
        lines.append(f"{name:{longest}} {left}|{right} {row['ratio'][1]:.2f}×{verdict}")
    return "\n".join(lines)


def charts(results: dict[str, Any]) -> Iterator[tuple[str, str]]:
    """Yield the name and the SVG of each chart: the speed-ups with quartiles and targets, and growth on logarithmic scales."""
    import altair as alt

    ratios = [
        {"what": f"{row['title']}: {row['name']}", "asked": (row["asked"] or {}).get("at_least"), "equal": 1}
        | dict(zip(("low", "middle", "high"), row["ratio"], strict=True))
        for row in results["rows"]
        if row["ratio"]
    ]
    if ratios:
        title = "speed-up of gradest (red: the target)"
        x, log = {"title": title, "type": "quantitative"}, alt.Scale(type="log")
        base = alt.Chart(alt.InlineData(values=ratios), width=480).encode(
            y=alt.Y("what:N", sort=None, title=None, axis=alt.Axis(labelLimit=600))
        )
        parts = [
            base.mark_rule(strokeWidth=2).encode(x=alt.X("low", scale=log, **x), x2="high"),
            base.mark_point(filled=True, size=50).encode(x=alt.X("middle", **x)),
            base.mark_tick(color="red", thickness=2).encode(x=alt.X("asked", **x)),
            base.mark_tick(color="black", thickness=1).encode(x=alt.X("equal", **x)),
        ]
        yield "ratios", svg(alt.layer(*parts))
    panels: dict[tuple[str, str], list[dict[str, Any]]] = {}
    for curve in results["curves"]:
        panels.setdefault((curve["title"], curve["unit"]), []).extend(
            {"size": size, "value": value, "axis": curve["axis"]} for size, value in curve["points"]
        )
    if panels:
        axis, log = alt.Axis(tickCount=5, grid=False, format="~s"), alt.Scale(type="log", nice=False)
        drawn = [
            alt.Chart(alt.InlineData(values=points), title=title, width=320, height=240)
            .mark_line(point=True)
            .encode(
                x=alt.X("size:Q", title=None, scale=log, axis=axis),
                y=alt.Y("value:Q", title=unit, scale=log, axis=axis),
                color=alt.Color("axis:N", title="number of"),
            )
            for (title, unit), points in panels.items()
        ]
        yield "growth", svg(alt.concat(*drawn, columns=2))


def svg(chart: Any) -> str:
    """Render the chart as SVG."""
    import vl_convert

    return str(vl_convert.vegalite_to_svg(chart.configure(aria=False, **definition("config")).to_json()))


def main(folder: Path, document: Path) -> None:
    """Read results.json from `folder`; write the document, and its charts into the folder IMAGES beside it."""
    results = json.loads((folder / "results.json").read_text(encoding="utf-8"))
    images = document.parent / IMAGES
    images.mkdir(parents=True, exist_ok=True)
    for name, text in charts(results):
        (images / f"{name}.svg").write_text(text, encoding="utf-8")
    document.write_text(markdown(results), encoding="utf-8")


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:]))
