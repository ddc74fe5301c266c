"""Looking plugins up by name: instances, near matches, options, and which estimators fit which neuron."""

from __future__ import annotations

from typing import Any

import pytest
import torch

import gradest
from gradest.contract.plugin import Plugin
from gradest.errors import Incompatible, InvalidOptions, UnknownPlugin


def test_tables_are_sorted_and_read_only() -> None:
    for table in (gradest.registry.neurons, gradest.registry.estimators, gradest.registry.objectives):
        assert list(table) == sorted(table)
        assert table, "no built-in was found: is gradest installed?"
        with pytest.raises(TypeError):
            table["mine"] = Plugin  # type: ignore[index]


@pytest.mark.parametrize("kind", ["neuron", "estimator", "objective"])
def test_every_plugin_of_a_table_is_found_under_its_own_name(kind: str) -> None:
    for name, cls in getattr(gradest.registry, f"{kind}s").items():
        assert cls.name == name
        if not any(field.is_required() for field in cls.model_fields.values()):
            assert type(getattr(gradest, kind)(name)) is cls


def test_name_mapping_class_and_instance_say_the_same() -> None:
    cls = gradest.registry.estimators["straight_through"]
    built = cls(derivative="sigmoid")
    assert gradest.estimator("straight_through", derivative="sigmoid") == built
    assert gradest.estimator({"name": "straight_through", "derivative": "sigmoid"}) == built
    assert gradest.estimator({"name": "straight_through"}, derivative="sigmoid") == built
    assert gradest.estimator(cls, derivative="sigmoid") == built
    assert gradest.estimator(built) is built
    assert gradest.estimator(built.spec()) == built


def test_options_beside_a_name_outrank_those_in_the_mapping_which_stays_as_it_was() -> None:
    spec = {"name": "polynomial", "power": 2}
    assert gradest.objective(spec, power=5) == gradest.objective("polynomial", power=5)
    assert spec == {"name": "polynomial", "power": 2}


def test_tensor_options_come_from_nested_lists() -> None:
    objective = gradest.objective({"name": "quadratic", "target": [0.0, 1.0]})
    assert torch.equal(objective(torch.tensor([[1.0, 1.0]])), torch.tensor([0.5]))


@pytest.mark.parametrize(
    ("kind", "name", "hint"),
    [
        ("neuron", "bernulli", "Did you mean bernoulli?"),
        ("estimator", "straight_trough", "Did you mean straight_through or"),
        ("objective", "cross_entrophy", "Did you mean cross_entropy?"),
        ("neuron", "zzz", "Known: argmax, "),
    ],
)
def test_unknown_names_get_near_matches_or_the_list(kind: str, name: str, hint: str) -> None:
    with pytest.raises(UnknownPlugin, match=f"no {kind} is named '{name}'") as raised:
        getattr(gradest, kind)(name)
    assert hint in str(raised.value)


@pytest.mark.parametrize(
    "spec", [None, 3, b"bernoulli", ["bernoulli"], {}, {"derivative": "sigmoid"}, {"name": 3}, Plugin]
)
def test_what_is_no_specification_is_refused(spec: Any) -> None:
    with pytest.raises(InvalidOptions, match=r"neuron: give its name, .* or an instance, not"):
        gradest.neuron(spec)


@pytest.mark.parametrize(
    ("options", "fault"),
    [
        ({"slope": -1}, "slope: Input should be greater than 0"),
        ({"slope": "steep"}, "slope: Input should be a valid number"),
        ({"sloppe": 1}, "sloppe: Extra inputs are not permitted"),
        ({"derivative": "cubic", "samples": 0}, "samples: .*; derivative: "),
        ({"cls": 1, "self": 2, "spec": 3}, "cls: .*; self: .*; spec: "),
    ],
)
def test_bad_options_are_named_with_those_there_are(options: dict[str, Any], fault: str) -> None:
    for build in (
        lambda: gradest.estimator("straight_through", **options),
        lambda: gradest.estimator({"name": "straight_through", **options}),
    ):
        with pytest.raises(InvalidOptions, match=f"straight_through: .*{fault}") as raised:
            build()
        assert "Its options: " in str(raised.value)
        assert "slope" in str(raised.value).partition("Its options: ")[2]


def test_keys_that_are_no_text_are_named_too() -> None:
    with pytest.raises(InvalidOptions, match="1: Extra inputs are not permitted"):
        gradest.neuron({"name": "bernoulli", 1: 2})


def test_an_instance_takes_no_more_options() -> None:
    with pytest.raises(InvalidOptions, match="bernoulli is already an instance"):
        gradest.neuron(gradest.neuron("bernoulli"), low=0)


def test_a_misfit_names_what_is_missing_and_the_estimators_that_fit() -> None:
    neuron = gradest.neuron("noisy_rectifier")
    fitting = gradest.registry.fitting(neuron)
    assert "pathwise" in fitting
    assert "enumeration" not in fitting
    with pytest.raises(
        Incompatible, match="enumeration does not fit noisy_rectifier: it needs a neuron that is "
    ) as raised:
        gradest.registry.check_fit(neuron, gradest.estimator("enumeration"))
    named = str(raised.value).partition("Estimators that fit noisy_rectifier: ")[2].rstrip(".").split(", ")
    assert named == list(fitting)


def test_a_fit_passes() -> None:
    for name, estimator in gradest.registry.fitting(gradest.neuron("bernoulli")).items():
        assert estimator.name == name
        gradest.registry.check_fit(gradest.neuron("bernoulli"), estimator)


def test_a_neuron_whose_options_are_refused_is_a_misfit_with_another_reason() -> None:
    base = gradest.registry.estimators["straight_through"]
    choosy = type("Choosy", (base,), {"name": "choosy", "accepts": lambda self, neuron: False})
    with pytest.raises(
        Incompatible, match="choosy does not fit bernoulli: it does not take this neuron with these options"
    ):
        gradest.registry.check_fit(gradest.neuron("bernoulli"), choosy())
