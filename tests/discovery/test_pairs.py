"""What an estimator remembers of the neurons that it was used with: nothing that changes a later call."""

from __future__ import annotations

import copy
import gc
import pickle
import weakref

import pytest
import torch

import gradest
from gradest.discovery import pairs
from gradest.discovery.pairs import pair_of
from gradest.errors import Incompatible

NEURON = gradest.neuron("bernoulli")


def points(estimator, *shape):
    return gradest.ask(NEURON, estimator, torch.zeros(*shape), seed=7)[0].points.shape


def test_a_pair_is_found_again_and_a_copy_has_its_own():
    estimator = gradest.estimator("rloo", samples=3)
    assert points(estimator, 4, 2) == (3, 4, 2)
    assert pair_of(NEURON, estimator) is pair_of(NEURON, estimator)
    for other in (copy.copy(estimator), copy.deepcopy(estimator), pickle.loads(pickle.dumps(estimator))):
        assert other == estimator
        assert pair_of(NEURON, other).estimator is other
    more = estimator.model_copy(update={"samples": 5})
    assert points(more, 4, 2) == (5, 4, 2)
    assert points(estimator, 4, 2) == (3, 4, 2)


def test_shapes_are_apart():
    estimator = gradest.estimator("enumeration")
    assert points(estimator, 4, 2) == (4, 4, 2)
    assert points(estimator, 4, 3) == (8, 4, 3)
    assert points(estimator, 2) == (4, 2)


def test_little_is_remembered(monkeypatch):
    monkeypatch.setattr(pairs, "_MOST_PAIRS", 3)
    monkeypatch.setattr(pairs, "_MOST_FORMS", 2)
    estimator = gradest.estimator("pathwise")
    for std in range(1, 9):
        neuron = gradest.neuron("gaussian", std=std)
        for rows in range(1, 5):
            assert gradest.ask(neuron, estimator, torch.zeros(rows, 2))[0].points.shape == (1, rows, 2)
        assert len(pair_of(neuron, estimator)._forms) <= 2
    assert len(estimator._gradest_pairs) <= 3


def test_a_refusal_is_not_remembered_as_a_pair():
    estimator = gradest.estimator("rloo")
    for _ in range(2):
        with pytest.raises(Incompatible, match="does not fit"):
            pair_of(gradest.neuron("gaussian"), estimator)


def test_neither_of_a_pair_is_kept_alive():
    neuron, estimator = gradest.neuron("gaussian", std=0.25), gradest.estimator("pathwise", samples=3)
    gradest.expect(lambda h: h.sum(-1), torch.zeros(2, 2), neuron=neuron, estimator=estimator)
    gradest.expect(lambda h: h.sum(-1), torch.zeros(2, 2), neuron=neuron, estimator="pathwise")  # one that all share
    left = weakref.ref(neuron), weakref.ref(estimator)
    gc.disable()
    try:
        del neuron, estimator
        assert [one() for one in left] == [None, None]
    finally:
        gc.enable()


def test_a_neuron_with_the_number_of_one_that_is_gone_has_its_own_pair():
    estimator = gradest.estimator("pathwise")
    gone, neuron = gradest.neuron("gaussian", std=2.0), gradest.neuron("gaussian", std=0.5)
    pair_of(gone, estimator)
    estimator._gradest_pairs[id(neuron)] = estimator._gradest_pairs.pop(id(gone))
    assert pair_of(neuron, estimator).neuron is neuron


def test_a_plugin_may_call_a_method_of_its_own_pairs():
    class OfPairs(gradest.registry.estimators["rloo"]):
        name = "of_pairs"

        def _pairs(self):
            return self.samples // 2

    assert points(OfPairs(samples=4), 3, 2) == (4, 3, 2)
