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


CELL = """
class {qualname}(LogisticBinary):
    name, summary = "{name}", "{summary}"
"""


def cell(qualname: str, name: str, summary: str, module: str = "__main__") -> Any:
    """Define a class as a notebook's cell does."""
    scope = {"LogisticBinary": LogisticBinary, "__name__": module}
    exec(CELL.format(qualname=qualname, name=name, summary=summary), scope)
    return scope[qualname]


def test_a_class_that_is_defined_again_replaces_the_old_one(registry: Registry) -> None:
    old, new = (cell("Penny", "test_penny", summary) for summary in ("first", "second"))
    registry.register(old)
    kept = registry.neuron("test_penny")
    assert registry.register(new) is new
    assert registry.neurons["test_penny"] is new
    assert type(registry.neuron("test_penny")) is new
    assert type(kept) is old
    assert len(registry.plugins) == 2
    registry.register(new)
    assert len(registry.plugins) == 2, "the same class again changes nothing"
    with pytest.raises(PluginError, match="was not added"):
        registry.unregister(old)
    registry.unregister(new)
    assert "test_penny" not in registry.neurons
    assert len(registry.plugins) == 1


def test_a_class_that_is_defined_again_and_invalid_leaves_the_old_one(registry: Registry) -> None:
    old = registry.register(cell("Penny", "test_penny", "first"))
    with pytest.raises(PluginError, match="`summary` must be one line"):
        registry.register(cell("Penny", "test_penny", ""))
    assert registry.neurons["test_penny"] is old


@pytest.mark.parametrize(
    ("qualname", "name", "module"),
    [("Dime", "test_penny", "__main__"), ("Penny", "test_penny", "acme"), ("Penny", "bernoulli", "__main__")],
)
def test_another_class_does_not_replace_one(registry: Registry, qualname: str, name: str, module: str) -> None:
    old = registry.register(cell("Penny", "test_penny", "first"))
    with pytest.raises(PluginError, match="duplicate"):
        registry.register(cell(qualname, name, "another", module))
    assert registry.neurons["test_penny"] is old
    assert registry.neurons["bernoulli"].__module__ != "__main__"


def test_classes_of_one_factory_are_all_kept(registry: Registry) -> None:
    made = [registry.register(cell("Penny", name, "made")) for name in ("test_one", "test_two")]
    assert [registry.neurons[name] for name in ("test_one", "test_two")] == made


def test_objects_with_hooks_and_modules_are_replaced_too(registry: Registry) -> None:
    registry.register(Hooks())
    registry.register(Hooks())
    assert len(registry.plugins) == 2
    for summary in ("first", "second"):
        module = types.ModuleType("acme_module")
        penny = cell("Penny", "test_penny", summary)
        module.gradest_neurons = hookimpl(lambda penny=penny: [penny], specname="gradest_neurons")  # type: ignore[attr-defined]
        registry.register(module)
    assert registry.neurons["test_penny"].summary == "second"
    assert len(registry.plugins) == 3


def test_a_name_is_taken_until_it_is_taken_back(registry: Registry) -> None:
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
