"""`reproduce_toys`: runs parts into a folder, and writes the report."""

from __future__ import annotations

import platform
from collections.abc import Iterable, Sequence
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from gradest.errors import GradestError, InvalidInput
from gradest.experiments.checkpoint import write_atomically
from gradest.experiments.toys.learning import Learning
from gradest.experiments.toys.part import Part
from gradest.experiments.toys.plot import check_plots, write_chart
from gradest.experiments.toys.polynomial import Polynomial
from gradest.experiments.toys.probability import Probability
from gradest.experiments.toys.quadratic import Quadratic
from gradest.experiments.toys.record import Record

__all__ = ["PARTS", "choose", "reproduce_toys"]

PARTS: dict[str, type[Part]] = {part.name: part for part in (Quadratic, Learning, Probability, Polynomial)}
"""The parts, by name, in the order of the report."""


def choose(names: Iterable[str] | None = None, *, quick: bool = False, seed: int = 0) -> list[Part]:
    """Parts, all if none are named, in their default sizes or in those of a run of seconds.

    Raises InvalidInput for a name that no part has.
    """
    wanted = set(PARTS if names is None else names)
    if unknown := sorted(wanted - PARTS.keys()):
        raise InvalidInput(f"no part is named {unknown[0]!r}; there are: {', '.join(PARTS)}")
    return [part(seed=seed, **(part.quick if quick else {})) for name, part in PARTS.items() if name in wanted]


def reproduce_toys(out: Path, parts: Sequence[Part], *, progress: bool = False) -> Path:
    """Run the parts into the folder `out`, and return the report's path.

    Each part writes NAME.json, a task at a time as they are done, and then NAME.svg and NAME.png; report.md has the tables and
    the plots of the parts that are complete. Run again with the same parts, it goes on after the last task that was done, and
    comes to the same numbers on the same machine.

    progress: show a progress bar on standard error.

    Raises GradestError if plots cannot be written, and InvalidInput if `out` holds results of other settings or is damaged;
    both before anything is measured.
    """
    check_plots()
    out = Path(out)
    records = [(part, Record(out / f"{part.name}.json", _settings(part))) for part in parts]
    with _bar(progress) as bar:
        for part, record in records:
            _finish(part, record, bar)
            write_chart(part.chart(record.results), out, part.name)
            _write_report(out)
    return out / "report.md"


def _finish(part: Part, record: Record, bar: Progress) -> None:
    """Do the tasks that are not done."""
    tasks = part.tasks()
    shown = bar.add_task(part.name, total=len(tasks), what="")
    for done, (name, task) in enumerate(tasks.items()):
        bar.update(shown, completed=done, what=name)
        if name in record.results:
            continue
        try:
            record.add(name, task(partial(_tick, bar, shown, done)))
        except GradestError as error:
            raise GradestError(f"{part.name}, {name}: {error}") from error
    bar.update(shown, completed=len(tasks), what="")


def _tick(bar: Progress, shown: TaskID, done: int, share: float) -> None:
    bar.update(shown, completed=done + share)


def _bar(enabled: bool) -> Progress:
    console = Console(stderr=True)
    return Progress(
        TextColumn("{task.description:12}"),
        BarColumn(bar_width=30),
        TextColumn("{task.percentage:>3.0f}%"),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
        TextColumn("{task.fields[what]}"),
        console=console,
        disable=not (enabled and console.is_terminal),
    )


def _settings(part: Part) -> dict[str, Any]:
    """What the numbers of a part depend on, as plain JSON."""
    return {**part.model_dump(mode="json"), "gradest": version("gradest"), "torch": torch.__version__}


def _write_report(out: Path) -> None:
    """Of the parts in the folder that are complete, whoever ran them."""
    sections = [
        "# Toys\n\nThe small problems by which papers compare gradient estimators, by `gradest reproduce toys`. Python "
        f"{platform.python_version()}.\n"
    ]
    for name, kind in PARTS.items():
        path = out / f"{name}.json"
        if not path.exists():
            continue
        record = Record(path)
        settings, results = record.settings, record.results
        part = kind(**{field: value for field, value in settings.items() if field in kind.model_fields})
        if part.tasks().keys() <= results.keys():
            listed = ", ".join(f"{field} {value}" for field, value in settings.items())
            sections.append(
                f"## {part.title}\n\n{part.text}\n\n![{part.title}]({name}.svg)\n\n{part.table(results)}\n\n"
                f"Settings: {listed}. Data: [{name}.json]({name}.json); plot: [{name}.png]({name}.png).\n"
            )
    text = "\n".join(sections)
    write_atomically(out / "report.md", lambda new: new.write_text(text, encoding="utf-8"))
