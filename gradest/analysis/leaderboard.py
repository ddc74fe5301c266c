"""The leaderboard: results of `gradest benchmark`, kept as small JSON files, and how estimators rank on a problem.

    FOLDER/PROBLEM.SIZE/problem.json    what is measured, in which unit, whether less is better, the settings, and what was tuned
    FOLDER/PROBLEM.SIZE/ESTIMATOR.json  an estimator, and its runs: one line for each seed, version of gradest and kind of machine

This module does not import torch, so that the results can be shown quickly, and where nothing is trained.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from statistics import fmean, stdev
from typing import Any, Literal

from gradest.analysis.markdown import table
from gradest.errors import InvalidInput

__all__ = [
    "STANDING_COLUMNS",
    "Board",
    "BoardEntry",
    "BoardProblem",
    "BoardRun",
    "Standing",
    "board_to_dict",
    "boards_to_markdown",
    "join_boards",
    "kept_results",
    "read_boards",
    "standings",
    "to_row",
    "write_board",
]

_PROBLEM = "problem.json"

STANDING_COLUMNS = (
    "rank",
    "estimator",
    "value",
    "± SD",
    "seeds",
    "behind the first",
    "± SE",
    "K",
    "evaluations",
    "seconds",
    "claimed bias",
    "least cosine",
)
"""How tables for people call what `to_row` returns."""


@dataclass(frozen=True)
class BoardProblem:
    """A problem at one size, on which estimators are ranked.

    metric, unit: what the value of a run is. better: whether the lower or the higher value is. tuned: what was tuned, and on
    what. settings: all sizes and constants. Results under other settings are those of another problem.
    """

    name: str
    size: str
    title: str
    text: str
    metric: str
    unit: str
    better: Literal["lower", "higher"]
    tuned: str
    settings: dict[str, Any]

    @property
    def key(self) -> str:
        """The name of its folder."""
        return f"{self.name}.{self.size}"


@dataclass(frozen=True)
class BoardRun:
    """What one run of an estimator came to.

    value: None if the run failed, of which `failure` tells. evaluations: of the loss, all together. seconds: of training or
    measurement. curve: steps and values.
    """

    seed: int
    gradest: str
    torch: str
    machine: str
    value: float | None
    evaluations: int
    seconds: float
    failure: str = ""
    curve: tuple[tuple[int, float], ...] = ()
    details: dict[str, Any] = field(default_factory=dict)

    @property
    def origin(self) -> tuple[int, str, str]:
        """What tells two runs of an estimator apart: seed, version of gradest, kind of machine."""
        return self.seed, self.gradest, self.machine

    @property
    def cpu_seconds(self) -> float:
        """The most CPU time that the run can have taken: its seconds times the threads that `machine` ends with, or one."""
        threads = re.search(r"(\d+) threads?$", self.machine)
        return self.seconds * (int(threads[1]) if threads else 1)


@dataclass(frozen=True)
class BoardEntry:
    """An estimator and its runs on a problem.

    estimator: its spec. distribution: what provides it. neuron: the neuron's label. per_draw: K, the evaluations of one draw.
    claim: the bias that it claims. cosine: the least cosine of its mean gradient with the exact one in its certificate for the
    neuron; None without one.
    """

    estimator: dict[str, Any]
    label: str
    distribution: str
    neuron: str
    needs: tuple[str, ...]
    per_draw: int
    claim: str
    cosine: float | None
    runs: tuple[BoardRun, ...]

    def latest(self) -> dict[int, BoardRun]:
        """Return the last of the runs of each seed, by seed."""
        return {run.seed: run for run in self.runs}


@dataclass(frozen=True)
class Board:
    """All results on a problem, by the label of the estimator."""

    problem: BoardProblem
    entries: Mapping[str, BoardEntry]


@dataclass(frozen=True)
class Standing:
    """The place of an estimator on a problem.

    mean, spread: of the value over seeds; spread is the standard deviation, None for one seed. behind, behind_error: the
    mean over the common seeds of the difference from the estimator in the first place, positive if it is worse, and its
    standard error.
    rank: None, like the mean, if a run failed.
    """

    rank: int | None
    entry: BoardEntry
    seeds: int
    mean: float | None
    spread: float | None
    behind: float | None
    behind_error: float | None
    evaluations: float
    seconds: float


def kept_results() -> Path:
    """Return the folder of the results that come with gradest: in the package, or in docs/results of a checkout."""
    package = Path(__file__).parents[1]
    shipped = package / "leaderboard"
    return shipped if shipped.is_dir() else package.parent / "docs" / "results" / "leaderboard"


def read_boards(folder: Path, problem: str | None = None) -> list[Board]:
    """Return the boards in a folder, or those of one problem, sorted by name; none if there are none.

    Raises InvalidInput if a file is damaged.
    """
    pattern = "*" if problem is None else f"{problem}.*"
    return [_read_board(path.parent) for path in sorted(folder.glob(f"{pattern}/{_PROBLEM}"))]


def _read_board(folder: Path) -> Board:
    try:
        problem = BoardProblem(**_read(folder / _PROBLEM))
    except TypeError as error:
        raise InvalidInput(f"{folder / _PROBLEM} is not a problem of results: {error}") from error
    entries: dict[str, BoardEntry] = {}
    for path in sorted(folder.glob("*.json")):
        if path.name == _PROBLEM:
            continue
        found = _read(path)
        try:
            runs = tuple(_to_run(run) for run in found.pop("runs"))
            if not runs:
                raise ValueError("it has no run")
            entry = BoardEntry(**{**found, "needs": tuple(found["needs"])}, runs=runs)
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            raise InvalidInput(f"{path} is not a file of results: {error}") from error
        entries[entry.label] = entry
    return Board(problem, entries)


def _to_run(found: dict[str, Any]) -> BoardRun:
    curve = tuple((int(step), value) for step, value in found.get("curve", ()) if value is not None)
    run = BoardRun(**{**found, "curve": curve})
    numbers = [run.seed, run.evaluations, run.seconds, *(value for _, value in curve)]
    if not all(isinstance(number, int | float) for number in (*numbers, 0 if run.value is None else run.value)):
        raise TypeError(f"the run of seed {run.seed} has what should be numbers as something else")
    return run


def _read(path: Path) -> Any:
    def refuse(constant: str) -> None:
        raise ValueError(f"{constant} is no number of JSON")

    try:
        return json.loads(path.read_text(encoding="utf-8"), parse_constant=refuse)
    except ValueError as error:
        raise InvalidInput(f"{path} is not JSON: {error}") from error


def write_board(folder: Path, board: Board) -> None:
    """Write a board into its folder, `folder`/PROBLEM.SIZE, with a line for each run, so that a diff shows which are new."""
    home = folder / board.problem.key
    home.mkdir(parents=True, exist_ok=True)
    _replace(home / _PROBLEM, json.dumps(asdict(board.problem), indent=1) + "\n")
    for label, entry in board.entries.items():
        head = {**asdict(replace(entry, runs=())), "needs": list(entry.needs)}
        del head["runs"]
        lines = ",\n".join(json.dumps(_plain(asdict(run)), allow_nan=False) for run in entry.runs)
        name = re.sub(r"[^\w.+-]+", "-", label).strip("-")
        text = f'{json.dumps(head)[:-1]}, "runs": [\n{lines}\n]}}\n'
        _replace(home / f"{name}.json", text)


def _replace(path: Path, text: str) -> None:
    """Write a file whole, or leave the old one: results may have taken hours."""
    new = path.with_name(f".{path.name}.new")
    new.write_text(text, encoding="utf-8")
    new.replace(path)


def _plain(run: dict[str, Any]) -> dict[str, Any]:
    """Leave out what is empty, and round to six digits."""
    return {name: _rounded(value) for name, value in run.items() if value not in ("", (), {})}


def _rounded(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _rounded(item) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return [_rounded(item) for item in value]
    if isinstance(value, float):
        return float(f"{value:.6g}") if math.isfinite(value) else None
    return value


def join_boards(kept: Sequence[Board], new: Sequence[Board]) -> list[Board]:
    """Return the new boards with the kept results on the same problems, and the kept boards without new results.

    A run replaces a kept one of the same estimator, seed, version and machine, and comes after all others. Kept results under
    other settings are left out, because they are those of another problem.
    """
    joined = {board.problem.key: board for board in kept}
    for board in new:
        other = joined.get(board.problem.key)
        same = other is not None and other.problem.settings == board.problem.settings
        entries = dict(other.entries) if other is not None and same else {}
        for label, entry in board.entries.items():
            earlier = entries[label].runs if label in entries else ()
            again = {run.origin for run in entry.runs}
            runs = (*(run for run in earlier if run.origin not in again), *entry.runs)
            entries[label] = replace(entry, runs=runs)
        joined[board.problem.key] = Board(board.problem, dict(sorted(entries.items())))
    return [joined[key] for key in sorted(joined)]


def standings(board: Board) -> list[Standing]:
    """Return the place of each estimator, the best first; those of which a run failed come last."""
    sign = 1 if board.problem.better == "lower" else -1
    values = {label: _values(entry) for label, entry in board.entries.items()}
    complete = [label for label, found in values.items() if found and None not in found.values()]
    order = sorted(complete, key=lambda label: sign * fmean(_numbers(values[label])))
    order += [label for label in values if label not in complete]
    first = values[order[0]] if complete else {}
    return [
        _standing(board.entries[label], values[label], first, sign, place if label in complete else None)
        for place, label in enumerate(order, 1)
    ]


def _values(entry: BoardEntry) -> dict[int, float | None]:
    return {seed: run.value for seed, run in entry.latest().items()}


def _numbers(values: Mapping[int, float | None]) -> list[float]:
    return [value for value in values.values() if value is not None]


def _standing(
    entry: BoardEntry, own: Mapping[int, float | None], first: Mapping[int, float | None], sign: int, rank: int | None
) -> Standing:
    numbers = _numbers(own)
    pairs = ((own[seed], first[seed]) for seed in own.keys() & first.keys())
    behind = [sign * (mine - best) for mine, best in pairs if mine is not None and best is not None]
    runs = entry.latest().values()
    return Standing(
        rank,
        entry,
        len(own),
        fmean(numbers) if rank else None,
        stdev(numbers) if rank and len(numbers) > 1 else None,
        fmean(behind) if rank and behind else None,
        stdev(behind) / math.sqrt(len(behind)) if rank and len(behind) > 1 else None,
        fmean(run.evaluations for run in runs),
        fmean(run.seconds for run in runs),
    )


def to_row(standing: Standing) -> list[Any]:
    """Return the cells of a row under STANDING_COLUMNS. The value is a text that ends where its spread has two digits."""
    entry = standing.entry
    return [
        standing.rank,
        entry.label,
        "failed" if standing.mean is None else _to_spread(standing.mean, standing.spread),
        standing.spread,
        standing.seeds,
        standing.behind,
        standing.behind_error,
        entry.per_draw,
        round(standing.evaluations),
        standing.seconds if standing.seconds < 100 else round(standing.seconds),
        entry.claim,
        entry.cosine,
    ]


def _to_spread(value: float, spread: float | None) -> str:
    if not spread or not 1e-4 <= abs(value) < 1e9:
        return f"{value:.5g}"
    return f"{value:.{min(6, max(0, 1 - math.floor(math.log10(spread))))}f}"


def board_to_dict(board: Board) -> dict[str, Any]:
    """Return the problem and the standings, with all runs, as a dict that can be written as JSON."""
    rows = []
    for standing in standings(board):
        row = asdict(standing)
        rows.append({**row.pop("entry"), **row})
    return {"problem": asdict(board.problem), "key": board.problem.key, "standings": rows}


# --- Markdown ---


def boards_to_markdown(boards: Sequence[Board], heading: str, images: Mapping[str, str] | None = None) -> str:
    """Return a page: an overview of places, a table for each problem, and a card for each estimator, to which links can lead.

    heading: the first lines. images: the path of a picture by the key of its problem.
    """
    ranked = {board.problem.key: standings(board) for board in boards}
    parts = [heading.rstrip(), "## Overview", *_overview(boards, ranked)]
    for board in boards:
        parts += _section(board, ranked[board.problem.key], (images or {}).get(board.problem.key))
    parts += ["## Cards of the estimators", *_cards(boards, ranked)]
    return "\n\n".join(parts) + "\n"


def _overview(boards: Sequence[Board], ranked: Mapping[str, list[Standing]]) -> Iterator[str]:
    runs = [run for board in boards for entry in board.entries.values() for run in entry.runs]
    places: dict[str, dict[str, int | None]] = {}
    for key, standing in ranked.items():
        for row in standing:
            places.setdefault(row.entry.label, {})[key] = row.rank
    yield (
        "A number is the place of an estimator among those with results on the problem. Estimators with results on more problems "
        "come first, and of those the ones of the least mean place. The tables below say which places chance could exchange. All "
        f"{len(runs)} runs together took {sum(run.seconds for run in runs) / 3600:.2g} hours of training and measurement, "
        f"which is at most {sum(run.cpu_seconds for run in runs) / 3600:.2g} CPU hours by the number of their threads."
    )

    def order(label: str) -> tuple[int, float]:
        found = [rank for rank in places[label].values() if rank is not None]
        return -len(found), fmean(found) if found else math.inf

    head = ["estimator", *(board.problem.key for board in boards)]
    rows = (
        [f"[{label}](#{_anchor(label)})", *(places[label].get(board.problem.key) or "-" for board in boards)]
        for label in sorted(places, key=order)
    )
    yield table(head, rows, align="l" + "r" * len(boards))


def _section(board: Board, rows: Iterable[Standing], image: str | None) -> Iterator[str]:
    problem = board.problem
    yield f"## {problem.key}"
    yield f"**{problem.title}.** {problem.text}"
    yield (
        f"Value: {problem.metric}, in {problem.unit}; the {problem.better} the better. Tuned: {problem.tuned} Settings: "
        f"{', '.join(f'{name} {value}' for name, value in problem.settings.items())}."
    )
    if image:
        yield f"![{problem.title}]({image})"
    cells = ([_linked(cell) if column == 1 else _show(cell) for column, cell in enumerate(to_row(row))] for row in rows)
    yield table(STANDING_COLUMNS, cells, align="rlrrrrrrrrlr")


def _cards(boards: Sequence[Board], ranked: Mapping[str, list[Standing]]) -> Iterator[str]:
    labels = sorted({label for board in boards for label in board.entries})
    for label in labels:
        found = [
            (board, row, len(ranked[board.problem.key]))
            for board in boards
            for row in ranked[board.problem.key]
            if row.entry.label == label
        ]
        entry = found[0][1].entry
        machines = sorted({run.machine for _, row, _ in found for run in row.entry.runs})
        versions = sorted({run.gradest for _, row, _ in found for run in row.entry.runs})
        yield f"### {label}"
        yield (
            f"From {entry.distribution}; needs {' and '.join(entry.needs)}. Runs of gradest {', '.join(versions)} on "
            f"{'; '.join(machines)}."
        )
        head = ["problem", "neuron", "place", *STANDING_COLUMNS[2:]]
        rows = (
            [
                f"[{board.problem.key}](#{_anchor(board.problem.key)})",
                row.entry.neuron,
                f"{row.rank or '-'} of {of}",
                *map(_show, to_row(row)[2:]),
            ]
            for board, row, of in found
        )
        yield table(head, rows, align="llrrrrrrrrrlr")
        failures = {run.failure for _, row, _ in found for run in row.entry.latest().values() if run.failure}
        if failures:
            yield "Failed: " + "; ".join(sorted(failures)) + "."


def _linked(label: Any) -> str:
    return f"[{label}](#{_anchor(str(label))})"


def _anchor(heading: str) -> str:
    """Return the anchor that Markdown pages give a heading."""
    kept = "".join(letter for letter in heading if letter.isalnum() or letter in "_ -")
    return kept.strip().lower().replace(" ", "-")


def _show(cell: Any) -> str:
    if cell is None:
        return "-"
    return f"{cell:.3g}" if isinstance(cell, float) else str(cell)
