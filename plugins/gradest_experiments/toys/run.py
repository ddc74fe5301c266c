"""`reproduce_toys`: runs parts into a folder, and writes the report."""

from __future__ import annotations

import platform
from collections.abc import Iterable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from rich.progress import Progress, TaskID, TextColumn

from gradest.discovery.registry import registry
from gradest.errors import GradestError, Incompatible, InvalidInput
from gradest.estimation.distributed import world_size
from gradest_experiments.engine.checkpoint import write_atomically
from gradest_experiments.engine.display import progress_bar
from gradest_experiments.engine.folder import RunFolder
from gradest_experiments.engine.plot import check_plots, write_chart
from gradest_experiments.toys.learning import LearningPart
from gradest_experiments.toys.part import Part
from gradest_experiments.toys.polynomial import PolynomialPart
from gradest_experiments.toys.probability import ProbabilityPart
from gradest_experiments.toys.quadratic import QuadraticPart
from gradest_experiments.toys.subsets import SubsetsPart

__all__ = ["PARTS", "choose", "reproduce_toys"]

PARTS: dict[str, type[Part]] = {
    part.name: part for part in (QuadraticPart, LearningPart, ProbabilityPart, PolynomialPart, SubsetsPart)
}
"""The parts by name, in the order of the report."""

_EXPERIMENT = "toys: "
_CHART = "chart"


def choose(
    names: Iterable[str] | None = None,
    *,
    quick: bool = False,
    seed: int = 0,
    estimators: Sequence[dict[str, Any]] | None = None,
) -> list[Part]:
    """Return the named parts, or all, with their default fields, or with those of --quick if `quick` is set.

    estimators: what to measure, {name, **options}; without them, the estimators of each part. A part that none of them fits is
        left out.

    Raises InvalidInput for an unknown name, UnknownPlugin or InvalidOptions for a wrong estimator, and Incompatible if the
    estimators fit no part.
    """
    wanted = set(PARTS if names is None else names)
    if unknown := sorted(wanted - PARTS.keys()):
        raise InvalidInput(f"no part is named {unknown[0]!r}; there are: {', '.join(PARTS)}")
    specs = None if estimators is None else tuple(registry.estimator(spec).spec() for spec in estimators)
    parts = [
        part(seed=seed, estimators=specs, **(part.quick if quick else {}))
        for name, part in PARTS.items()
        if name in wanted
    ]
    chosen = parts if specs is None else [part for part in parts if part.tasks()]
    if specs and not chosen:
        names = ", ".join(spec["name"] for spec in specs)
        raise Incompatible(f"{names} cannot be compared in any of the parts {', '.join(part.name for part in parts)}")
    return chosen


def reproduce_toys(out: Path, parts: Sequence[Part], *, progress: bool = False) -> Path:
    """Run the parts into the folder `out`, and return the path of the report.

    Each part is a run in the folder NAME, whose files `gradest_experiments.engine.folder` describes, with one line of metrics
    per task, chart.svg and chart.png. report.md has the tables and charts of the complete parts. Called again with the same
    parts, it continues after the last finished task, with the same numbers on the same machine.

    progress: show a progress bar on standard error.

    Raises GradestError if plots cannot be written, and InvalidInput if `out` holds other settings or is damaged, both before
    anything is measured.
    """
    check_plots()
    if world_size() > 1:
        raise GradestError("the toys have no batches that processes could share: run them in one process")
    out = Path(out)
    folders = [(part, RunFolder.open(out / part.name, f"{_EXPERIMENT}{part.name}", part)) for part in parts]
    with progress_bar(progress, TextColumn("{task.percentage:>3.0f}%"), TextColumn("{task.fields[what]}")) as bar:
        for part, folder in folders:
            _finish(part, folder, bar)
            write_chart(part.chart(_results(folder)), out / part.name, _CHART)
            _write_report(out)
    return out / "report.md"


def _finish(part: Part, folder: RunFolder, bar: Progress) -> None:
    """Do the tasks that are not done yet."""
    tasks = part.tasks()
    shown = bar.add_task(part.name, total=len(tasks), what="")
    with folder.record(None) as metrics:
        folder.add_results(tasks=[*tasks])
        known = _results(folder)
        for done, (name, task) in enumerate(tasks.items()):
            bar.update(shown, completed=done, what=name)
            if name in known:
                continue
            try:
                metrics.write("task", done, name=name, result=task(partial(_show, bar, shown, done)))
                metrics.sync()
            except GradestError as error:
                raise GradestError(f"{part.name}, {name}: {error}") from error
    bar.update(shown, completed=len(tasks), what="")


def _show(bar: Progress, shown: TaskID, done: int, share: float) -> None:
    bar.update(shown, completed=done + share)


def _results(folder: RunFolder) -> dict[str, Any]:
    """Return what the finished tasks returned, by name."""
    return {row["name"]: row["result"] for row in folder.rows("task")}


def _write_report(out: Path) -> None:
    """Write report.md on all complete parts in the folder."""
    sections = [
        "# Toys\n\nThe small problems on which papers compare gradient estimators, by `gradest reproduce toys`. Python "
        f"{platform.python_version()}.\n"
    ]
    for name, kind in PARTS.items():
        if not RunFolder.exists(out / name):
            continue
        folder = RunFolder.read(out / name)
        part, results = kind(**folder.settings), _results(folder)
        # what part.tasks() says needs the estimators, which may have been registered for an earlier run alone
        if "tasks" in folder.results and {*folder.results["tasks"]} <= results.keys():
            listed = ", ".join(f"{field} {value}" for field, value in (folder.settings | folder.versions).items())
            sections.append(
                f"## {part.title}\n\n{part.text}\n\n![{part.title}]({name}/{_CHART}.svg)\n\n{part.table(results)}\n\n"
                f"Settings: {listed}. Data: [{name}]({name}); plot: [{_CHART}.png]({name}/{_CHART}.png).\n"
            )
    text = "\n".join(sections)
    write_atomically(out / "report.md", lambda new: new.write_text(text, encoding="utf-8"))
