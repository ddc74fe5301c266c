"""The conformance kit over the live registry: a plugin that is registered is tested without an edit of this file."""

import math

import pytest
import torch

import gradest
from gradest.analysis import bias
from gradest.estimation.estimate import estimate_checked
from gradest.testing import checks
from tests.selection import each_example_once, each_once, others_deep


def name_of(value: object) -> str:
    if isinstance(value, tuple):
        return "-".join(plugin.label() for plugin in value)
    return value.label() if isinstance(value, gradest.Plugin) else value.__name__


PAIRS = list(checks.example_pairs(gradest.registry))
CHOSEN = {id(pair) for pair in each_example_once(PAIRS)}
# the measurement of bias takes seconds, and more with networks and units of costly noise, which have such tests of their own
COSTLY = {"correlated_bernoulli", "invertible_gaussian", "relax"}
MEASURED = {id(pair) for pair in each_once(pair for pair in PAIRS if not COSTLY & {plugin.name for plugin in pair})}
CASES = [
    pytest.param(check, pair, marks=[] if id(pair) in chosen else [pytest.mark.deep])
    for check in checks.ESTIMATOR_CHECKS
    for chosen in [MEASURED if check is checks.estimator_bias_is_as_claimed else CHOSEN]
    for pair in PAIRS
]


@pytest.mark.parametrize("neuron", checks.example_neurons(gradest.registry), ids=name_of)
@pytest.mark.parametrize("check", checks.NEURON_CHECKS, ids=name_of)
def test_neuron(check, neuron):
    check(neuron)


@pytest.mark.parametrize(("check", "pair"), CASES, ids=name_of)
def test_estimator(check, pair):
    check(*pair)


@pytest.mark.parametrize(("estimator", "neuron"), others_deep(PAIRS, each_example_once), ids=name_of)
def test_the_loss_is_evaluated_as_often_as_stated(estimator, neuron):
    """`evaluations`, by which a comparison computes efficiency, is the number of points at which f is called."""
    seen = []

    def f(points):
        seen.append(points.shape[0])
        return bias.quadratic_loss(neuron)(points)

    event = bias.measurement_event_shape(neuron)
    a = torch.linspace(-0.97, 1.03, math.prod((3, *event))).reshape(3, *event)  # not on a grid
    stated = estimator.evaluations(neuron, event)
    state = estimator.init(neuron, a)
    gradest.expect(f, a, neuron, estimator, seed=1, state=state)
    assert sum(seen) == stated
    seen.clear()
    found = estimate_checked(f, a, neuron, estimator, draws=5, seed=1, state=state)  # the check of f evaluates it too
    assert sum(seen) == 5 * stated
    assert found.evaluations == stated


@pytest.mark.parametrize("objective", checks.example_objectives(gradest.registry), ids=name_of)
@pytest.mark.parametrize("check", checks.OBJECTIVE_CHECKS, ids=name_of)
def test_objective(check, objective):
    check(objective)


def test_every_plugin_is_checked():
    """An estimator that fits no registered neuron would otherwise go untested."""
    assert {estimator.name for estimator, _ in checks.example_pairs(gradest.registry)} == set(
        gradest.registry.estimators
    )
    assert {neuron.name for neuron in checks.example_neurons(gradest.registry)} == set(gradest.registry.neurons)
    assert {objective.name for objective in checks.example_objectives(gradest.registry)} == set(
        gradest.registry.objectives
    )
