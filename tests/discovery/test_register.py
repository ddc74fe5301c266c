"""register and unregister: what notebooks and tests use in place of a distribution."""

from __future__ import annotations

import types
from typing import Any

import pytest
import torch

from gradest import hookimpl
from gradest.contract.estimator import Bias, Draw, Estimator, Feedback, MonteCarlo, State
from gradest.contract.neuron import LogisticBinary, Neuron
from gradest.contract.objective import Objective
from gradest.contract.plugin import Plugin
from gradest.discovery.registry import Registry
from gradest.errors import PluginError


class Coin(LogisticBinary):
    name, summary = "test_coin", "a coin"


class Damped(MonteCarlo):
    name, summary, needs = "test_damped", "half of straight-through", frozenset({"grad"})

    def bias(self, neuron: Neuron) -> Bias:
        return Bias.BIASED

    def backward(self, draw: Draw, feedback: Feedback, state: State) -> tuple[torch.Tensor, State]:
        return 0.5 * feedback.get_grad().mean(0), state


class Total(Objective):
    name, summary = "test_total", "the sum"
    scale: float

    def __call__(self, points: torch.Tensor) -> torch.Tensor:
        return self.scale * points.sum(-1)


class Hooks:
    """An object with two hooks."""

    @hookimpl
    def gradest_neurons(self) -> list[type[Neuron]]:
        return [Coin]

    @hookimpl
    def gradest_estimators(self) -> list[type[Estimator]]:
        return [Damped]


class StaticHooks:
    """A class with a hook of its own."""

    @staticmethod
    @hookimpl
    def gradest_objectives() -> list[type[Objective]]:
        return [Total]


@pytest.fixture
def registry() -> Registry:
    return Registry()


@pytest.mark.parametrize(("cls", "kind"), [(Coin, "neurons"), (Damped, "estimators"), (Total, "objectives")])
def test_register_and_unregister_a_class(registry: Registry, cls: type[Plugin], kind: str) -> None:
    before = dict(getattr(registry, kind))
    assert registry.register(cls) is cls
    assert getattr(registry, kind) == {**before, cls.name: cls}
    assert registry.plugins[-1].distribution == f"{__name__} (registered)"
    registry.unregister(cls)
    assert getattr(registry, kind) == before
    assert len(registry.plugins) == 1


def test_register_is_a_decorator(registry: Registry) -> None:
    @registry.register
    class Penny(LogisticBinary):
        name, summary = "test_penny", "a penny"

    assert registry.neuron("test_penny") == Penny()


def test_register_an_object_with_hooks(registry: Registry) -> None:
    hooks = Hooks()
    assert registry.register(hooks) is hooks
    assert registry.neurons["test_coin"] is Coin
    assert registry.estimators["test_damped"] is Damped
    registry.unregister(hooks)
    assert "test_coin" not in registry.neurons
    assert "test_damped" not in registry.estimators


def test_register_a_class_that_only_holds_hooks(registry: Registry) -> None:
    registry.register(StaticHooks)
    assert registry.objective("test_total", scale=2.0) == Total(scale=2.0)


def test_register_a_module(registry: Registry) -> None:
    module = types.ModuleType("acme_module")

    @hookimpl
    def gradest_neurons() -> list[type[Neuron]]:
        return [Coin]

    module.gradest_neurons = gradest_neurons  # type: ignore[attr-defined]
    registry.register(module)
    assert registry.plugins[-1].distribution == "acme_module (registered)"
    registry.unregister(module)
    assert "test_coin" not in registry.neurons


def test_a_registered_name_cannot_be_registered_again_until_it_is_taken_back(registry: Registry) -> None:
    registry.register(Coin)
    with pytest.raises(PluginError, match=r"duplicate: neuron 'test_coin' of .* is already provided by .*"):
        registry.register(Coin)
    with pytest.raises(PluginError, match="test_coin"):
        registry.register(Hooks())
    assert "test_damped" not in registry.estimators, "an object of which one class is refused must be refused whole"
    registry.unregister(registry.neurons["test_coin"])
    registry.register(Hooks())


def test_a_built_in_name_is_taken(registry: Registry) -> None:
    thief = type("Thief", (LogisticBinary,), {"name": "bernoulli", "summary": "not the coin you know"})
    with pytest.raises(PluginError, match=r"neuron 'bernoulli' of .* is already provided by gradest"):
        registry.register(thief)


def test_kinds_have_names_of_their_own(registry: Registry) -> None:
    namesake = type("Namesake", (Damped,), {"name": "test_coin"})
    registry.register(Coin)
    registry.register(namesake)
    assert registry.neurons["test_coin"] is Coin
    assert registry.estimators["test_coin"] is namesake


INVALID = [
    (Coin(), "is not a subclass of Neuron, Estimator or Objective"),
    ("bernoulli", "implements no gradest hook"),
    (None, "implements no gradest hook"),
    (object, "implements no gradest hook"),
    (Plugin, "is not a subclass of Neuron, Estimator or Objective"),
    (Neuron, "it leaves abstract: active_probability, backward, forward, law, mean"),
    (type("Loud", (Coin,), {"name": "Loud"}), "`name` must be in lower_snake_case, not 'Loud'"),
    (type("Long", (Coin,), {"summary": "two\nlines"}), "`summary` must be one line"),
    (type("Cited", (Coin,), {"reference": None}), "`reference` must be text"),
    (type("Flat", (Coin,), {"event_ndim": 0}), "`event_ndim` must be an integer of at least 1"),
    (type("Greedy", (Damped,), {"needs": frozenset()}), "`needs` must be a frozenset"),
    (type("Asks", (Damped,), {"needs": frozenset({"loss", "hessian"})}), "`needs` must be a frozenset"),
    (
        type("Able", (Damped,), {"capabilities": Coin, "__module__": __name__}),
        "`capabilities` must be a tuple of subclasses of Neuron",
    ),
]


@pytest.mark.parametrize(("plugin", "reason"), INVALID, ids=[str(plugin)[:40] for plugin, _ in INVALID])
def test_what_is_no_valid_plugin_is_refused_with_the_reason(registry: Registry, plugin: Any, reason: str) -> None:
    with pytest.raises(PluginError, match="cannot register") as raised:
        registry.register(plugin)
    assert reason in str(raised.value)
    assert len(registry.plugins) == 1


def test_every_fault_of_a_class_is_named(registry: Registry) -> None:
    with pytest.raises(PluginError, match=r"`name` must .*; `summary` must .*; `reference` must"):
        registry.register(type("Bad", (Coin,), {"name": 1, "summary": 2, "reference": 3}))


@pytest.mark.parametrize("stranger", [Coin, "bernoulli", None])
def test_unregister_takes_back_only_what_was_registered(registry: Registry, stranger: Any) -> None:
    with pytest.raises(PluginError, match="was not added by register"):
        registry.unregister(stranger)
    with pytest.raises(PluginError, match="was not added by register"):
        registry.unregister(registry.neurons["bernoulli"])
    assert "bernoulli" in registry.neurons
