"""Table and plot of the runs in a folder."""

from __future__ import annotations

import platform
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

from gradest_experiments.engine.checkpoint import write_atomically
from gradest_experiments.engine.folder import RunFolder, list_folders
from gradest_experiments.engine.plot import colour_encoding, inline_data, write_chart
from gradest_experiments.engine.tables import markdown_table
from gradest_experiments.experts.settings import ExpertSettings

__all__ = ["write_report"]

_CHART = "experts"
_INTRODUCTION = """# Routers of a mixture of experts

By `gradest reproduce experts`, on MNIST: 50,000 images are for training, 10,000 to choose the epoch by, and 10,000 to test on.
The network has one hidden layer of relu units, divided among experts. A router, linear in the image, opens one or two of them,
with the penalty `load_balance` of Shazeer et al. (2017) on unequal importance. Each router is a neuron and the estimator by which
it is trained. There are three dense networks: one with as many units as all experts, and one each that computes as much as a
router with two experts, and with one. In evaluation the router has no noise.

- computed: multiply-adds of a forward pass, router and readout included, divided by those of the dense network of all experts;
  the hidden layer counts its own as it does them.
- all in training: whether training computes the closed experts too, because the estimator needs their dL/dh.
- balance: the squared coefficient of variation of the experts' shares of test images, 0 if they are even. least, most: the
  smallest and largest share, divided by the even one.

Several seeds: mean ± standard error.
"""


def write_report(out: Path) -> Path:
    """Write report.md, experts.svg and experts.png on all complete runs in the folder, and return the path of report.md."""
    groups: dict[str, list[RunFolder]] = {}
    for run in map(RunFolder.read, list_folders(out)):
        if "test" in run.results:
            groups.setdefault(ExpertSettings(**run.settings).label(), []).append(run)
    whole = max(run.results["test"]["dense"] for runs in groups.values() for run in runs)
    write_chart(_chart(groups, whole), out, _CHART)
    text = (
        f"{_INTRODUCTION}\nPython {platform.python_version()}.\n\n![Error against computation]({_CHART}.svg)\n\n"
        f"{_table(groups, whole)}\n\n{_settings(groups)}"
    )
    write_atomically(out / "report.md", lambda new: new.write_text(text, encoding="utf-8"))
    return out / "report.md"


def _table(groups: Mapping[str, list[RunFolder]], whole: float) -> str:
    """Return a table with a row per network, the least test error first."""
    head = ["network", "seeds", "computed %", "all in training", "valid %", "test %", "balance", "least", "most"]
    rows: list[list[Any]] = []
    for label in sorted(groups, key=lambda label: fmean(run.results["test"]["error"] for run in groups[label])):
        results = [run.results for run in groups[label]]
        gated = groups[label][0].settings["neuron"] is not None
        shares = [
            [len(load) * share / sum(load) for share in load] for load in (one["test"]["load"] for one in results)
        ]
        rows.append(
            [
                label,
                len(results),
                _percent([one["test"]["computed"] / whole for one in results]),
                ("yes" if _computes_all(groups[label][0]) else "no") if gated else None,
                _percent([one["valid"] for one in results]),
                _percent([one["test"]["error"] for one in results]),
                fmean(one["test"]["balance"] for one in results) if gated else None,
                fmean(map(min, shares)) if gated else None,
                fmean(map(max, shares)) if gated else None,
            ]
        )
    return markdown_table(head, rows)


def _computes_all(run: RunFolder) -> bool:
    return bool(run.results["closed_gate_gradient"])


def _percent(several: Sequence[float]) -> str:
    error = f" ± {100 * stdev(several) / len(several) ** 0.5:.2f}" if len(several) > 1 else ""
    return f"{100 * fmean(several):.2f}{error}"


def _settings(groups: Mapping[str, list[RunFolder]]) -> str:
    """List the settings that all runs have in common, and warn if the runs differ in others."""
    every = [run.settings | run.versions for runs in groups.values() for run in runs]
    own = {"neuron", "estimator", "experts", "expert_units", "seed"}
    common = {name: value for name, value in every[0].items() if all(one.get(name) == value for one in every)}
    text = "Settings: " + ", ".join(f"{name} {value}" for name, value in common.items() if name not in own) + "."
    if apart := sorted({name for one in every for name in one} - common.keys() - own):
        text += f" **The runs differ in {', '.join(apart)}: their numbers cannot be compared.**"
    return text + "\n"


def _chart(groups: Mapping[str, list[RunFolder]], whole: float) -> Any:
    """Draw error against the share of computation."""
    import altair  # noqa: PLC0415  # an extra

    points = [
        {"network": label, "x": 100 * run.results["test"]["computed"] / whole, "y": 100 * run.results["test"]["error"]}
        for label, runs in groups.items()
        for run in runs
    ]
    across = altair.X("x:Q", title="multiply-adds, % of the dense network of all experts").scale(type="log", nice=False)
    up = altair.Y("y:Q", title="test error, %").scale(zero=False)
    chart = altair.Chart(inline_data(points)).mark_point(filled=True, size=70)
    return chart.encode(x=across, y=up, color=colour_encoding(list(groups), "network")).properties(
        width=420, height=260
    )
