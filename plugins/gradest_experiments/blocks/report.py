"""Tables and plots of the runs in a folder."""

from __future__ import annotations

import json
import math
import platform
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import fmean, median, stdev
from typing import Any

from gradest_experiments.blocks.settings import PUBLISHED, SIZES, BlockSettings
from gradest_experiments.engine.checkpoint import write_atomically
from gradest_experiments.engine.folder import RunFolder, list_folders
from gradest_experiments.engine.plot import colour_encoding, inline_data, write_chart
from gradest_experiments.engine.tables import markdown_table

__all__ = ["SPEED", "mutual_information", "write_report"]

SPEED = "speed.json"

_INTRODUCTION = """# Conditional computation at block level

By `gradest reproduce block-gated`, on MNIST: 50,000 images are for training, 10,000 to choose the epoch by, and 10,000 to test
on. The network has one hidden layer of tanh units, divided into blocks. A policy, linear in the image, opens blocks at random;
it is trained through the estimator, with the penalties of Bengio et al. (2015, arXiv 1511.06297) on its probabilities. There
are three dense networks: one with as many units, one that computes as much as a gated network with its policy, and one with as
many units as should be open.

- open: the share of blocks that are open, over the test images.
- computed: multiply-adds of a forward pass, policy and readout included, divided by those of the dense network with as many
  units; the hidden layer counts its own as it does them.
- valid, test: errors with sampled gates, of the epoch with the least validation error. test at ½: the error of the same network
  if the likeliest gates are open, as in the measurement of speed: those more likely open than not, or the likeliest one or k.
- none open: the share of test images for which no block is open, which all get the same answer. errors of these: the share of all
  test images that are among them and get a wrong answer; it is a part of test.
- bits: Σ_j I(block j open; class) on the test images; a block that is open for every class alike adds 0.

Several seeds: mean ± standard error.

Published test errors: 2.3 % for 16 x 16, 1.9 % dense with 256 units, 2.8 % dense with 32 units. The paper says that "models that
deal with MNIST are too small" for skipping to make a difference in time.
"""


def write_report(out: Path) -> Path:
    """Write report.md, SIZE.svg and SIZE.png on all complete runs in the folder, and return the path of report.md."""
    sections = [_INTRODUCTION + f"\nPython {platform.python_version()}.\n"]
    for size in SIZES:
        groups = _read(out / size)
        if not groups:
            continue
        whole = max(run.results["test"]["dense"] for runs in groups.values() for run in runs)
        write_chart(_chart(size, groups, whole), out, size)
        sections.append(
            f"## {size}\n\n![Error against computation, and the use of blocks]({size}.svg)\n\n{_table(size, groups, whole)}\n"
        )
        if (out / size / SPEED).exists():
            sections.append(_speed(json.loads((out / size / SPEED).read_text(encoding="utf-8"))))
        sections.append(_settings(groups))
    text = "\n".join(sections)
    write_atomically(out / "report.md", lambda new: new.write_text(text, encoding="utf-8"))
    return out / "report.md"


def mutual_information(use: Sequence[Sequence[float]], classes: Sequence[float]) -> float:
    """Return Σ_j I(block j open; class) in bits, for use `[classes, blocks]`, P(j open | class), and classes, P(class)."""
    total = 0.0
    for opened in zip(*use, strict=True):
        mean = sum(p * share for p, share in zip(opened, classes, strict=True))
        total += _entropy(mean) - sum(_entropy(p) * share for p, share in zip(opened, classes, strict=True))
    return total


def _entropy(p: float) -> float:
    return -sum(q * math.log2(q) for q in (p, 1 - p) if q > 0)


def _read(path: Path) -> dict[str, list[RunFolder]]:
    """Return the complete runs by network, in the order of their seeds."""
    groups: dict[str, list[RunFolder]] = {}
    for run in map(RunFolder.read, list_folders(path)):
        if "test" in run.results:
            groups.setdefault(BlockSettings(**run.settings).label(), []).append(run)
    return groups


def _table(size: str, groups: Mapping[str, list[RunFolder]], whole: float) -> str:
    """Return a table with a row per network, the least test error first."""
    best = sorted(groups, key=lambda label: fmean(run.results["test"]["error"] for run in groups[label]))
    head = ["network", "seeds", "open %", "computed %", "valid %", "test %", "test at ½ %"]
    head += ["none open %", "errors of these %", "bits", "published test %"]
    rows: list[list[Any]] = []
    for label in best:
        results = [run.results for run in groups[label]]
        gated = groups[label][0].settings["estimator"] is not None
        published = PUBLISHED.get(size, {}).get(label)
        rows.append(
            [
                label,
                len(results),
                _percent([one["test"]["open"] for one in results]) if gated else None,
                _percent([one["test"]["computed"] / whole for one in results]),
                _percent([one["valid"] for one in results]),
                _percent([one["test"]["error"] for one in results]),
                _percent([one["threshold"]["error"] for one in results]) if gated else None,
                _unopened(results, "unopened") if gated else None,
                _unopened(results, "unopened_errors") if gated else None,
                fmean(mutual_information(one["test"]["use"], one["test"]["classes"]) for one in results)
                if gated
                else None,
                None if published is None else f"{100 * published:.1f}",
            ]
        )
    return markdown_table(head, rows)


def _unopened(results: Sequence[Mapping[str, Any]], name: str) -> str | None:
    """Return a share of the images without an open block; None if runs of an earlier version did not measure it."""
    found = [one["test"].get(name) for one in results]
    return None if None in found else _percent(found)


def _percent(several: Sequence[float]) -> str:
    error = f" ± {100 * stdev(several) / len(several) ** 0.5:.2f}" if len(several) > 1 else ""
    return f"{100 * fmean(several):.2f}{error}"


def _speed(rows: Sequence[dict[str, Any]]) -> str:
    """Return a table of each network's time, and of how many times as fast as dense networks it is, by the median of rounds."""
    cells: dict[tuple[int, int], dict[str, list[float]]] = {}
    for row in rows:
        cells.setdefault((row["threads"], row["batch"]), {})[row["network"]] = row["ms"]
    names = list(next(iter(cells.values())))
    dense = [name for name in names if name.startswith("dense")][:2]
    head = ["network"]
    table: list[list[Any]] = [[name] for name in names]
    for (threads, batch), found in cells.items():
        head += [
            f"{batch} image{'s' * (batch > 1)}, {threads} thread{'s' * (threads > 1)}: µs",
            *(f"× {name}" for name in dense),
        ]
        for line in table:
            line.append(f"{1e3 * median(found[line[0]]):.0f}")
            for name in dense:
                ratios = [theirs / ours for theirs, ours in zip(found[name], found[line[0]], strict=True)]
                line.append(f"{median(ratios):.2f}")
    return (
        "Time of a forward pass, policy included, as the network would be deployed, in µs, and how many times as fast as the "
        f"dense networks it is; below 1 the dense network is faster.\n\n{markdown_table(head, table)}\n"
    )


def _settings(groups: Mapping[str, list[RunFolder]]) -> str:
    """List the settings that all runs have in common, and warn if the runs differ in others."""
    every = [run.settings | run.versions for runs in groups.values() for run in runs]
    own = {"estimator", "neuron", "blocks", "block_size", "seed"}
    common = {name: value for name, value in every[0].items() if all(one.get(name) == value for one in every)}
    text = "Settings: " + ", ".join(f"{name} {value}" for name, value in common.items() if name not in own) + "."
    if apart := sorted({name for one in every for name in one} - common.keys() - own):
        text += f" **The runs differ in {', '.join(apart)}: their numbers cannot be compared.**"
    return text + "\n"


def _chart(size: str, groups: Mapping[str, list[RunFolder]], whole: float) -> Any:
    """Draw error against the share of computation and, for each gated network, which classes open which block."""
    import altair  # noqa: PLC0415  # an extra

    points = [
        {"network": label, "x": 100 * run.results["test"]["computed"] / whole, "y": 100 * run.results["test"]["error"]}
        for label, runs in groups.items()
        for run in runs
    ]
    across = altair.X("x:Q", title="multiply-adds, % of the dense network of equal size").scale(type="log", nice=False)
    up = altair.Y("y:Q", title="test error, %").scale(zero=False)
    errors = (
        altair.Chart(inline_data(points))
        .mark_point(filled=True, size=70)
        .encode(x=across, y=up, color=colour_encoding(list(groups), "network"))
        .properties(width=420, height=260)
    )
    maps = [_use(label, runs[0]) for label, runs in groups.items() if runs[0].settings["estimator"] is not None]
    return altair.vconcat(errors, altair.concat(*maps, columns=3, spacing=20)) if maps else errors


def _use(label: str, run: RunFolder) -> Any:
    """Draw the share of each class's images for which a block is open, blocks sorted by the class that opens them most."""
    import altair  # noqa: PLC0415  # an extra

    use = run.results["test"]["use"]
    blocks = sorted(range(len(use[0])), key=lambda block: max(range(len(use)), key=lambda c: use[c][block]))
    cells = [
        {"block": place, "class": c, "open": row[block]}
        for c, row in enumerate(use)
        for place, block in enumerate(blocks)
    ]
    shade = altair.Color("open:Q", title="share open").scale(scheme="blues", domain=[0, 1])
    return (
        altair.Chart(inline_data(cells), title=label)
        .mark_rect()
        .encode(x=altair.X("block:O", axis=altair.Axis(labels=False, ticks=False)), y="class:O", color=shade)
        .properties(width=200, height=130)
    )
