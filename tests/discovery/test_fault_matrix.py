"""Every kind of fault of a plugin against every way to ask: what is sound is shown, the faulty one named with its place.

All faulty plugins are registered at once, so one that would break an answer breaks it for all. Each way to ask is called once.
"""

from __future__ import annotations

import asyncio
import json
import os
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
import torch
from typer.testing import CliRunner

import gradest
from gradest.cli import app
from gradest.cli.backends import LocalBackend
from gradest.cli.certifying import write_certificates
from gradest.contract.estimator import Bias, Draw, Feedback, MonteCarlo, State
from gradest.contract.neuron import LogisticBinary, Neuron
from gradest.contract.objective import Objective
from gradest.discovery.entry_points import find, installed
from gradest.discovery.faults import describe_error, is_of_user
from gradest.errors import GradestError
from gradest_service.app import running
from gradest_service.plugin_frames import running_plugin_methods

HERE = os.path.basename(__file__)
SOUND = {"rloo", "reinforce", "bernoulli", "categorical", "quadratic"}
A_LONG_TEXT = "x" * 1_000_000


class Unprintable(Exception):
    def __str__(self) -> str:
        raise BaseException("no text")

    __repr__ = __str__


class Plain(MonteCarlo):
    """An estimator from which the faulty ones differ."""

    name, summary, needs = "plain", "a biased estimator", frozenset({"loss"})

    def bias(self, neuron: Neuron) -> Bias:
        return Bias.BIASED

    def backward(self, draw: Draw, feedback: Feedback, state: State) -> tuple[torch.Tensor, State]:
        return feedback.get_loss().mean(0)[..., None] + torch.zeros_like(draw.a), state


class Loss(Objective):
    name, summary = "plain_loss", "a sum"

    def __call__(self, points: torch.Tensor) -> torch.Tensor:
        return points.sum(-1)


class Opaque:
    """A type for which there is no JSON Schema."""


late = threading.Event()
"""Set when plugins that are sound while they are checked have become faulty."""


def raising(error: BaseException) -> Callable[..., Any]:
    def fail(self: Any, *_: Any, **__: Any) -> Any:
        raise error

    return fail


def failing_later(self: Any, /, **options: Any) -> None:
    if late.is_set():
        raise ValueError("the licence has expired")
    super(type(self), self).__init__(**options)


def for_odd_units(self: Any, neuron: Neuron, event: tuple[int, ...]) -> int:
    if event[0] % 2:
        raise ValueError("odd units")
    return 1


def metaclass(*attributes: str) -> type:
    """A metaclass that raises, later, at every access to one of these attributes; to any, if none is named."""

    class Raising(type(Plain)):  # type: ignore[misc]
        def __getattribute__(cls, attribute: str) -> Any:
            if late.is_set() and (not attributes or attribute in attributes):
                raise ValueError(f"no {attribute} today")
            return super().__getattribute__(attribute)

    return Raising


ASKED, RANKED, COMPARED = "list describe", "list describe recommend", "recommend compare"
CLASSES: dict[str, tuple[type, dict[str, Any], type | None, str, str]] = {
    # base, what differs, metaclass, what is said, by which answers
    "accepts": (Plain, {"accepts": raising(ZeroDivisionError("accepts"))}, None, "ZeroDivisionError", RANKED),
    "base": (Plain, {"accepts": raising(BaseException("base"))}, None, "BaseException: base", RANKED),
    "exits": (Plain, {"accepts": raising(SystemExit(3))}, None, "SystemExit: 3", RANKED),
    "cancelled": (Plain, {"accepts": raising(asyncio.CancelledError())}, None, "CancelledError", RANKED),
    "interrupts": (Plain, {"accepts": raising(KeyboardInterrupt())}, None, "KeyboardInterrupt", RANKED),
    "unprintable": (Plain, {"accepts": raising(Unprintable())}, None, "its text cannot be shown", RANKED),
    "long": (Plain, {"accepts": raising(ValueError(A_LONG_TEXT))}, None, "xxxxxxxx", RANKED),
    "bias": (Plain, {"bias": raising(ValueError("no claim"))}, None, "ValueError: no claim", ASKED),
    "odd": (Plain, {"evaluations": for_odd_units}, None, "ValueError: odd units", RANKED),
    "target": (Plain, {"target": raising(ValueError("no target"))}, None, "ValueError: no target", RANKED),
    "schema": (Plain, {"__annotations__": {"what": Opaque}, "what": Opaque()}, None, "no JSON Schema", ASKED),
    "licence": (Plain, {"__init__": failing_later}, None, "ValueError: the licence has expired", RANKED + " compare"),
    "label": (Plain, {"label": raising(ValueError("no label"))}, None, "ValueError: no label", COMPARED),
    "options": (Plain, {"model_dump": raising(ValueError("no options"))}, None, "ValueError: no options", COMPARED),
    "forward": (Plain, {"forward": raising(ValueError("no points"))}, None, "ValueError: no points", "compare"),
    "forward_interrupts": (Plain, {"forward": raising(KeyboardInterrupt())}, None, "KeyboardInterrupt", "compare"),
    "unequal": (Plain, {"__eq__": raising(ValueError("eq")), "__hash__": raising(ValueError("hash"))}, None, "", ""),
    "meta": (Plain, {}, metaclass(), "ValueError: no summary today", ASKED),
    "meta_name": (Plain, {}, metaclass("name"), "", ""),
    "meta_needs": (Plain, {}, metaclass("needs"), "ValueError: no needs today", ASKED),
    "meta_module": (Plain, {}, metaclass("__module__", "__mro__", "__doc__"), "", ""),
    "neuron_licence": (LogisticBinary, {"__init__": failing_later}, None, "the licence has expired", ASKED),
    "neuron_label": (LogisticBinary, {"label": raising(ValueError("no label"))}, None, "", ""),
    "neuron_sample": (LogisticBinary, {"sample": raising(SystemExit(4))}, None, "SystemExit: 4", "kernels"),
    "neuron_meta": (LogisticBinary, {}, metaclass(), "ValueError: no event_ndim today", ASKED),
    "loss_meta": (Loss, {}, metaclass(), "ValueError: no summary today", ASKED),
    "loss_schema": (Loss, {"__annotations__": {"what": Opaque}, "what": Opaque()}, None, "no JSON Schema", ASKED),
}  # fmt: skip
FILES = {  # plugins that do not load, and what is said
    "import": ("raise ValueError('at import')", "ValueError: at import"),
    "base": ("raise BaseException('at import')", "BaseException: at import"),
    "exit": ("raise SystemExit('no licence')", "SystemExit: no licence"),
    "interrupt": ("raise KeyboardInterrupt", "KeyboardInterrupt"),
    "cancel": ("import asyncio\nraise asyncio.CancelledError", "CancelledError"),
    "unprintable": ("class E(Exception):\n    __str__ = __repr__ = None\nraise E", "its text cannot be shown"),
    "half_way": (
        "import gradest\n@gradest.hookimpl\ndef gradest_neurons():\n"
        "    yield type(gradest.neuron('bernoulli'))\n    raise BaseException('half way')",
        "BaseException: half way",
    ),
    "number": (
        "import gradest\nclass C(type(gradest.neuron('bernoulli'))):\n    name = 3\n"
        "@gradest.hookimpl\ndef gradest_neurons():\n    return [C]",
        "lower_snake_case",
    ),
    "init": (
        "import gradest\nclass C(type(gradest.neuron('bernoulli'))):\n    name = 'c'\n"
        "    def __init__(self):\n        raise SystemExit('init')\n@gradest.hookimpl\ndef gradest_neurons():\n    return [C]",
        "SystemExit: init",
    ),
    "meta": (
        "import gradest\nB = type(gradest.neuron('bernoulli'))\nclass M(type(B)):\n    def __getattribute__(cls, name):\n"
        "        raise BaseException('no ' + name)\n@gradest.hookimpl\ndef gradest_neurons():\n"
        "    return [M('C', (B,), {'__module__': __name__})]",
        "BaseException: no ",
    ),
}


def of(base: type) -> list[str]:
    """The names of the faulty plugins of this kind."""
    return [f"faulty_{kind}" for kind, (own, *_) in CLASSES.items() if own is base]


def make(kind: str) -> type:
    base, body, meta, _, _ = CLASSES[kind]
    for method, function in body.items():
        if hasattr(function, "__code__"):
            function.__code__ = function.__code__.replace(co_name=method)  # as if it were written in the class
    members = {"name": f"faulty_{kind}", "summary": "faulty", "__module__": __name__, **body}
    made: type = (meta or type(base))(kind, (base,), members)
    return made


@pytest.fixture(scope="module")
def ask(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[[str], str]]:
    """Asks a registry that holds the built-in plugins and all the faulty ones: the text of an answer, by the way to ask."""
    folder = tmp_path_factory.mktemp("faulty")
    for name, (source, _) in FILES.items():
        (folder / f"unloadable_{name}.py").write_text(source)
    saved = dict(vars(gradest.registry))
    with pytest.MonkeyPatch.context() as patch, running() as url, httpx.Client(base_url=url, timeout=120) as client:
        patch.setenv("COLUMNS", "5000")
        patch.syspath_prepend(folder)
        files = [find(str(folder / f"unloadable_{name}.py")) for name in FILES]
        built_in = [source for source in installed() if source.built_in]
        vars(gradest.registry).update(
            _sources=[*built_in, *files], _loaded=False, _plugins=(), _failures=(), _registered=[]
        )
        answers: dict[str, str] = {}
        try:
            for kind in CLASSES:
                gradest.registry.register(make(kind))
            late.set()

            def answer(way: str) -> str:
                if way not in answers:
                    answers[way] = WAYS[way][0](client)
                return answers[way]

            yield answer
        finally:
            late.clear()
            vars(gradest.registry).update(saved)


def run(*words: str) -> Callable[[httpx.Client], str]:
    def call(_: httpx.Client) -> str:
        ran = CliRunner().invoke(app, list(words), prog_name="gradest", catch_exceptions=False)
        assert ran.exit_code == 0, ran.output
        return ran.output

    return call


def get(*paths: str) -> Callable[[httpx.Client], str]:
    def call(client: httpx.Client) -> str:
        found = [client.get(path) for path in paths]
        assert [answer.status_code for answer in found] == [200] * len(paths), [answer.text[:500] for answer in found]
        return "".join(json.dumps(answer.json(), ensure_ascii=False) for answer in found)

    return call


def fit(_: httpx.Client) -> str:
    with pytest.raises(gradest.errors.Incompatible, match="rloo"):
        gradest.registry.check_fit(gradest.neuron("bernoulli"), gradest.estimator("pathwise"))
    registry = gradest.registry
    return " ".join([*registry.fitting(gradest.neuron("bernoulli")), *registry.neurons, *registry.objectives])


COMPARE = [f"--estimator=faulty_{kind}" for kind, (*_, by) in CLASSES.items() if "compare" in by]
NEURONS, ESTIMATORS, OBJECTIVES = (LogisticBinary, "bernoulli"), (Plain, "rloo"), (Loss, "quadratic")
ALL = (NEURONS, ESTIMATORS, OBJECTIVES)
WAYS: dict[str, tuple[Callable[[httpx.Client], str], str, tuple[tuple[type, str], ...], bool]] = {
    # the call, the answers that say what it says, what it shows, and whether it shows the plugins that did not load
    "list": (run("list"), "list", ALL, True),
    "list --json": (run("list", "--json"), "list", ALL, True),
    "list --markdown": (run("list", "estimators", "--markdown"), "list", (ESTIMATORS,), False),
    "list --kernels": (run("list", "--kernels"), "kernels", (NEURONS,), False),
    "GET all": (get("/v1/neurons", "/v1/estimators", "/v1/objectives", "/v1/plugins"), "list", ALL, True),
    "GET neuron": (get(*(f"/v1/neurons/{name}" for name in ["bernoulli", *of(LogisticBinary)])), "list", (NEURONS,), False),
    "GET estimator": (get(*(f"/v1/estimators/{name}" for name in ["rloo", *of(Plain)])), "list", (ESTIMATORS,), False),
    "GET objective": (get(*(f"/v1/objectives/{name}" for name in ["quadratic", *of(Loss)])), "list", (OBJECTIVES,), False),
    "recommend": (run("recommend", "--units=3", "--json"), "recommend", (ESTIMATORS,), False),
    "GET recommend": (get("/v1/recommend?units=3"), "recommend", (ESTIMATORS,), False),
    "compare": (run("compare", "--a=0.1,0.2", "--draws=2", "--estimator=rloo", *COMPARE, "--json"), "compare", (), False),
    "describe": (run("describe", "faulty_meta"), "", (), False),
    "help": (run("--help"), "", (), False),
    "check_fit": (fit, "", ((LogisticBinary, "bernoulli"), (Loss, "quadratic")), False),
    "OpenAPI, page": (get("/openapi.json", "/readyz", "/version"), "", (), False),
}  # fmt: skip


@pytest.mark.parametrize(
    "way", [pytest.param(way, marks=[pytest.mark.deep] if way in ("list", "describe") else []) for way in WAYS]
)
def test_what_is_sound_is_shown_and_each_fault_is_named_with_its_place(way: str, ask: Callable[[str], str]) -> None:
    _, group, shown, with_failures = WAYS[way]
    told = ask(way)
    kinds = [base for base, _ in shown] or ([Plain] if group else [])
    assert [name for base, sound in shown for name in (sound, *of(base)) if name not in told] == []
    lacking = [
        kind
        for kind, (base, *_, text, by) in CLASSES.items()
        if base in kinds and group in by.split() and not (text in told and f"faulty_{kind}" in told)
    ]
    assert lacking == []
    assert not group or f"{HERE}:" in told, "the file and the line must be named"
    unsaid = [
        name
        for name, (_, text) in FILES.items()
        if with_failures and not (f"unloadable_{name}" in told and text in told)
    ]
    assert unsaid == []
    assert A_LONG_TEXT not in told


@pytest.mark.parametrize("kind", CLASSES)
def test_the_description_of_each_shows_its_fault(kind: str, ask: Callable[[str], str]) -> None:
    base, _, _, text, by = CLASSES[kind]
    table = {Plain: "estimator", LogisticBinary: "neuron", Loss: "objective"}[base]
    described, _ = LocalBackend().describe(table, f"faulty_{kind}")
    place = HERE if "schema" in kind else f"{HERE}:"  # such a class, which is not written as one, has no line
    assert all(place in fault for fault in described["faults"]), "the file and the line must be named"
    assert "describe" not in by or text in " ".join(described["faults"])


def test_the_service_names_running_methods_beside_faulty_classes(ask: Callable[[str], str]) -> None:
    assert running_plugin_methods() == []


def test_a_class_can_be_registered_beside_faulty_ones(ask: Callable[[str], str]) -> None:
    gradest.registry.unregister(gradest.registry.register(Plain))


def test_certify_measures_the_others(
    ask: Callable[[str], str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    measured = []
    monkeypatch.setattr("gradest.cli.certifying.is_current", lambda *_: False)
    monkeypatch.setattr("gradest.cli.certifying.certificates_path", lambda _: tmp_path / "certificates.json")

    def certify(estimator: Any, neuron: Any, _: Any) -> Any:
        measured.append(estimator.name)
        raise gradest.errors.PluginFault("measured", type(estimator))

    monkeypatch.setattr("gradest.cli.certifying.certify", certify)
    with pytest.raises(GradestError) as raised:
        write_certificates([], __name__.partition(".")[0], tmp_path, True, False)
    assert {"faulty_bias", "faulty_forward"} <= set(measured)
    for kind in ("accepts", "licence", "interrupts"):
        assert f"faulty_{kind} on bernoulli: " in str(raised.value)
    assert f"{HERE}:" in str(raised.value)


def test_only_a_raise_statement_of_a_plugin_makes_an_interrupt_its_own() -> None:
    def find_user(source: str) -> bool:
        try:
            exec(compile(source, "plugin.py", "exec"), {"__name__": "a_plugin"})
        except KeyboardInterrupt as error:
            return is_of_user(error)
        raise AssertionError

    assert find_user("import signal\nsignal.raise_signal(signal.SIGINT)")
    assert not find_user("raise KeyboardInterrupt")
    assert find_user(
        "import signal\ntry:\n    signal.raise_signal(signal.SIGINT)\nexcept KeyboardInterrupt:\n    raise"
    )
    again = "raise KeyboardInterrupt from None"
    assert find_user(
        f"import signal\ntry:\n    signal.raise_signal(signal.SIGINT)\nexcept KeyboardInterrupt:\n    {again}"
    )
    assert "KeyboardInterrupt" in describe_error(KeyboardInterrupt())
