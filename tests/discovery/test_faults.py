"""Faults of plugins: whatever their code raises is shown as their failure, with file and line, and everything else goes on."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

import gradest
from gradest.analysis import catalog
from gradest.contract.estimator import Bias, Draw, Feedback, MonteCarlo, State
from gradest.contract.neuron import LogisticBinary, Neuron
from gradest.contract.objective import Objective
from gradest.contract.plugin import Plugin
from gradest.discovery.entry_points import find
from gradest.discovery.faults import describe_error
from gradest.discovery.registry import Registry
from gradest.errors import PluginError, PluginFault

HERE = os.path.basename(__file__)


class Unprintable(Exception):
    def __str__(self) -> str:
        raise RuntimeError("no text")


class Opaque:
    """A type for which there is no JSON Schema."""


class Sound(MonteCarlo):
    """A biased estimator, from which the faulty ones differ in one method."""

    name, summary, needs = "sound", "a sound estimator", frozenset({"loss"})

    def bias(self, neuron: Neuron) -> Bias:
        return Bias.BIASED

    def backward(self, draw: Draw, feedback: Feedback, state: State) -> tuple[torch.Tensor, State]:
        return feedback.get_loss().mean(0)[..., None] + torch.zeros_like(draw.a), state


def raising(error: BaseException) -> Callable[..., Any]:
    def method(self: Plugin, *_: Any) -> Any:
        raise error

    return method


def for_odd_units(self: Plugin, neuron: Neuron, event: tuple[int, ...]) -> int:
    if event[0] % 2:
        raise ValueError("odd units")
    return 1


def of_a_neuron(self: Plugin, neuron: Neuron, event: tuple[int, ...]) -> int:
    return len(neuron.law(torch.zeros(event))[0]) + neuron.no_such_attribute  # type: ignore[attr-defined,no-any-return]


class WithoutSchema(Sound):
    name, summary = "faulty_schema", "options without a JSON Schema"
    what: Opaque = Opaque()


ESTIMATORS: dict[str, tuple[str, dict[str, Any]]] = {  # what is in the message, and the faulty method
    "evaluations": ("ValueError: odd units", {"evaluations": for_odd_units}),
    "evaluations_type": ("must return an object of type int, not str", {"evaluations": lambda *_: "2"}),
    "evaluations_of": ("AttributeError", {"evaluations": of_a_neuron}),
    "bias": ("ValueError: no claim", {"bias": raising(ValueError("no claim"))}),
    "bias_type": ("must return an object of type Bias, not NoneType", {"bias": lambda *_: None}),
    "target": ("ValueError: no target", {"target": raising(ValueError("no target"))}),
    "accepts": ("ZeroDivisionError", {"accepts": lambda self, neuron: 1 / 0}),
    "cancelled": ("CancelledError", {"accepts": raising(asyncio.CancelledError())}),
    "base": ("BaseException: base", {"accepts": raising(BaseException("base"))}),
    "exits": ("SystemExit: 3", {"accepts": raising(SystemExit(3))}),
    "unprintable": ("Unprintable: its text cannot be shown", {"accepts": raising(Unprintable())}),
}
RUNNING = {"forward": raising(ValueError("no points")), "init": raising(asyncio.CancelledError())}
NEURONS = {"law": raising(ValueError("no law")), "sample": raising(ValueError("no sample"))}


def faulty(name: str, base: type[Plugin], body: dict[str, Any]) -> type[Plugin]:
    for method, function in body.items():
        if hasattr(function, "__code__"):
            function.__code__ = function.__code__.replace(co_name=method)  # as if it were written in the class
    return type(name, (base,), {"name": f"faulty_{name}", "summary": "faulty", "__module__": __name__, **body})


CLASSES = [
    WithoutSchema,
    *(faulty(name, Sound, body) for name, (_, body) in ESTIMATORS.items()),
    *(faulty(name, Sound, {name: method}) for name, method in RUNNING.items()),
    *(faulty(name, LogisticBinary, {name: method}) for name, method in NEURONS.items()),
]


def described() -> dict[str, dict[str, Any]]:
    tables = (gradest.registry.neurons, gradest.registry.estimators, gradest.registry.objectives)
    return {
        f"{cls.__mro__[-4].__name__} {cls.name}": catalog.describe(cls) for table in tables for cls in table.values()
    }


def without_faulty(value: Any) -> Any:
    """Leave out the faulty plugins."""
    if isinstance(value, dict):
        return {key: without_faulty(item) for key, item in value.items() if "faulty_" not in key}
    if isinstance(value, list):
        return [without_faulty(item) for item in value if not (isinstance(item, str) and item.startswith("faulty_"))]
    return value


@pytest.fixture(scope="module")
def sound_descriptions() -> dict[str, dict[str, Any]]:
    return described()


@pytest.fixture(scope="module")
def everything(sound_descriptions: Any) -> Iterator[None]:
    for cls in CLASSES:
        gradest.registry.register(cls)
    yield
    for cls in CLASSES:
        gradest.registry.unregister(cls)


def test_descriptions_show_each_fault_and_change_nothing_else(sound_descriptions: Any, everything: None) -> None:
    found = described()
    assert without_faulty(found) == sound_descriptions
    assert not any(entry["faults"] for entry in sound_descriptions.values())
    by_name = {entry["name"]: entry for entry in found.values()}
    for name, (text, _) in ESTIMATORS.items():
        faults = " ".join(by_name[f"faulty_{name}"]["faults"])
        assert text in faults
        assert f"{HERE}:" in faults, "the file and the line must be named"
        assert "faulty_" in faults
    assert by_name["faulty_evaluations"]["evaluations"]["bernoulli"] == {
        **dict.fromkeys(["2", "4", "8", "16", "32"], 1),
        "1": None,
    }
    assert by_name["faulty_bias"]["bias"]["bernoulli"] == "unknown"
    assert by_name["faulty_accepts"]["neurons"] == []
    assert "no JSON Schema" in by_name["faulty_schema"]["faults"][0]
    assert list(by_name["faulty_schema"]["options"]["properties"]) == ["samples", "what"]
    assert "faulty_law.law raised ValueError: no law" in by_name["faulty_law"]["faults"][0]


def test_recommend_and_compare_go_on(everything: None) -> None:
    ranked = gradest.recommend(units=3)
    rejected = {row.estimator: row.reasons[0] for row in ranked.rejected}
    for name, (text, _) in ESTIMATORS.items():
        assert text in rejected[f"faulty_{name}"] or name == "bias_type"
    assert {"rloo", "reinforce"} <= {row.estimator["name"] for row in ranked.rows}
    f, a = lambda h: h.sum(-1), torch.zeros(1, 3)
    table = gradest.compare(f, a, estimators=["rloo", "faulty_forward", "faulty_init"], draws=2, warm_up=1, seed=0)
    assert [row.estimator for row in table.rows] == ["rloo"]
    reasons = {failure.estimator: failure.reasons[0] for failure in table.failures}
    assert reasons["faulty_forward"].startswith("faulty_forward.forward raised ValueError: no points (")
    assert f"{HERE}:" in reasons["faulty_forward"]
    assert reasons["faulty_init"].startswith("faulty_init.init raised CancelledError")
    assert "faulty_forward failed: faulty_forward.forward raised" in table.to_markdown()
    with pytest.raises(PluginFault, match="no points"):
        gradest.compare(f, a, estimators=["faulty_forward"], draws=2, seed=0)
    with pytest.raises(ZeroDivisionError):
        gradest.compare(lambda h: 1 / 0, a, estimators=["rloo"], draws=2, seed=0)


def test_which_fit_is_asked_of_each(everything: None) -> None:
    fitting, faults = gradest.registry.ask_fitting(gradest.neuron("bernoulli"))
    assert "rloo" in fitting
    assert set(faults) == {f"faulty_{name}" for name in ("accepts", "cancelled", "base", "exits", "unprintable")}
    with pytest.raises(gradest.errors.Incompatible, match=r"Estimators that fit gaussian: .*pathwise"):
        gradest.registry.check_fit(gradest.neuron("gaussian"), gradest.estimator("rloo"))


def test_kernels_are_listed(everything: None) -> None:
    rows = {row["neuron"]: row for row in catalog.describe_kernels()["kernels"]}
    assert "faulty_sample.sample raised ValueError: no sample" in rows["faulty_sample"]["forward"]
    assert rows["bernoulli"]["forward"] == "fused"


@pytest.mark.parametrize("method", ["accepts", "bias", "evaluations", "target"])
def test_what_the_user_causes_is_not_the_plugin_s(method: str) -> None:
    cls = gradest.registry.register(
        faulty("interrupted", Sound, {method: lambda *_: signal.raise_signal(signal.SIGINT)})
    )
    try:
        with pytest.raises(KeyboardInterrupt):
            catalog.describe(cls)
    finally:
        gradest.registry.unregister(cls)


def test_a_signal_that_ends_the_process_does(monkeypatch: pytest.MonkeyPatch) -> None:
    def stop(*_: Any) -> None:
        raise SystemExit(143)

    before = signal.signal(signal.SIGUSR1, stop)
    cls = gradest.registry.register(
        faulty("stopped", Sound, {"accepts": lambda *_: os.kill(os.getpid(), signal.SIGUSR1)})
    )
    try:
        with pytest.raises(SystemExit):
            catalog.describe(cls)
    finally:
        signal.signal(signal.SIGUSR1, before)
        gradest.registry.unregister(cls)


@pytest.mark.parametrize(
    ("source", "phase", "text"),
    [
        ("raise BaseException('at import')", "import", "BaseException: at import"),
        ("import asyncio\nraise asyncio.CancelledError", "import", "CancelledError"),
        ("class E(Exception):\n    __str__ = None\nraise E", "import", "its text cannot be shown"),
        ("def __getattr__(name):\n    raise GeneratorExit(name)", "hooks", "GeneratorExit"),
        (
            "import gradest\n@gradest.hookimpl\ndef gradest_neurons():\n    raise BaseException('called')",
            "call",
            "gradest_neurons raised BaseException: called",
        ),
        (
            "import gradest\nclass M(type):\n    def __repr__(cls):\n        raise BaseException('repr')\n"
            "class C(metaclass=M):\n    pass\n@gradest.hookimpl\ndef gradest_neurons():\n    return [C]",
            "class",
            "BaseException: repr",
        ),
    ],
)
def test_a_plugin_that_raises_anything_while_it_loads_is_a_failure(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, source: str, phase: str, text: str
) -> None:
    registry = load(tmp_path, monkeypatch, source)
    (failure,) = registry.failures
    assert failure.phase == phase
    assert text in failure.error
    assert "acme_faulty.py:" in failure.error, "the file and the line must be named"
    assert "acme_penny" in registry.neurons


SOUND = """
import gradest
from gradest.contract.neuron import LogisticBinary

class Penny(LogisticBinary):
    name, summary = "acme_penny", "a penny"

@gradest.hookimpl
def gradest_neurons():
    return [Penny]
"""


def load(folder: Path, monkeypatch: pytest.MonkeyPatch, source: str) -> Registry:
    """Return a registry of two plugins, of which this is the source of the first."""
    monkeypatch.setattr(sys, "path", [*sys.path])
    sources = []
    for name, text in (("acme_faulty", source), ("acme_sound", SOUND)):
        monkeypatch.delitem(sys.modules, name, raising=False)
        (folder / f"{name}.py").write_text(text)
        sources.append(find(str(folder / f"{name}.py")))
    return Registry(sources)


def test_ctrl_c_while_a_plugin_loads_ends_the_program(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    registry = load(tmp_path, monkeypatch, "import signal\nsignal.raise_signal(signal.SIGINT)")
    with pytest.raises(KeyboardInterrupt):
        _ = registry.failures


@pytest.mark.parametrize(("attribute", "value"), [("formula", b"x"), ("off_support", "no"), ("event_ndim", True)])
def test_attributes_that_descriptions_show_are_checked(attribute: str, value: Any) -> None:
    base = LogisticBinary if attribute == "event_ndim" else Sound
    with pytest.raises(PluginError, match=attribute):
        Registry().register(faulty("attribute", base, {attribute: value}))


def test_an_objective_without_a_schema_is_listed() -> None:
    class Loss(Objective):
        name, summary = "faulty_objective", "options without a JSON Schema"
        what: Opaque = Opaque()

        def __call__(self, points: torch.Tensor) -> torch.Tensor:
            return points.sum(-1)

    (fault,) = catalog.describe(Loss)["faults"]
    assert HERE in fault


def test_the_place_of_an_error_is_the_plugin_s_and_not_the_library_s() -> None:
    with pytest.raises(ValueError, match="Expected parameter probs") as raised:
        torch.distributions.Bernoulli(probs=torch.tensor([2.0]), validate_args=True)  # type: ignore[no-untyped-call]
    assert f"{HERE}:" in describe_error(raised.value)
    assert describe_error(ValueError()) == "ValueError"
