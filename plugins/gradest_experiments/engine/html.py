"""Self-contained HTML pages with charts, which load nothing from outside."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from html import escape
from importlib.resources import files
from io import StringIO
from pathlib import Path
from string import Template
from typing import Any

from gradest_experiments.engine.checkpoint import write_atomically
from gradest_experiments.engine.plot import themed

__all__ = ["draw", "inline_svg", "write_page"]


def write_page(path: Path, title: str, body: Iterable[str], data: Any) -> None:
    """Write a page. body: its parts, as HTML. data: what the element `runs` has as JSON, for programs that read the page."""
    page = Template(files("gradest_experiments").joinpath("templates/report.html.template").read_text(encoding="utf-8"))
    found = json.dumps(data, separators=(",", ":")).replace("<", "\\u003c")  # "</script>" would end the element
    text = page.substitute(title=escape(title), body="\n".join(body), data=found)
    write_atomically(path, lambda new: new.write_text(text, encoding="utf-8"))


def draw(chart: Any, prefix: str, label: str) -> str:
    """Return an altair chart as an element of a page. prefix: as for `inline_svg`. label: what it shows, for screen readers."""
    text = StringIO()
    themed(chart.properties(background="transparent")).save(text, format="svg")
    return inline_svg(text.getvalue(), prefix, label)


def inline_svg(svg: str, prefix: str, label: str = "") -> str:
    """Return an SVG document as an element of a page: without namespaces, and with the prefix in all its names."""
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r'\sxmlns(:\w+)?="[^"]*"', "", svg)
    svg = re.sub(r'(\bid="|url\(#|href="#)', rf"\g<1>{prefix}", svg)
    return svg.replace("<svg", f'<svg role="img" aria-label="{escape(label)}"' if label else "<svg", 1)
