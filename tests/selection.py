"""Which cases of many `make test` runs: of all others, which are marked `deep`, it is enough to run them now and then."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import pytest


def deep(*cases: Any) -> list[Any]:
    """The values of a parameter, or tuples of several parameters, that are left to the deep tests."""
    return [pytest.param(*(case if isinstance(case, tuple) else (case,)), marks=pytest.mark.deep) for case in cases]


def each_once(pairs: Iterable[tuple[Any, Any]]) -> list[tuple[Any, Any]]:
    """One pair of each estimator, with its default options. They take turns with their neurons, so that those are all there."""
    by_name: dict[str, list[tuple[Any, Any]]] = {}
    for estimator, neuron in pairs:
        if not estimator.model_fields_set:
            by_name.setdefault(estimator.name, []).append((estimator, neuron))
    return [found[place % len(found)] for place, found in enumerate(by_name.values())]


def others_deep(pairs: Iterable[tuple[Any, Any]]) -> list[Any]:
    """The pairs, all deep but `each_once`."""
    pairs = list(pairs)
    chosen = each_once(pairs)
    return [pair if pair in chosen else pytest.param(*pair, marks=pytest.mark.deep) for pair in pairs]
