"""`run`: the demo on the terminal, and as a page."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from html import escape
from pathlib import Path

from rich.console import Console
from rich.table import Table
from rich.text import Text
from torch import Tensor

from gradest.client import Client
from gradest.errors import GradestError
from gradest_experiments.demo import tables
from gradest_experiments.demo.scenes import Bar, Scene, one_unit, private_loss, skipped_work, three_estimators
from gradest_experiments.engine.data import load
from gradest_experiments.engine.html import draw, write_page
from gradest_experiments.engine.plot import check_plots

__all__ = ["PAGE", "run"]

PAGE = "index.html"

_WIDTH, _BAR = 100, 12  # columns of the terminal, and of a bar
_INTRODUCTION = (
    "gradest estimates gradients of expected losses through neurons whose output is random. Four scenes show why that is needed, "
    "and how it is done."
)


def run(out: Path, seed: int = 0, *, full: bool = False) -> Path:
    """Show the four scenes, and return the path of the page that is written into the folder `out`, with their pictures.

    full: afterwards print the tables of all plugins, samples and comparisons as well.

    Raises GradestError if plots cannot be drawn or the service fails.
    """
    check_plots()
    began = time.perf_counter()
    terminal = sys.stdout.isatty()
    console = Console(width=None if terminal else _WIDTH, highlight=False)
    digits = load("digits").train
    shown: list[Scene] = []
    console.print(_INTRODUCTION)
    with _service() as (url, stop), Client(url) as client:
        scenes: Sequence[Callable[[], Scene]] = (
            partial(one_unit, seed),
            partial(three_estimators, client, seed),
            partial(private_loss, client, digits, seed),
            partial(skipped_work, seed, progress=sys.stderr.isatty()),
        )
        for number, make in enumerate(scenes, 1):
            start = time.perf_counter()
            shown.append(make())
            _print(console, number, shown[-1], time.perf_counter() - start)
        if full:
            tables.show(Console(width=None if terminal else tables.WIDTH, highlight=False), client, digits, seed)
        if code := stop():
            raise GradestError(f"the service stopped with exit code {code}")
    _write(out / PAGE, shown)
    console.print(f"\nThe pictures are in {out / PAGE}. The demo took {time.perf_counter() - began:.0f} seconds.")
    if not full:
        console.print("`gradest demo --full` prints all tables. README.md says where to go on.")
    return out / PAGE


@contextmanager
def _service() -> Iterator[tuple[str, Callable[[], int]]]:
    """Start `gradest serve` on a free port for the block; yield its URL, and a function that stops it."""
    command = [sys.executable, "-m", "gradest", "serve", "--port", "0", "--log-level", "warning"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:

        def stop() -> int:
            process.terminate()
            return process.wait(timeout=30)

        assert process.stdout is not None
        try:
            _, listening, url = process.stdout.readline().partition("listening on ")
            if not listening:
                raise GradestError(f"the service did not start; `{' '.join(command)}` shows why")
            yield url.strip(), stop
        finally:
            if process.poll() is None:
                stop()


def _print(console: Console, number: int, scene: Scene, seconds: float) -> None:
    console.print()
    console.rule(f"{number}. {scene.title} ({seconds:.0f} s)", align="left")
    for sentence in scene.text:
        console.print(Text(sentence))
    full, empty = ("█", "░") if console.encoding.lower().startswith("utf") else ("#", ".")
    table = Table(box=None, padding=(0, 2, 0, 0))
    for name, right in zip(scene.head, _numeric(scene), strict=True):
        table.add_column(Text(name, "bold"), justify="right" if right else "left", no_wrap=True)
    for row in scene.rows:
        table.add_row(*(Text(_draw_bar(cell, full, empty) if isinstance(cell, Bar) else cell) for cell in row))
    console.print(table)


def _draw_bar(bar: Bar, full: str, empty: str) -> str:
    filled = round(_BAR * bar.length)
    return full * filled + empty * (_BAR - filled)


def _numeric(scene: Scene) -> list[bool]:
    """Tell for each column whether all its cells are numbers, with a unit or not."""
    columns = zip(*scene.rows, strict=True)
    return [all(isinstance(cell, str) and cell.lstrip("-")[:1].isdigit() for cell in column) for column in columns]


def _write(path: Path, scenes: Sequence[Scene]) -> None:
    body = [f"<p>{escape(_INTRODUCTION)}</p>"]
    for number, scene in enumerate(scenes, 1):
        body.append(f"<h2>{number}. {escape(scene.title)}</h2>")
        body += [f"<p>{escape(sentence)}</p>" for sentence in scene.text]
        body.append(_html_table(scene))
        figures = [f"<figure>{draw(scene.picture, f's{number}-', scene.title)}</figure>"]
        if scene.digits is not None:
            caption = "Above: digits of the data. Below: what the decoder makes of their bits."
            figures.append(f"<figure><figcaption>{caption}</figcaption>{_draw_digits(scene)}</figure>")
        body.append('<div class="charts wide">\n' + "\n".join(figures) + "\n</div>")
    data = [{"title": scene.title, "head": [*scene.head], "rows": [[*row] for row in scene.rows]} for scene in scenes]
    write_page(path, "gradest: the demo", body, data)


def _html_table(scene: Scene) -> str:
    align = ['class="number"' if right else "" for right in _numeric(scene)]
    head = "".join(f'<th scope="col" {kind}>{escape(name)}</th>' for name, kind in zip(scene.head, align, strict=True))
    rows = (
        "".join(f"<td {kind}>{_html(cell)}</td>" for cell, kind in zip(row, align, strict=True)) for row in scene.rows
    )
    lines = "\n".join(f"<tr>{row}</tr>" for row in rows)
    return f'<div class="scroll"><table><thead><tr>{head}</tr></thead>\n<tbody>{lines}</tbody></table></div>'


def _html(cell: str | Bar) -> str:
    return f'<meter value="{cell.length:.3f}"></meter>' if isinstance(cell, Bar) else escape(cell)


def _draw_digits(scene: Scene) -> str:
    assert scene.digits is not None
    rows = [scene.digits.original, scene.digits.shown]
    width, side = len(rows[0]), round(rows[0].shape[1] ** 0.5)
    squares = [
        f'<rect x="{(side + 1) * column + x}" y="{(side + 1) * line + y}" width="1" height="1" fill-opacity="{shade:.2f}"/>'
        for line, images in enumerate(rows)
        for column, image in enumerate(images)
        for y, pixels in enumerate(_lines_of(image, side))
        for x, shade in enumerate(pixels)
        if shade >= 0.01
    ]
    size = f"0 0 {(side + 1) * width} {(side + 1) * len(rows)}"
    label = "ten digits, and what the decoder makes of their bits"
    return f'<svg role="img" aria-label="{label}" viewBox="{size}" fill="currentColor">{"".join(squares)}</svg>'


def _lines_of(image: Tensor, side: int) -> list[list[float]]:
    lines: list[list[float]] = image.reshape(side, side).tolist()
    return lines
