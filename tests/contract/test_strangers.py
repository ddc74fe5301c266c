"""Plugins as strangers write them, together, as one package through the whole conformance kit.

A unit of two parameters, a permutation matrix, a unit with a kernel of its own, an estimator of E[exp L], and one with an option
that is a module. This module is the package: its hooks are below.
"""

import pytest

import gradest
from gradest.discovery.entry_points import find
from gradest.testing.suite import collect_checks
from tests.contract.test_fused_samples import Coin
from tests.contract.test_modules import Fitted
from tests.contract.test_output_events import GatedPair, Permutation
from tests.estimators.test_targets import ExponentialScore

NEURONS, ESTIMATORS = [GatedPair, Permutation, Coin], [ExponentialScore, Fitted]
NAMES = {cls.name for cls in NEURONS}


@gradest.hookimpl
def gradest_neurons():
    return NEURONS


@gradest.hookimpl
def gradest_estimators():
    return ESTIMATORS


@pytest.fixture(scope="module")
def suite():
    found = collect_checks(find(__name__))
    assert found.failures == ()
    return found


def test_each_is_tried_with_the_others_and_with_what_is_built_in(suite):
    tried = {(case.plugin, case.neuron) for case in suite.cases}
    for name in NAMES:
        assert {("exponential_score", name), ("acme_fitted", name), ("reinforce", name), (name, "")} <= tried
    assert ("acme_fitted(network=Bump)", "bernoulli") in tried
    assert ("pathwise", "acme_coin") not in tried


def test_an_estimator_of_another_target_passes_the_whole_kit(suite):
    passes(suite, lambda case: (case.plugin, case.neuron) == ("exponential_score", "acme_coin"), 11)


@pytest.mark.deep
def test_the_package_passes_the_whole_kit(suite):
    """Its estimators on its neurons, its neurons, and one built-in estimator on these."""
    own = {cls.name for cls in ESTIMATORS} | {"acme_fitted(network=Bump)", "reinforce"}
    passes(suite, lambda case: case.plugin in NAMES or (case.plugin in own and case.neuron in NAMES), 100)


def passes(suite, chosen, least):
    results = [case.run() for case in suite.cases if chosen(case)]
    assert len(results) >= least
    assert [
        (result.plugin, result.neuron, result.check, result.diagnosis) for result in results if not result.passed
    ] == []
