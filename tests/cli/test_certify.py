"""`gradest certify`: what it measures, what it keeps, and what it says is at fault."""

from __future__ import annotations

import importlib
import importlib.metadata
import sys
from collections.abc import Iterator
from dataclasses import replace
from itertools import product
from pathlib import Path
from typing import Any

import pytest

import gradest
from gradest.analysis import bias
from gradest.analysis.certificates import Certificate, certify, from_json, load_certificates, options_of
from tests.cli.results import Run


@pytest.fixture
def few_draws(monkeypatch: pytest.MonkeyPatch) -> None:
    """Measurements begin with 2^8 draws: those of enumeration do not vary."""
    monkeypatch.setattr("gradest.analysis.bias._FIRST_DRAWS", dict.fromkeys(bias.LOGIT_REGIMES, 1 << 8))
    monkeypatch.setattr("gradest.analysis.bias._SIGNAL_DRAWS", 1 << 8)


@pytest.fixture
def certified_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A package of its own with one registered estimator, enumeration under another name, on one neuron."""
    package = tmp_path / "certified"
    package.mkdir()
    (package / "__init__.py").write_text(
        "from gradest.discovery.registry import registry\n"
        "class Certified(registry.estimators['enumeration']):\n"
        "    name = 'certified'\n"
        "    def accepts(self, neuron):\n"
        "        return neuron.name == 'bernoulli'\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    plugin = importlib.import_module("certified").Certified
    gradest.registry.register(plugin)
    yield package
    gradest.registry.unregister(plugin)
    del sys.modules["certified"]


def test_certify_writes_what_is_missing_or_stale(
    run: Run, certified_package: Path, few_draws: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is measured once; each further time that it would be, it is what was found then."""
    measured: list[Certificate] = []

    def once(*arguments: Any) -> Certificate:
        if not measured:
            measured.append(certify(*arguments))
        return measured[0]

    monkeypatch.setattr("gradest.cli.certifying.certify", once)
    arguments = ("certify", "--package", "certified", "--out", str(certified_package), "--json")
    path = certified_package / "certificates.json"
    (found,) = run(*arguments).json
    assert (found["estimator"], found["neuron"], found["claim"]) == ("certified", "bernoulli", "none")
    assert from_json(path.read_text())[0].faults == ()
    assert "### certified" in (certified_package / "certificates.md").read_text()
    marked = path.read_text().replace('"draws": 256', '"draws": 255')  # by which a record that is kept is known
    path.write_text(marked)
    assert run(*arguments).json[0]["records"][0]["draws"] == 255
    path.write_text(marked.replace('"claim": "none"', '"claim": "biased"'))
    assert run(*arguments).json[0]["records"][0]["draws"] == 256
    path.write_text(marked)
    assert run(*arguments, "certified").json[0]["records"][0]["draws"] == 256
    path.write_text("what is this")
    assert run(*arguments).json[0]["records"][0]["draws"] == 256


def test_certify_says_what_is_at_fault(
    run: Run, certified_package: Path, few_draws: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    plugin = gradest.registry.estimators["certified"]
    right = plugin.backward
    monkeypatch.setattr(plugin, "backward", lambda self, *rest: (-right(self, *rest)[0], {}))
    ended = run("certify", "--package", "certified", "--out", str(certified_package))
    assert ended.code == 1
    assert "certified on bernoulli: claims bias none, but on a linear loss" in ended.err


@pytest.fixture
def certified_module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A single module with a neuron, as the README's, and an estimator, both with examples of options."""
    path = tmp_path / "one_file.py"
    path.write_text(
        "from pydantic import Field\n"
        "import gradest\n"
        "class Level(gradest.LogisticBinary):\n"
        "    name, summary, low, high = 'level', 'levels', 0.0, 1.0\n"
        "    examples = ({}, {'k': 3})\n"
        "    k: int = Field(1)\n"
        "    def active_probability(self, a):\n"
        "        return self.probability(a)\n"
        "class Tuned(gradest.registry.estimators['enumeration']):\n"
        "    name = 'tuned'\n"
        "    examples = ({}, {'k': 2})\n"
        "    k: int = Field(1)\n"
        "    def accepts(self, neuron):\n"
        "        return neuron.name == 'level'\n"
        "@gradest.hookimpl\n"
        "def gradest_neurons():\n"
        "    return [Level]\n"
        "@gradest.hookimpl\n"
        "def gradest_estimators():\n"
        "    return [Tuned]\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    module = gradest.registry.register(importlib.import_module("one_file"))
    yield path
    gradest.registry.unregister(module)
    del sys.modules["one_file"]


def test_certify_takes_a_single_module_and_its_examples(
    run: Run, certified_module: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    measured = set()

    def like_built_in(estimator: gradest.Estimator, neuron: gradest.Neuron, progress: object) -> Certificate:
        """Take the certificate of the built-in estimator on bernoulli."""
        measured.add((estimator.label(), neuron.label()))
        like = gradest.registry.estimators["enumeration" if estimator.name == "tuned" else estimator.name]
        (kept,) = (one for one in load_certificates(like) if one.neuron == "bernoulli")
        names = {"estimator": estimator.name, "neuron": neuron.name}
        return replace(kept, **names, options=options_of(estimator), neuron_options=options_of(neuron))

    monkeypatch.setattr("gradest.cli.certifying.certify", like_built_in)
    monkeypatch.setattr("gradest.cli.certifying.is_current", lambda *_: True)
    arguments = ("certify", "--package", "one_file", "--out", str(certified_module.parent))
    assert run(*arguments).code == 0
    on_level = set(gradest.registry.fitting(gradest.neuron("level"))) - {"tuned"}
    assert measured == {
        ("tuned", "level"),
        ("tuned(k=2)", "level"),
        ("tuned", "level(k=3)"),
        *product(on_level, ("level", "level(k=3)")),
    }
    kept = from_json((certified_module.parent / "one_file.certificates.json").read_text())
    assert {one.labels for one in kept} == measured
    assert "### tuned(k=2)" in (certified_module.parent / "certificates.md").read_text()
    tuned = gradest.registry.estimators["tuned"]
    assert {one.labels for one in load_certificates(tuned)} == {
        labels for labels in measured if labels[0].startswith("tuned")
    }
    errors = {row.label: row.error for row in gradest.recommend({"name": "level", "k": 3}).rows}
    assert errors["rloo"] is not None  # from a file that is not of rloo's package
    assert "level(k=3)" in run("describe", "rloo").out
    assert "level, with k=2" in run("describe", "tuned").out
    measured.clear()
    run(*arguments, "--no-examples")
    assert not measured
    kept = from_json((certified_module.parent / "one_file.certificates.json").read_text())
    assert {one.labels for one in kept} == {("tuned", "level"), *product(on_level, ("level",))}


def test_certify_refuses_what_it_does_not_know(run: Run, certified_package: Path) -> None:
    assert "has no registered estimator rlo" in run("certify", "rlo", "--package", "certified").err
    assert "the package 'nowhere' has no registered estimator or neuron" in run("certify", "--package", "nowhere").err
    several = "the plugins of gradest lie in several packages: name one of gradest_estimators, gradest_neurons"
    assert several in run("certify", "--package", "gradest").err


def test_certify_takes_the_name_of_a_distribution(run: Run, certified_module: Path) -> None:
    (owner,) = (info for info in gradest.registry.plugins if "tuned" in info.estimators)
    assert owner.distribution != "one_file"
    assert "one_file has no registered estimator rlo" in run("certify", "rlo", "--package", owner.distribution).err
