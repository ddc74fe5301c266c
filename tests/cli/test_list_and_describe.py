"""`gradest list` and `gradest describe`: what is registered, what computes it, and what did not load."""

from __future__ import annotations

from typing import Any

import pytest

import gradest
from gradest.contract.estimator import Bias, MonteCarlo
from gradest.discovery.loading import PluginFailure
from tests.cli.results import Ran, Run

KINDS = ("neurons", "estimators", "objectives")


def test_list_json_holds_all_that_is_registered(run: Run) -> None:
    found = run("list", "--json").json
    assert list(found) == [*KINDS, "plugins", "failures", "faults"]
    for kind in KINDS:
        assert [entry["name"] for entry in found[kind]] == list(getattr(gradest.registry, kind))
    assert [plugin["distribution"] for plugin in found["plugins"]] == [p.distribution for p in gradest.registry.plugins]


@pytest.mark.parametrize("kind", [*KINDS, "plugins"])
def test_list_json_of_one_kind_is_that_kind_and_the_failures(run: Run, kind: str) -> None:
    assert list(run("list", kind, "--json").json) == [kind, "failures", "faults"]


def test_list_shows_every_name(run: Run) -> None:
    shown = run("list").out
    for kind in KINDS:
        assert all(name in shown for name in getattr(gradest.registry, kind))
    assert "did not load" not in shown


def test_list_shows_what_computes_each_neuron(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    found = run("list", "--kernels", "--json").json
    assert found["devices"][0] == {"device": "cpu", "kernels": "cpu"}
    on_cpu = {row["neuron"]: (row["forward"], row["backward"]) for row in found["kernels"] if row["device"] == "cpu"}
    assert list(on_cpu) == list(gradest.registry.neurons)
    assert on_cpu["bernoulli"] == on_cpu["noisy_rectifier"] == ("fused", "fused")
    assert on_cpu["categorical"] == ("fused", "torch")
    assert on_cpu["gaussian"] == ("fused", "torch")
    assert on_cpu["poisson"] == ("fused", "torch")
    assert on_cpu["gumbel_softmax"] == on_cpu["noisy_sigmoid"] == ("fused", "fused")
    assert on_cpu["heaviside"] == ("fused", None)
    assert {name: forward for name, (forward, _) in on_cpu.items() if forward != "fused"} == {
        "argmax": "torch",
        "invertible_gaussian": "noise fused",
        "logistic_normal": "noise fused",
        "rectifier": "torch",
        "sign": "torch",
        "stochastic_rounding": "noise fused",
    }
    monkeypatch.setenv("GRADEST_KERNELS", "reference")
    found = run("list", "--kernels", "--json").json
    assert found["devices"][0] == {"device": "cpu", "kernels": "reference, for GRADEST_KERNELS=reference"}
    assert {(row["forward"], row["backward"]) for row in found["kernels"]} == {("torch", "torch"), ("torch", None)}
    assert "reference, for GRADEST_KERNELS=reference" in run("list", "--kernels").out


def test_list_shows_plugins_that_did_not_load(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    failure = PluginFailure("acme", "1.0", "broken", "import", "ImportError: no [module]")
    monkeypatch.setattr(type(gradest.registry), "failures", (failure,))
    shown = run("list", "neurons").out
    assert "plugins that did not load" in shown
    assert all(part in shown for part in ("acme", "1.0", "broken", "import", "ImportError: no [module]"))
    assert run("list", "neurons", "--json").json["failures"] == [
        {"distribution": "acme", "version": "1.0", "entry_point": "broken", "phase": "import", "error": failure.error}
    ]


@pytest.mark.parametrize(
    ("kind", "step"),
    [*((kind, 20) for kind in KINDS), *(pytest.param(kind, 1, marks=pytest.mark.deep) for kind in KINDS)],
)
def test_describe_every_plugin(run: Run, kind: str, step: int) -> None:
    """Every twentieth of them in `make test`."""
    for name, cls in list(getattr(gradest.registry, kind).items())[::step]:
        found = run("describe", name, "--kind", kind[:-1], "--json").json
        assert (found["kind"], found["name"], found["summary"]) == (kind[:-1], name, cls.summary)
        options = found["options"]
        python_only = options.get("x-python-only", {})
        assert [*options["properties"]] == [option for option in cls.model_fields if option not in python_only]
        assert {*options["properties"], *python_only} == cls.model_fields.keys()
        shown = run("describe", name, "--kind", kind[:-1]).out
        assert (cls.__doc__ or "").splitlines()[0] in shown
        assert all(option in shown for option in cls.model_fields)


def test_describe_tells_of_an_estimator_what_it_needs_and_costs(run: Run) -> None:
    found = run("describe", "enumeration", "--json").json
    assert found["needs"] == ["loss"]
    assert found["bias"]["bernoulli"] == "none"
    assert found["evaluations"]["bernoulli"] == {"1": 2, "2": 4, "4": 16, "8": 256, "16": 65536, "32": None}
    assert "cross_entropy" not in found["neurons"]


def test_describe_an_unknown_name(run: Run) -> None:
    assert run("describe", "bernulli") == Ran(
        1, "", "gradest: no plugin is named 'bernulli'. Did you mean bernoulli?\n"
    )
    assert (
        "no objective is named 'bernoulli'. Known: cross_entropy"
        in run("describe", "bernoulli", "--kind", "objective").err
    )


def test_describe_a_name_of_two_kinds(run: Run) -> None:
    class Namesake(MonteCarlo):
        """A namesake."""

        name, summary, needs = "bernoulli", "an estimator", frozenset({"loss"})

        def bias(self, neuron: gradest.Neuron) -> Bias:
            return Bias.BIASED

        def backward(self, draw: Any, feedback: Any, state: Any) -> Any:
            return draw.a, state

    gradest.registry.register(Namesake)
    try:
        assert run("describe", "bernoulli").err == (
            "gradest: 'bernoulli' is the name of neuron and estimator: choose one with --kind\n"
        )
        assert run("describe", "bernoulli", "--kind", "estimator", "--json").json["summary"] == "an estimator"
    finally:
        gradest.registry.unregister(Namesake)


def test_list_markdown_is_of_estimators(run: Run) -> None:
    out = run("list", "estimators", "--markdown").out
    assert all(f"| {name} |" in out for name in gradest.registry.estimators)
    assert run("list", "--markdown").code == 1


def test_describe_shows_what_was_measured(run: Run) -> None:
    out = run("describe", "straight_through").out
    assert "bias, linear" in out
    assert "± 0 %" in out
