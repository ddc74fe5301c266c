"""The conformance kit over the live registry: what is registered is tested, with no edit here."""

import math

import pytest
import torch

import gradest
from gradest.analysis import bias
from gradest.testing import checks as testing


def name_of(value: object) -> str:
    if isinstance(value, tuple):
        return "-".join(plugin.label() for plugin in value)
    return value.label() if isinstance(value, gradest.Plugin) else value.__name__


def takes_long(check, pair):
    """The measurement of bias takes seconds: of options other than the defaults it is left to the slow tests."""
    return check is testing.estimator_bias_is_as_claimed and any(plugin.model_fields_set for plugin in pair)


ESTIMATOR_CASES = [
    pytest.param(check, pair, marks=[pytest.mark.slow] if takes_long(check, pair) else [])
    for check in testing.ESTIMATOR_CHECKS
    for pair in testing.pairs(gradest.registry)
]


@pytest.mark.parametrize("neuron", testing.neurons(gradest.registry), ids=name_of)
@pytest.mark.parametrize("check", testing.NEURON_CHECKS, ids=name_of)
def test_neuron(check, neuron):
    check(neuron)


@pytest.mark.parametrize(("check", "pair"), ESTIMATOR_CASES, ids=name_of)
def test_estimator(check, pair):
    check(*pair)


@pytest.mark.parametrize("pair", testing.pairs(gradest.registry), ids=name_of)
def test_the_loss_is_evaluated_as_often_as_stated(pair):
    """`evaluations` is what a comparison divides efficiency by: the points at which f is really called, and no more."""
    estimator, neuron = pair
    seen = []

    def f(points):
        seen.append(points.shape[0])
        return bias.quadratic(neuron)(points)

    event = (bias.UNITS, bias.CLASSES)[: neuron.event_ndim]
    a = torch.linspace(-1, 1, math.prod((3, *event))).reshape(3, *event)
    stated = estimator.evaluations(neuron, event)
    state = estimator.init(neuron, a)
    gradest.expect(f, a, neuron, estimator, seed=1, state=state)
    assert sum(seen) == stated
    seen.clear()
    found = gradest.estimate(f, a, neuron, estimator, draws=5, seed=1, state=state)
    assert sum(seen) == 5 * stated
    assert found.evaluations == stated


@pytest.mark.parametrize("objective", testing.objectives(gradest.registry), ids=name_of)
@pytest.mark.parametrize("check", testing.OBJECTIVE_CHECKS, ids=name_of)
def test_objective(check, objective):
    check(objective)


def test_every_plugin_is_checked():
    """An estimator that fits no registered neuron would pass unseen."""
    assert {estimator.name for estimator, _ in testing.pairs(gradest.registry)} == set(gradest.registry.estimators)
    assert {neuron.name for neuron in testing.neurons(gradest.registry)} == set(gradest.registry.neurons)
    assert {objective.name for objective in testing.objectives(gradest.registry)} == set(gradest.registry.objectives)
