"""Which cases of many `make test` runs: of all others, which are marked `deep`, it is enough to run them now and then."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import pytest

import gradest
from gradest.contract.neuron import Neuron

Choice = Callable[[Iterable[tuple[Any, Any]]], list[tuple[Any, Any]]]


def deep(*cases: Any) -> list[Any]:
    """The values of a parameter, or tuples of several parameters, that are left to the deep tests."""
    return [pytest.param(*(case if isinstance(case, tuple) else (case,)), marks=pytest.mark.deep) for case in cases]


def each_once(pairs: Iterable[tuple[Any, Any]]) -> list[tuple[Any, Any]]:
    """One pair of each estimator, with its default options. They take turns with their neurons, so that those are all there."""
    return _in_turn((pair[0].name, pair) for pair in pairs if not pair[0].model_fields_set)


def each_example_once(pairs: Iterable[tuple[Any, Any]]) -> list[tuple[Any, Any]]:
    """One pair of each estimator with each of its example options. They take turns with their neurons."""
    return _in_turn((pair[0].label(), pair) for pair in pairs)


def _in_turn(named: Iterable[tuple[str, Any]]) -> list[Any]:
    """The first value of the first name, the second of the second name, and so on, each name's from its start again."""
    by_name: dict[str, list[Any]] = {}
    for name, value in named:
        by_name.setdefault(name, []).append(value)
    return [found[place % len(found)] for place, found in enumerate(by_name.values())]


def others_deep(pairs: Iterable[tuple[Any, Any]], choose: Choice = each_once) -> list[Any]:
    """The pairs, all deep but those that `choose` takes."""
    pairs = list(pairs)
    return _others_deep(pairs, choose(pairs))


def fitting_pairs(takes: Callable[[Neuron], bool] = lambda neuron: True) -> list[tuple[str, str]]:
    """The names of each neuron, of those that a test takes, and of each estimator that fits it."""
    neurons = [name for name in gradest.registry.neurons if takes(gradest.neuron(name))]
    return [(neuron, estimator) for neuron in neurons for estimator in gradest.registry.fitting(gradest.neuron(neuron))]


def fitting_pairs_others_deep(takes: Callable[[Neuron], bool] = lambda neuron: True) -> list[Any]:
    """The pairs of `fitting_pairs`, all deep but one of each estimator. They take turns with their neurons."""
    pairs = fitting_pairs(takes)
    return _others_deep(pairs, _in_turn((pair[1], pair) for pair in pairs))


def _others_deep(pairs: list[tuple[Any, Any]], chosen: list[tuple[Any, Any]]) -> list[Any]:
    """The pairs, all deep but those chosen of them. They are told apart as objects, because models take long to compare."""
    kept = {id(pair) for pair in chosen}
    return [pair if id(pair) in kept else pytest.param(*pair, marks=pytest.mark.deep) for pair in pairs]
