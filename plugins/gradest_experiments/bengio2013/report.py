"""The table beside the published figures, validation curves, and where they differ."""

from __future__ import annotations

import platform
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

from gradest_experiments.bengio2013.rows import ROWS, Row
from gradest_experiments.bengio2013.search import TOLERANCE
from gradest_experiments.bengio2013.settings import RowSettings
from gradest_experiments.checkpoint import write_atomically
from gradest_experiments.folder import RunFolder
from gradest_experiments.part import markdown
from gradest_experiments.plot import lines, values, write_chart

__all__ = ["write_report"]

_LEVELS = (0.04, 0.03, 0.025, 0.02)  # validation errors that a curve comes down to
_SHOWN = 0.06  # the largest error that the plot shows
_TEST_IMAGES = 10_000

_INTRODUCTION = """# Bengio, Léonard and Courville 2013, on MNIST

Conditional computation with stochastic gates (arXiv 1308.3432, section 5), by `gradest reproduce bengio2013`: a gater of 400
tanh units opens about 200 of 2000 linear experts for each image. 50,000 images to learn from, 10,000 to choose by, 10,000 to
report on.

- train: criterion on the training images. valid, test: errors in %. All are of the weights of the epoch with the least
  validation error, in deterministic mode: the gates with the greatest probability are open, a tenth of them over 2000 training
  images; a rectifier emits its output without noise. Test images are looked at once.
- open: share of the gates that are open on the test images so, in %. In training: of P(open), in the last epoch.
- Several seeds: mean ± standard deviation. The source has single runs.
- ms a step: wall clock of a minibatch, validation included, on this machine.
"""


@dataclass(frozen=True)
class _Run:
    """A finished run."""

    settings: RowSettings
    versions: dict[str, Any]
    results: dict[str, Any]
    epochs: list[dict[str, Any]]

    def numbers(self) -> dict[str, float]:
        """Of the table."""
        last = self.epochs[-1]
        return {
            "train": self.results["train"]["loss"],
            "valid": 100 * self.results["valid"]["error"],
            "test": 100 * self.results["test"]["error"],
            "open": 100 * self.results["test"]["open_share"],
            "open in training": 100 * last["open"],
            "minutes": last["seconds"] / 60,
            "ms a step": 1000 * last["seconds"] / self.results["steps"],
        }


def write_report(out: Path) -> Path:
    """Of the runs in the folder that are complete, whoever ran them: report.md, curves.svg and curves.png."""
    groups = {row.name: runs for row in ROWS if (runs := _read(out / row.name))}
    sections = [_INTRODUCTION + f"\nPython {platform.python_version()}.\n"]
    if groups:
        write_chart(_chart(groups), out, "curves")
        sections += [
            _table(groups) + "\n",
            "## Against the published figures\n\n"
            + "\n".join(_verdict(row, groups[row.name]) for row in _rows(groups))
            + "\n",
            f"## Convergence\n\n![Validation error](curves.svg)\n\n{_convergence(groups)}\n",
            "## Settings\n\n" + "\n".join(_settings(row, groups[row.name]) for row in _rows(groups)) + "\n",
        ]
    if searches := [text for row in ROWS if (text := _search(row, out / row.name / "search"))]:
        sections.append("## Search\n\n" + "\n".join(searches))
    text = "\n".join(sections)
    write_atomically(out / "report.md", lambda new: new.write_text(text, encoding="utf-8"))
    return out / "report.md"


def _rows(groups: dict[str, list[_Run]]) -> list[Row]:
    return [row for row in ROWS if row.name in groups]


def _read(folder: Path) -> list[_Run]:
    """The complete runs, seeds in order."""
    runs = []
    for path in folder.glob("seed-*"):
        found = RunFolder.read(path)
        if "test" in found.results:
            runs.append(_Run(RowSettings(**found.settings), found.versions, found.results, found.rows("epoch")))
    return sorted(runs, key=lambda run: run.settings.seed)


def _table(groups: dict[str, list[_Run]]) -> str:
    head = [
        "gater",
        "train, source",
        "here",
        "valid %, source",
        "here",
        "test %, source",
        "here",
        "open %",
        "in training",
    ]
    head += ["seeds", "epochs", "minutes", "ms a step"]
    rows = []
    for row in _rows(groups):
        found = [run.numbers() for run in groups[row.name]]
        valid, test = row.gater.published
        cells = [row.title, f"{row.criterion:.1e}", _mean(found, "train", ".1e"), f"{100 * valid:.2f}"]
        cells += [_mean(found, "valid", ".2f"), f"{100 * test:.2f}", _mean(found, "test", ".2f")]
        cells += [_mean(found, "open", ".1f"), _mean(found, "open in training", ".1f")]
        epochs = sorted({run.settings.epochs for run in groups[row.name]})
        cells += [
            str(len(found)),
            ", ".join(map(str, epochs)),
            _mean(found, "minutes", ".0f"),
            _mean(found, "ms a step", ".1f"),
        ]
        rows.append(cells)
    return markdown(head, rows)


def _mean(found: Sequence[dict[str, float]], name: str, form: str) -> str:
    several = [one[name] for one in found]
    spread = f" ± {stdev(several):{form}}" if len(several) > 1 else ""
    return f"{fmean(several):{form}}{spread}"


def _verdict(row: Row, runs: list[_Run]) -> str:
    """In words, with two standard errors of both figures as the measure.

    Each is an error over 10,000 images, the same ones: the difference of two networks has at most the variance of two
    independent samples.
    """
    published, here = row.gater.published[1], fmean(run.results["test"]["error"] for run in runs)
    error = ((published * (1 - published) + here * (1 - here) / len(runs)) / _TEST_IMAGES) ** 0.5
    gap = here - published
    side = "above" if gap > 0 else "below"
    if abs(gap) <= 2 * error:
        said = "within two standard errors of the figure, which chance alone explains"
    else:
        said = f"**more than two standard errors {side}: not what the source reports**"
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
        f"{100 * published:.2f} %; {said} (one is {100 * error:.2f} points).{opened}"
    )


def _convergence(groups: dict[str, list[_Run]]) -> str:
    """When the mean curve of a row first comes down to a level, the fastest row first."""
    head = ["epochs until a validation error of", *(f"{100 * level:g} %" for level in _LEVELS)]
    found = []
    for row in _rows(groups):
        curve = _curve(groups[row.name])
        reached = [next((point["epoch"] for point in curve if point["value"] <= level), None) for level in _LEVELS]
        found.append([row.title, *reached])
    found.sort(key=lambda cells: [float("inf") if at is None else at for at in reversed(cells[1:])])
    published = (
        "In the source noisy rectifier and straight-through are fastest, then stochastic times smooth, then binary."
    )
    return f"{markdown(head, found)}\n\n{published}"


def _settings(row: Row, runs: list[_Run]) -> str:
    """Where they are not the source's."""
    given = runs[0].settings.model_dump()
    apart = [f"{name} {given[name]} (source: {value})" for name, value in row.source().items() if given[name] != value]
    text = f"- {row.title}: " + (", ".join(apart) if apart else "the source's") + "."
    several = {name for run in runs for name, value in run.settings.model_dump().items() if value != given[name]} - {
        "seed"
    }
    several |= {name for run in runs for name in run.versions if run.versions[name] != runs[0].versions.get(name)}
    if several:
        text += f" **The runs differ in {', '.join(sorted(several))}: their mean is of unlike things.**"
    return text


def _search(row: Row, path: Path) -> str:
    """The trials of a row, if there were any."""
    if not RunFolder.is_at(path):
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
    return f"{markdown(head, rows)}\n\nEpochs of a trial: {search.settings['options']['epochs']}.\n" if rows else ""


def _curve(runs: Sequence[_Run]) -> list[dict[str, float]]:
    """The mean validation error of the seeds, by epoch."""
    return [
        {
            "epoch": points[0]["step"],
            "minutes": fmean(point["seconds"] for point in points) / 60,
            "value": fmean(point["valid_error"] for point in points),
        }
        for points in zip(*(run.epochs for run in runs), strict=False)
    ]


def _chart(groups: dict[str, list[_Run]]) -> Any:
    """Validation error against epochs and against minutes."""
    import altair  # noqa: PLC0415  # an extra

    titles = [row.title for row in _rows(groups)]
    curves = {row.title: _curve(groups[row.name]) for row in _rows(groups)}
    points = [
        {"estimator": title, **point, "value": 100 * point["value"]}
        for title, curve in curves.items()
        for point in curve
    ]
    best = [min(point["value"] for point in curve) for curve in curves.values()]
    top = 100 * max(_SHOWN, 1.2 * max(best))
    error = altair.Y("value:Q", title="validation error, %").scale(domain=[1, top], nice=False)
    chart = altair.Chart(values(points)).mark_line(strokeWidth=1.5, clip=True)
    panels = [
        chart.encode(x=altair.X(f"{x}:Q", title=title).scale(nice=False), y=error, **lines(titles, []))
        for x, title in (("epoch", "epochs"), ("minutes", "minutes"))
    ]
    return altair.hconcat(*(panel.properties(width=360, height=280) for panel in panels), spacing=25)
