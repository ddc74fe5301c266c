"""Writes docs/results/reproduction.md from its template and from the numbers, each with its source, in docs/results/reproduction.

    python docs/site/reproduction.py
    python docs/site/reproduction.py keep experts.networks runs/experts/report.md "gradest reproduce experts --seeds 3"

A file SECTION.json there has tables, by name, and single figures of the text. In the template, {{SECTION.NAME}} stands for one of
them. The second command takes the rows of a table from the report of a run, in which a table has the same columns.
"""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path
from typing import Any

from gradest.analysis.markdown import table

__all__ = ["HOME", "PAGE", "keep", "render", "write"]

PAGE = Path(__file__).resolve().parents[1] / "results" / "reproduction.md"
HOME = PAGE.with_suffix("")
_TEMPLATE = "page.md.template"
_PLACE = re.compile(r"^(?P<indent> *)\{\{(?P<table>[\w.-]+)\}\}$|\{\{(?P<figure>[\w.-]+)\}\}", re.MULTILINE)


def render(home: Path = HOME) -> str:
    """Return the page. Raises KeyError if the template names a number that is not kept, or one that is kept is not in it."""
    kept = {path.stem: json.loads(path.read_text(encoding="utf-8")) for path in sorted(home.glob("*.json"))}
    left = {f"{section}.{name}" for section, found in kept.items() for group in found.values() for name in group}

    def fill(place: re.Match[str]) -> str:
        named = place["table"] or place["figure"]
        section, _, name = named.partition(".")
        left.discard(named)
        if place["figure"] or name in kept[section]["figures"]:
            return (place["indent"] or "") + str(kept[section]["figures"][name]["value"])
        found = kept[section]["tables"][name]
        lines = table(found["columns"], found["rows"], found["align"]).splitlines()
        return "\n".join(place["indent"] + line for line in lines)

    text = _PLACE.sub(fill, (home / _TEMPLATE).read_text(encoding="utf-8"))
    if left:
        raise KeyError(f"the template does not show {', '.join(sorted(left))}")
    return text


def write() -> None:
    """Write the page."""
    PAGE.write_text(render(), encoding="utf-8")


def keep(named: str, report: Path, source: str, home: Path = HOME) -> None:
    """Replace the rows of a kept table by those of the table with its columns in a report. Raises ValueError if there is none."""
    section, _, name = named.partition(".")
    path = home / f"{section}.json"
    kept = json.loads(path.read_text(encoding="utf-8"))
    found = kept["tables"][name]
    tables = [rows for head, rows in _tables(report.read_text(encoding="utf-8")) if head == found["columns"]]
    if not tables:
        raise ValueError(f"{report} has no table with the columns {', '.join(found['columns'])}")
    found |= {"source": source, "rows": tables[0]}
    path.write_text(_to_text(kept), encoding="utf-8")


def _tables(text: str) -> list[tuple[list[str], list[list[str]]]]:
    """Return head and rows of each table of a Markdown text."""
    blocks = re.findall(r"(?:^ *\|.*\n?)+", text, re.MULTILINE)
    split = [
        [[cell.strip() for cell in line.strip().strip("|").split("|")] for line in block.splitlines()]
        for block in blocks
    ]
    return [(lines[0], lines[2:]) for lines in split]


def _to_text(kept: dict[str, Any]) -> str:
    """Return the text of a file of numbers: JSON with a line for each row and figure, so that a diff shows which changed."""

    def plain(value: Any) -> str:
        return json.dumps(value, ensure_ascii=False)

    tables = ",\n".join(
        f"  {plain(name)}: {{\n"
        + "".join(f"   {plain(key)}: {plain(found[key])},\n" for key in ("source", "columns", "align"))
        + '   "rows": [\n'
        + ",\n".join(f"    {plain(row)}" for row in found["rows"])
        + "\n   ]\n  }"
        for name, found in kept["tables"].items()
    )
    figures = ",\n".join(f"  {plain(name)}: {plain(found)}" for name, found in kept["figures"].items())
    return f'{{\n "tables": {{\n{tables}\n }},\n "figures": {{\n{figures}\n }}\n}}\n'


if __name__ == "__main__":
    if sys.argv[1:2] == ["keep"]:
        keep(sys.argv[2], Path(sys.argv[3]), sys.argv[4])
    write()
