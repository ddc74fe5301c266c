"""The table beside the published errors, what differs from them, and validation curves."""

from __future__ import annotations

import platform
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

from gradest_experiments.bengio2013.rows import ROWS, TableRow, row_of_run
from gradest_experiments.bengio2013.search import TOLERANCE
from gradest_experiments.bengio2013.settings import RowSettings
from gradest_experiments.engine.checkpoint import write_atomically
from gradest_experiments.engine.folder import RunFolder
from gradest_experiments.engine.plot import inline_data, line_encodings, write_chart
from gradest_experiments.engine.tables import markdown_table

__all__ = ["write_report"]

_LEVELS = (0.04, 0.03, 0.025, 0.02)  # validation errors of which the report says when a curve reaches them
_SHOWN = 0.06  # the largest error that the plot shows, unless a curve stays above it
_TEST_IMAGES = 10_000

_INTRODUCTION = """# Bengio, Léonard and Courville (2013) on MNIST

Conditional computation with stochastic gates (arXiv 1308.3432, section 5), by `gradest reproduce bengio2013`: a gater of 400
tanh units opens about 200 of 2000 linear experts for each image. 50,000 images are for training, 10,000 to choose the epoch by,
and 10,000 to test on.

- train: the criterion on the training images. valid, test: errors in %. All are of the weights of the epoch with the least
  validation error, without noise: the gates with the greatest probability are open, a tenth of them over 2000 training images;
  a rectifier emits its output without noise. The test images are scored once.
- open: the share of gates that are open on the test images in this mode, in %. open in training: the mean of P(open) in the
  last epoch, in %.
- Several seeds: mean ± standard deviation. The published errors are of single runs.
- ms per step: wall clock of a minibatch, validation included, on this machine.
- A row "as stated" has the settings of the paper, with a constant learning rate; the others have what trials chose. A row
  without published errors is by an estimator that is not of the paper.
"""


@dataclass(frozen=True)
class _FinishedRun:
    """What a finished run left in its folder."""

    settings: RowSettings
    versions: dict[str, Any]
    results: dict[str, Any]
    epochs: list[dict[str, Any]]

    @property
    def place(self) -> int:
        """The place of the row in the paper's table; those that are not of the paper come after it."""
        names = [{row.name, row.as_stated().name} for row in ROWS]
        return next((place for place, either in enumerate(names) if self.settings.row in either), len(ROWS))

    def numbers(self) -> dict[str, float]:
        """Return the numbers of the table."""
        last = self.epochs[-1]
        return {
            "train": self.results["train"]["loss"],
            "valid": 100 * self.results["valid"]["error"],
            "test": 100 * self.results["test"]["error"],
            "open": 100 * self.results["test"]["open_share"],
            "open in training": 100 * last["open"],
            "minutes": last["seconds"] / 60,
            "ms per step": 1000 * last["seconds"] / self.results["steps"],
        }


_Groups = list[tuple[TableRow, list[_FinishedRun]]]


def write_report(out: Path) -> Path:
    """Write report.md, curves.svg and curves.png on all complete runs in the folder, and return the path of report.md."""
    groups = _read_rows(out)
    sections = [_INTRODUCTION + f"\nPython {platform.python_version()}.\n"]
    if groups:
        write_chart(_chart(groups), out, "curves")
        sections += [
            _table(groups) + "\n",
            "## Beside the published errors\n\n"
            + "\n".join(_verdict(row, runs) for row, runs in groups if row.gater.published)
            + "\n",
            f"## Convergence\n\n![Validation error](curves.svg)\n\n{_convergence(groups)}\n",
            "## Settings\n\n" + "\n".join(_settings(row, runs) for row, runs in groups) + "\n",
        ]
    if searches := [text for row in ROWS if (text := _search(row, out / row.name / "search"))]:
        sections.append("## Search\n\n" + "\n".join(searches))
    text = "\n".join(sections)
    write_atomically(out / "report.md", lambda new: new.write_text(text, encoding="utf-8"))
    return out / "report.md"


def _read_rows(out: Path) -> _Groups:
    """Return the rows that have complete runs, those of the paper first."""
    found = [runs for folder in sorted(out.iterdir()) if folder.is_dir() and (runs := _read(folder))]
    return [(row_of_run(runs[0].settings), runs) for runs in sorted(found, key=lambda runs: runs[0].place)]


def _read(folder: Path) -> list[_FinishedRun]:
    """Return the complete runs in the order of their seeds."""
    runs = []
    for path in folder.glob("seed-*"):
        found = RunFolder.read(path)
        if "test" in found.results:
            runs.append(_FinishedRun(RowSettings(**found.settings), found.versions, found.results, found.rows("epoch")))
    return sorted(runs, key=lambda run: run.settings.seed)


def _table(groups: _Groups) -> str:
    head = ["gater", "published train", "train", "published valid %", "valid %", "published test %", "test %"]
    head += ["open %", "open in training %", "seeds", "epochs", "minutes", "ms per step"]
    rows = []
    for row, runs in groups:
        found = [run.numbers() for run in runs]
        criterion = None if row.criterion is None else f"{row.criterion:.1e}"
        valid, test = row.gater.published or (None, None)
        cells: list[str | None] = [row.title, criterion, _mean(found, "train", ".1e"), _percent(valid)]
        cells += [_mean(found, "valid", ".2f"), _percent(test), _mean(found, "test", ".2f")]
        cells += [_mean(found, "open", ".1f"), _mean(found, "open in training", ".1f")]
        epochs = sorted({run.settings.epochs for run in runs})
        cells += [
            str(len(found)),
            ", ".join(map(str, epochs)),
            _mean(found, "minutes", ".0f"),
            _mean(found, "ms per step", ".1f"),
        ]
        rows.append(cells)
    return markdown_table(head, rows)


def _percent(share: float | None) -> str | None:
    return None if share is None else f"{100 * share:.2f}"


def _mean(found: Sequence[dict[str, float]], name: str, form: str) -> str:
    several = [one[name] for one in found]
    spread = f" ± {stdev(several):{form}}" if len(several) > 1 else ""
    return f"{fmean(several):{form}}{spread}"


def _verdict(row: TableRow, runs: list[_FinishedRun]) -> str:
    """Say whether the test error differs from the published one by more than two standard errors of their difference.

    Both are errors on the same 10,000 images, so their difference has at most the variance of two independent samples.
    """
    assert row.gater.published is not None
    published, here = row.gater.published[1], fmean(run.results["test"]["error"] for run in runs)
    error = ((published * (1 - published) + here * (1 - here) / len(runs)) / _TEST_IMAGES) ** 0.5
    gap = here - published
    side = "above" if gap > 0 else "below"
    if abs(gap) <= 2 * error:
        said = "within two standard errors, as chance alone may explain"
    else:
        said = f"**more than two standard errors {side}: not what Bengio et al. (2013) report**"
    target = runs[0].settings.target()
    shares = {
        "on the test images": fmean(run.results["test"]["open_share"] for run in runs),
        "in training": fmean(run.epochs[-1]["open"] for run in runs),
    }
    opened = "".join(
        f" **{100 * share:.1f} % of the gates are open {where}, not {100 * target:.0f} ± {100 * TOLERANCE:.0f} %.**"
        for where, share in shares.items()
        if target is not None and abs(round(share, 2) - target) > TOLERANCE + 1e-9
    )
    return (
        f"- {row.title}: test error {100 * here:.2f} %, {100 * abs(gap):.2f} points {side} the published "
        f"{100 * published:.2f} %; {said} (one standard error is {100 * error:.2f} points).{opened}"
    )


def _convergence(groups: _Groups) -> str:
    """Return a table of the epochs in which each row's mean curve first reaches a level, the fastest row first."""
    head = ["epochs until a validation error of", *(f"{100 * level:g} %" for level in _LEVELS)]
    found = []
    for row, runs in groups:
        curve = _curve(runs)
        reached = [next((point["epoch"] for point in curve if point["value"] <= level), None) for level in _LEVELS]
        found.append([row.title, *reached])
    found.sort(key=lambda cells: [float("inf") if at is None else at for at in reversed(cells[1:])])
    published = (
        "In Bengio et al. (2013) the noisy rectifier and straight-through are fastest, then stochastic times smooth, then the "
        "unbiased binary gater."
    )
    return f"{markdown_table(head, found)}\n\n{published}"


def _settings(row: TableRow, runs: list[_FinishedRun]) -> str:
    """Name the settings of a row that differ from the published ones, and those in which its runs differ."""
    given = runs[0].settings.model_dump()
    apart = [
        f"{name} {given[name]} (published: {value})"
        for name, value in row.published_settings().items()
        if given[name] != value
    ]
    text = f"- {row.title}: " + (", ".join(apart) if apart else "as published") + "."
    if row.gater.published is None:
        text = f"- {row.title}: the defaults of `gradest train`, with a learning rate of {given['learning_rate']:g}."
    several = {name for run in runs for name, value in run.settings.model_dump().items() if value != given[name]} - {
        "seed"
    }
    several |= {name for run in runs for name in run.versions if run.versions[name] != runs[0].versions.get(name)}
    if several:
        text += f" **The runs differ in {', '.join(sorted(several))}: do not read their mean as that of one setting.**"
    return text


def _search(row: TableRow, path: Path) -> str:
    """Return a table of the trials of a row, empty if there was no search."""
    if not RunFolder.exists(path):
        return ""
    search = RunFolder.read(path)
    trials = {name: found for name, found in search.results.items() if name != "chosen"}
    head = [row.title, "valid %", "loss", "open %", ""]
    rows = [
        [
            name.replace(",", ", "),
            f"{100 * found['error']:.2f}",
            f"{found['loss']:.3f}",
            f"{100 * found['open']:.1f}",
            "chosen" if name == search.results.get("chosen") else "",
        ]
        for name, found in trials.items()
    ]
    return (
        f"{markdown_table(head, rows)}\n\nEpochs of a trial: {search.settings['options']['epochs']}.\n" if rows else ""
    )


def _curve(runs: Sequence[_FinishedRun]) -> list[dict[str, float]]:
    """Return the validation error by epoch, averaged over the seeds."""
    return [
        {
            "epoch": points[0]["step"],
            "minutes": fmean(point["seconds"] for point in points) / 60,
            "value": fmean(point["valid_error"] for point in points),
        }
        for points in zip(*(run.epochs for run in runs), strict=False)
    ]


def _chart(groups: _Groups) -> Any:
    """Draw validation error against epochs and against minutes."""
    import altair  # noqa: PLC0415  # an extra

    titles = [row.title for row, _ in groups]
    curves = {row.title: _curve(runs) for row, runs in groups}
    points = [
        {"estimator": title, **point, "value": 100 * point["value"]}
        for title, curve in curves.items()
        for point in curve
    ]
    best = [min(point["value"] for point in curve) for curve in curves.values()]
    top = 100 * max(_SHOWN, 1.2 * max(best))
    error = altair.Y("value:Q", title="validation error, %").scale(domain=[1, top], nice=False)
    chart = altair.Chart(inline_data(points)).mark_line(strokeWidth=1.5, clip=True)
    panels = [
        chart.encode(x=altair.X(f"{x}:Q", title=title).scale(nice=False), y=error, **line_encodings(titles, []))
        for x, title in (("epoch", "epochs"), ("minutes", "minutes"))
    ]
    return altair.hconcat(*(panel.properties(width=360, height=280) for panel in panels), spacing=25)
