"""The map of variance: direction and noise of estimators for binary units, by P(h = 1), number of units and curvature.

Its measurements are the results of `gradest benchmark --problem variance-map` that are kept with gradest. `recommend` reads them
here, also for places between the cells of the map.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import pairwise
from pathlib import Path
from statistics import fmean
from typing import NamedTuple

from gradest.analysis.leaderboard import BoardEntry, kept_results, read_boards
from gradest.analysis.results import relative_error

__all__ = ["MAP_PROBLEM", "MapPlace", "MappedEstimator", "describe_places", "load_variance_map"]

MAP_PROBLEM = "variance-map"
"""The name of the problem of `gradest benchmark` whose results are the map."""
_SIZES = ("full", "quick")  # of the results, the preferred one first
_LEAST_COSINE = 1e-2  # a smaller one is no direction
_MOST = 1e12  # a squared noise that counts as infinite
_NONE = 1e-9  # a square that counts as none, so that it has a logarithm


class MapPlace(NamedTuple):
    """A case: p, the probability of the rarer output, mean over units; the number of units of an event; and the curvature.

    The curvature is the share of the variance of L that is not that of a sum of functions of single units.
    """

    p: float
    units: float
    curvature: float


class _Squares(NamedTuple):
    """The tangent of the angle between the mean and the exact gradient, and the noise of a draw in sizes of the mean, squared."""

    tangent: float
    noise: float


@dataclass(frozen=True)
class MappedEstimator:
    """What was measured of an estimator in the cells of the map."""

    cells: Mapping[MapPlace, _Squares]

    def error(self, place: MapPlace, draws: float) -> float:
        """Return the `relative_error` of the mean of so many draws.

        Between cells, the logarithms of the squares are linear in the logarithms of the odds of p and of the number of units,
        as powers of these are. The squares are linear in c / (1 - c) for the curvature c, as they are where single units and
        their products add to the noise independently. A place beyond the map has the figures of its edge.
        """
        tangent, noise = (self._interpolated(place, field) for field in range(2))
        cosine = 1 / math.sqrt(1 + tangent)
        return relative_error(cosine, 1 / math.sqrt(noise) if noise > _NONE else math.inf, draws)

    def _interpolated(self, place: MapPlace, field: int) -> float:
        axes = [sorted({cell[axis] for cell in self.cells}) for axis in range(3)]

        def by_curvature(p: float, units: float) -> float:
            at = [self.cells[MapPlace(p, units, c)][field] for c in axes[2]]
            return math.log(max(_NONE, _linear([_odds(c) for c in axes[2]], at, _odds(place.curvature))))

        def by_units(p: float) -> float:
            return _linear(list(map(math.log, axes[1])), [by_curvature(p, n) for n in axes[1]], math.log(place.units))

        logits = [math.log(_odds(p)) for p in axes[0]]
        return math.exp(_linear(logits, [by_units(p) for p in axes[0]], math.log(_odds(place.p))))


def _odds(share: float) -> float:
    return share / (1 - share) if share < 1 else math.inf


def _linear(places: Sequence[float], values: Sequence[float], at: float) -> float:
    """Return the value at a place by linear interpolation between the nearest places, and that of the edge beyond them."""
    if at <= places[0]:
        return values[0]
    for (left, low), (right, high) in pairwise(zip(places, values, strict=True)):
        if at <= right:
            return low + (high - low) * (at - left) / (right - left)
    return values[-1]


@lru_cache
def load_variance_map(neuron: str, folder: Path | None = None) -> Mapping[str, MappedEstimator]:
    """Return the estimators on the map of a neuron by their labels; none if no results on the neuron are kept.

    neuron: its label. folder: the kept results; if omitted, those that come with gradest.

    Raises InvalidInput if a file is damaged.
    """
    boards = {board.problem.size: board for board in read_boards(folder or kept_results(), MAP_PROBLEM)}
    size = next((size for size in _SIZES if size in boards), None)
    if size is None:
        return {}
    entries = boards[size].entries.items()
    found = {label: _to_mapped(entry) for label, entry in entries if entry.neuron == neuron}
    return {label: mapped for label, mapped in found.items() if mapped.cells}


def _to_mapped(entry: BoardEntry) -> MappedEstimator:
    """Average over seeds."""
    measured: dict[MapPlace, list[_Squares]] = {}
    for run in entry.latest().values():
        for p, units, curvature, cosine, noise in run.details.get("cells", ()):
            measured.setdefault(MapPlace(p, units, curvature), []).append(_to_squares(cosine, noise))
    cells = {cell: _Squares(*map(fmean, zip(*squares, strict=True))) for cell, squares in measured.items()}
    return MappedEstimator(cells)


def _to_squares(cosine: float | None, noise: float | None) -> _Squares:
    """None stands for a figure that is not finite."""
    tangent = 1 / cosine**2 - 1 if cosine is not None and cosine > _LEAST_COSINE else 1 / _LEAST_COSINE**2
    return _Squares(tangent, min(_MOST, math.inf if noise is None else noise**2))


def describe_places(mapped: Mapping[str, MappedEstimator], places: Sequence[MapPlace], missing: Sequence[str]) -> str:
    """Say which places of the map stand for a case, and which estimators are not on it."""
    first = places[0]
    curvatures = ", ".join(f"{place.curvature:.2g}" for place in places)
    text = f"the map of variance: {first.units} units, p {first.p:.2g}, curvature {curvatures}"
    cells = (cell for found in mapped.values() for cell in found.cells)
    edges = ((min(axis), max(axis)) for axis in zip(*cells, strict=True))
    beyond = [
        f"{name} {low:g} to {high:g}"
        for name, (low, high), asked in zip(MapPlace._fields, edges, zip(*places, strict=True), strict=True)
        if min(asked) < low or max(asked) > high
    ]
    if beyond:
        text += f"; the map has {' and '.join(beyond)}, so the figures are those of its edge"
    return text + (f"; not on the map, so last unless exact: {', '.join(missing)}" if missing else "")
