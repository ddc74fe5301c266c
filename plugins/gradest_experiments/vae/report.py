"""Tables and plots of the runs in a folder."""

from __future__ import annotations

import platform
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

from gradest_experiments.engine.checkpoint import write_atomically
from gradest_experiments.engine.folder import MetricsRow, RunFolder, list_folders
from gradest_experiments.engine.plot import inline_data, line_encodings, write_chart
from gradest_experiments.engine.tables import markdown_table
from gradest_experiments.vae.settings import NETWORKS, VaeSettings

__all__ = ["REPORT", "write_report"]

REPORT = "report.md"

_SHOWN = 60  # the range of the ELBO in a plot, in nats below the best

_INTRODUCTION = """# Binary VAE

A variational autoencoder with Bernoulli latents on dynamically binarised MNIST, by `gradest reproduce binary-vae`. Every
estimator has the same initial weights, images, order and seeds. The prior is uniform and fixed. The encoder sees an image minus
the mean image, the decoder sees 2h - 1, and the output's bias starts at the logit of the mean image. The optimiser is Adam.

- train: the ELBO on training minibatches, averaged over the last tenth of the steps. This is what papers print; it is an
  average over samples, not a multi-sample bound.
- valid: the ELBO on the validation images, at the end.
- test: the importance-weighted bound on the test images, log-mean-exp of test_samples samples per image.
- variance: of one draw of the gradient in the encoder's parameters, per coordinate, averaged over coordinates, on one fixed
  batch, at the end.
- evaluations: the number of evaluations of log p(x, h) in a step. A gradient in h costs about as much as an evaluation.
- ms per step: wall clock, measurements excluded, on this machine.

Several seeds: mean ± standard error. An estimator with more samples also gives the decoder a less noisy gradient.

Published after a million steps, nonlinear, K = 2, ELBO in training: DisARM -102.75, double CV -102.14, RODEO -101.89 (as quoted
by Shi et al. 2022, arXiv 2202.09497). Fewer steps reach lower values; only the order can be compared.
"""


@dataclass(frozen=True)
class _FinishedRun:
    """What a finished run left in its folder."""

    settings: dict[str, Any]
    evaluations: int
    rows: list[MetricsRow]

    def series(self, kind: str) -> list[MetricsRow]:
        """Return the lines of metrics of a kind."""
        return [row for row in self.rows if row["kind"] == kind]

    def numbers(self) -> dict[str, float]:
        """Return the numbers of the table."""
        train = self.series("train")
        late = [row["elbo"] for row in train if row["step"] > 0.9 * self.settings["steps"]]
        return {
            "train": fmean(late),
            "valid": self.series("valid")[-1]["elbo"],
            "test": self.series("test")[-1]["bound"],
            "variance": self.series("variance")[-1]["parameters"],
            "ms per step": 1000 * train[-1]["seconds"] / train[-1]["step"],
        }


def write_report(out: Path) -> Path:
    """Write report.md, NETWORK.svg and NETWORK.png on all complete runs in the folder, and return the path of report.md."""
    sections = [_INTRODUCTION + f"\nPython {platform.python_version()}.\n"]
    for network in NETWORKS:
        groups = _read(out / network)
        if not groups:
            continue
        write_chart(_chart(groups), out, network)
        sections.append(
            f"## {network}\n\n![ELBO and variance]({network}.svg)\n\n{_table(groups)}\n\n{_settings(groups)}\n"
        )
    text = "\n".join(sections)
    write_atomically(out / REPORT, lambda new: new.write_text(text, encoding="utf-8"))
    return out / REPORT


def _read(folder: Path) -> dict[str, list[_FinishedRun]]:
    """Return the complete runs by estimator, in the order of their seeds."""
    groups: dict[str, list[_FinishedRun]] = {}
    for path in list_folders(folder):
        found = RunFolder.read(path)
        if "test" not in found.results:
            continue
        run = _FinishedRun(found.settings | found.versions, found.results["evaluations"], found.rows())
        groups.setdefault(VaeSettings(**found.settings).build_estimator().label(), []).append(run)
    return groups


def _table(groups: dict[str, list[_FinishedRun]]) -> str:
    """Return a table with a row per estimator, the best training ELBO first."""
    rows = []
    for label, runs in groups.items():
        found = [run.numbers() for run in runs]
        means = {name: fmean(one[name] for one in found) for name in found[0]}
        cells: dict[str, Any] = {"estimator": label, "evaluations": runs[0].evaluations, "seeds": len(runs)}
        for name in ("train", "valid", "test"):
            several = [one[name] for one in found]
            error = f" ± {stdev(several) / len(several) ** 0.5:.2f}" if len(several) > 1 else ""
            cells[name] = f"{means[name]:.2f}{error}"
        rows.append(
            (means["train"], {**cells, "variance": f"{means['variance']:.2e}", "ms per step": means["ms per step"]})
        )
    rows.sort(key=lambda row: -row[0])
    return markdown_table(list(rows[0][1]), [list(cells.values()) for _, cells in rows])


def _settings(groups: dict[str, list[_FinishedRun]]) -> str:
    """List the settings that all runs have in common, and warn if the runs differ in others."""
    every = [run.settings for runs in groups.values() for run in runs]
    own = {"estimator", "network", "seed"}
    common = {name: value for name, value in every[0].items() if all(one.get(name) == value for one in every)}
    text = "Settings: " + ", ".join(f"{name} {value}" for name, value in common.items() if name not in own) + "."
    if apart := sorted({name for one in every for name in one} - common.keys() - own):
        text += f" **The runs differ in {', '.join(apart)}: their numbers cannot be compared.**"
    return text


def _chart(groups: dict[str, list[_FinishedRun]]) -> Any:
    """Draw ELBO against steps, variance against steps, and ELBO against seconds."""
    import altair  # noqa: PLC0415  # an extra

    best = max(row["elbo"] for runs in groups.values() for run in runs for row in run.series("train"))
    elbo = altair.Y("value:Q", title="ELBO in training, nats").scale(domain=[best - _SHOWN, best])
    variance = altair.Y("value:Q", title="variance of the encoder's gradient").scale(type="log", nice=False)
    panels = [
        _panel(groups, "train", "step", "elbo", "steps", elbo),
        _panel(groups, "variance", "step", "parameters", "steps", variance.axis(format="~e", tickCount=6)),
        _panel(groups, "train", "seconds", "elbo", "seconds", elbo),
    ]
    return altair.hconcat(*panels, spacing=25)


def _panel(groups: dict[str, list[_FinishedRun]], kind: str, x: str, y: str, title: str, axis: Any) -> Any:
    import altair  # noqa: PLC0415  # an extra

    points = [
        {"estimator": label, "x": row[x], "value": row[y]}
        for label, runs in groups.items()
        for row in _mean([run.series(kind) for run in runs])
        if row[y] > 0 or y == "elbo"  # a logarithmic axis has no place for 0
    ]
    chart = altair.Chart(inline_data(points)).mark_line(strokeWidth=1.5, clip=True)
    across = altair.X("x:Q", title=title).scale(nice=False).axis(format="~s", tickCount=6)
    return chart.encode(x=across, y=axis, **line_encodings(list(groups), [])).properties(width=300, height=260)


def _mean(runs: Sequence[list[dict[str, Any]]]) -> list[dict[str, Any]]:
    """Average the rows of several seeds, place by place."""
    return [
        {name: fmean(row[name] for row in rows) for name in rows[0] if name != "kind"}
        for rows in zip(*runs, strict=False)
    ]
