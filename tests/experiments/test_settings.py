from __future__ import annotations

import math

import pytest

import gradest
from gradest.errors import Incompatible, InvalidOptions, UnknownPlugin
from gradest_experiments.gated.settings import GatedSettings, ResolvedGatedSettings


def test_defaults_follow_from_what_a_pair_can_do():
    def resolve(neuron, estimator, data="mnist"):
        full = GatedSettings.build(neuron=neuron, estimator=estimator, data=data).resolved()
        return full.gater_scale, full.momentum, full.penalty, full.penalty_weight, full.evaluation

    assert resolve("noisy_rectifier", "pathwise") == (1.0, 0.0, "l1", 1e-5, "threshold")
    assert resolve("bernoulli", "straight_through") == (1.0, 0.0, "kl", 0.1, "threshold")
    assert resolve("stochastic_times_smooth", "held_noise") == (1.0, 0.5, "kl", 0.001, "threshold")
    assert resolve("bernoulli", "reinforce_centered") == (0.1, 0.0, "kl", 0.01, "threshold")
    assert resolve("bipolar", "reinforce", "digits") == (0.3, 0.0, "kl", 0.03, "threshold")
    assert resolve("rectifier", "pathwise") == (1.0, 0.0, "l1", 1e-5, "mean")
    assert resolve("noisy_sigmoid", "pathwise") == (1.0, 0.0, "none", 0.1, "mean")


def test_the_published_sizes_are_the_defaults_for_mnist():
    full = GatedSettings(data="mnist").resolved()
    assert (full.hidden, full.gates, full.batch, full.learning_rate, full.sparsity) == (400, 2000, 32, 0.1, 0.1)
    assert full.event() == (2000,)


def test_what_is_given_goes_before_the_defaults():
    given = {"epochs": 7, "hidden": 3, "gates": 9, "gater_scale": 0.5, "momentum": 0.0, "penalty": "none"}
    given |= {"penalty_weight": 0.0, "evaluation": "mean", "threshold": 0.0}
    full = GatedSettings.build(neuron="stochastic_times_smooth", estimator="held_noise", **given).resolved()
    assert {name: getattr(full, name) for name in given} == given
    assert full.resolved() == full


def test_plugins_may_be_given_built():
    settings = GatedSettings.build(
        neuron=gradest.neuron("noisy_rectifier", distribution="gaussian"), estimator="pathwise"
    )
    assert settings.neuron == {"name": "noisy_rectifier", "distribution": "gaussian"}


def test_settings_go_through_json(tmp_path):
    settings = GatedSettings.build(max_norm=math.inf, neuron={"name": "bernoulli"}, data_dir=tmp_path)
    again = GatedSettings.model_validate_json(settings.model_dump_json())
    assert again == settings.model_copy(update={"data_dir": None})  # where the files are is no part of the experiment
    full = settings.resolved()
    assert full.data_dir == tmp_path
    assert ResolvedGatedSettings.model_validate_json(full.model_dump_json()).max_norm == math.inf


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"epochs": 0}, "epochs: .*greater than or equal to 1"),
        ({"sparsity": 1}, "sparsity: .*less than 1"),
        ({"learning_rate": math.nan}, "learning_rate"),
        ({"max_norm": 0}, "max_norm"),
        ({"momentum": 1}, "momentum"),
        ({"seed": 2**53}, "seed"),
        ({"data": "cifar"}, "data: .*'digits' or 'mnist'"),
        ({"penalty": "l2"}, "penalty: .*'auto'.*"),
        ({"evaluation": "median"}, "evaluation"),
        ({"device": "abacus"}, "device: .*cannot use the device 'abacus'"),
        ({"neuron": 3}, "neuron"),
        ({"epoch": 3}, "epoch: .*There are: data, .*epochs"),
    ],
)
def test_bad_settings_are_refused_by_name(options, message):
    with pytest.raises(InvalidOptions, match=message):
        GatedSettings.build(**options)


def test_pairs_that_are_none_are_refused():
    with pytest.raises(UnknownPlugin, match="Did you mean bernoulli"):
        GatedSettings(neuron="bernouli").resolved()
    with pytest.raises(Incompatible, match="pathwise does not fit bernoulli"):
        GatedSettings(neuron="bernoulli", estimator="pathwise").resolved()
    with pytest.raises(InvalidOptions, match="slope"):
        GatedSettings(estimator={"name": "straight_through", "slope": -1}).resolved()


class OneHot(gradest.Neuron):
    """A neuron with classes, of which one is open, as far as settings need it."""

    name = "one_hot_for_settings"
    summary = "a test's"
    event_ndim = 2

    def forward(self, a, noise):
        return (a == a.amax(-1, keepdim=True)).to(a.dtype)

    def backward(self, a, noise, grad_h):
        return 0 * grad_h

    def mean(self, a):
        return a.softmax(-1)

    def active_probability(self, a):
        return a.softmax(-1)

    def law(self, a):
        return a.softmax(-1)[None], a.new_ones(1, *a.shape[:-1])


class Still(gradest.Estimator):
    """An estimator that returns 0."""

    name = "still_for_settings"
    summary = "a test's"
    needs = frozenset({"loss"})

    def bias(self, neuron):
        return gradest.Bias.BIASED

    def evaluations(self, neuron, event_shape):
        return 1

    def forward(self, neuron, a, key, state):
        points = neuron.forward(a, neuron.noise(key, a, 1))[None]
        return gradest.Draw(neuron, a, key, points, a.new_ones(1))

    def backward(self, draw, feedback, state):
        return 0 * draw.a, state


def test_gates_of_a_neuron_with_classes_are_units_of_one_over_the_sparsity():
    for plugin in (OneHot, Still):
        gradest.registry.register(plugin)
    try:
        options = {"neuron": OneHot.name, "estimator": Still.name, "data": "digits"}
        assert GatedSettings.build(**options).resolved().event() == (20, 10)
        assert GatedSettings.build(**options, sparsity=0.3, gates=21).resolved().event() == (7, 3)
        with pytest.raises(InvalidOptions, match="25 gates must be units of 10 classes"):
            GatedSettings.build(**options, gates=25).resolved().event()
    finally:
        for plugin in (OneHot, Still):
            gradest.registry.unregister(plugin)
