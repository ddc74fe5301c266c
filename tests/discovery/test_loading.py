"""Loading third-party plugins: what is let in, what is not and why, in which order, and when."""

from __future__ import annotations

import json
import logging
import os
import shutil
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from gradest.discovery.registry import Registry
from gradest.errors import PluginError

BUILT_IN = Registry()

REPORT = """
import json, sys
import gradest

start = [name for name in ("torch", "pluggy", "acme_good") if name in sys.modules]
registry = gradest.registry
before = "acme_good" in sys.modules
print(json.dumps({
    "modules at the start": start,
    "plugins before a look": before,
    "neurons": list(registry.neurons),
    "estimators": list(registry.estimators),
    "objectives": list(registry.objectives),
    "plugins": [[info.distribution, info.version, *info.neurons, *info.estimators, *info.objectives]
                for info in registry.plugins],
    "failures": {failure.distribution: [failure.phase, failure.entry_point, failure.error] for failure in registry.failures},
    "bernoulli": gradest.registry.neurons["bernoulli"].__module__,
    "gradient": gradest.estimate(
        gradest.objective("acme_cubic"), gradest.sample("acme_coin", __import__("torch").zeros(2), seed=1)[0],
        neuron="acme_coin", estimator="acme_damped", draws=2, seed=0).gradient.shape,
}))
"""

PHASES = {
    "acme-absent": ("import", "plugin", "No module named 'acme_no_such_module'"),
    "acme-abstract": ("class", "plugin", "it leaves abstract: backward, bias"),
    "acme-argument": ("hooks", "plugin", "verbose"),
    "acme-bad-name": ("class", "plugin", "`name` must be in lower_snake_case, not 'Acme-Damped'"),
    "acme-broken": ("import", "plugin", "ModuleNotFoundError: No module named 'a_module_that_is_not_there'"),
    "acme-doubled": ("duplicate", "plugin", "two estimators of acme-doubled are named 'acme_unused'"),
    "acme-exits": ("import", "plugin", "SystemExit: no licence"),
    "acme-future": ("api", "plugin", "written for plugin API 3; this gradest supports 2 to 2. Install a newer gradest"),
    "acme-hookless": ("hooks", "plugin", "implements no gradest hook"),
    "acme-misspelt": ("hooks", "plugin", "unknown hook 'gradest_neuron'"),
    "acme-mixed": ("class", "b_bad_one", "`name` must be in lower_snake_case, not 'No'"),
    "acme-nameless": ("class", "plugin", "`summary` must be one line of text, not ''"),
    "acme-needless": ("class", "plugin", "`needs` must be a frozenset of 'loss', 'grad' or both"),
    "acme-past": (
        "api",
        "plugin",
        "written for plugin API 1; this gradest supports 2 to 2. Install a newer version of the plugin",
    ),
    "acme-raises": ("call", "plugin", "gradest_estimators raised ZeroDivisionError: division by zero"),
    "acme-raises-late": ("call", "plugin", "gradest_estimators raised ZeroDivisionError: division by zero"),
    "acme-required": ("class", "plugin", "Picky cannot be built with its default options"),
    "acme-returns-instance": ("class", "plugin", "is not a subclass of Neuron, Estimator or Objective"),
    "acme-returns-none": ("class", "plugin", "gradest_estimators must return a list of classes, not NoneType"),
    "acme-returns-text": ("class", "plugin", "gradest_estimators must return a list of classes, not str"),
    "acme-rival-b": (
        "duplicate",
        "rival_b",
        "neuron 'acme_contested' of acme-rival-b is already provided by acme-rival-a",
    ),
    "acme-thief": ("duplicate", "plugin", "neuron 'bernoulli' of acme-thief is already provided by gradest"),
    "acme-unmarked": ("hooks", "plugin", "gradest_estimators of plugin is not marked with @gradest.hookimpl"),
}


def run(script: str, site: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    env = {**os.environ, "PYTHONPATH": str(site), **environment}
    return subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, env=env)


@pytest.fixture(scope="module")
def report(site: Path) -> dict[str, Any]:
    """What a process of its own finds with every plugin installed."""
    ran = run(REPORT, site)
    assert ran.returncode == 0, ran.stderr
    found: dict[str, Any] = json.loads(ran.stdout)
    return {**found, "stderr": ran.stderr}


def test_importing_gradest_loads_neither_torch_nor_a_plugin(report: dict[str, Any]) -> None:
    assert report["modules at the start"] == []
    assert report["plugins before a look"] is False


def test_good_plugins_work_beside_bad_ones(report: dict[str, Any]) -> None:
    assert {"acme_coin", "acme_twin", "acme_contested"} < set(report["neurons"])
    assert "acme_damped" in report["estimators"]
    assert "acme_cubic" in report["objectives"]
    assert report["gradient"] == [2]


def test_a_plugin_may_look_built_ins_up_while_it_is_imported(report: dict[str, Any]) -> None:
    assert "acme_heir" in report["neurons"]


def test_plugins_come_in_a_stable_order_gradest_first(report: dict[str, Any]) -> None:
    own, *others = report["plugins"]
    assert own[0] == "gradest"
    assert others == [
        ["acme-curious", "1.0", "acme_heir"],
        ["acme-good", "1.0", "acme_coin", "acme_damped", "acme_cubic"],
        ["acme-rival-a", "1.0", "acme_contested"],
        ["acme-twin", "1.0", "acme_twin"],
    ]


@pytest.mark.parametrize("kind", ["neurons", "estimators", "objectives"])
def test_tables_hold_what_the_plugins_brought_sorted_and_nothing_of_the_failed(
    report: dict[str, Any], kind: str
) -> None:
    new = {
        "neurons": ["acme_coin", "acme_contested", "acme_heir", "acme_twin"],
        "estimators": ["acme_damped"],
        "objectives": ["acme_cubic"],
    }
    assert report[kind] == sorted([*getattr(BUILT_IN, kind), *new[kind]])


def test_a_built_in_cannot_be_taken_over(report: dict[str, Any]) -> None:
    assert report["bernoulli"] == "gradest_neurons.bernoulli"


def test_every_bad_plugin_is_a_failure_and_no_other(report: dict[str, Any]) -> None:
    assert report["failures"].keys() == PHASES.keys()


@pytest.mark.parametrize("distribution", PHASES)
def test_a_failure_says_where_and_why(report: dict[str, Any], distribution: str) -> None:
    phase, entry_point, reason = PHASES[distribution]
    found_phase, found_entry_point, error = report["failures"][distribution]
    assert (found_phase, found_entry_point) == (phase, entry_point)
    assert reason in error
    assert f"plugin not loaded: {distribution} 1.0 ({entry_point}): {phase}: " in report["stderr"]


def test_load_plugins_restricts_by_distribution(load: Callable[..., Registry]) -> None:
    registry = load("Acme_Good", " acme.twin ")  # spelt as package indexes allow
    assert [info.distribution for info in registry.plugins] == ["gradest", "acme-good", "acme-twin"]
    assert registry.failures == ()


def test_load_plugins_empty_leaves_the_built_ins(load: Callable[..., Registry]) -> None:
    registry = load()
    assert [info.distribution for info in registry.plugins] == ["gradest"]
    assert "bernoulli" in registry.neurons


def test_load_plugins_may_name_gradest_itself(load: Callable[..., Registry]) -> None:
    registry = load("gradest", "acme-twin")
    assert [info.distribution for info in registry.plugins] == ["gradest", "acme-twin"]
    assert registry.failures == ()


def test_load_plugins_naming_what_is_not_installed_is_a_failure(load: Callable[..., Registry]) -> None:
    (failure,) = load("acme-god", "acme-good").failures
    assert (failure.distribution, failure.phase) == ("acme-god", "missing")
    assert str(failure).startswith("acme-god: missing: GRADEST_LOAD_PLUGINS names it")


def test_strict_raises_for_the_first_failure_each_time(
    load: Callable[..., Registry], monkeypatch: pytest.MonkeyPatch
) -> None:
    registry = load("acme-good", "acme-raises")
    monkeypatch.setenv("GRADEST_STRICT_PLUGINS", "1")
    for _ in range(2):
        with pytest.raises(PluginError, match=r"acme-raises 1\.0 \(plugin\): call: gradest_estimators raised"):
            _ = registry.neurons
    monkeypatch.delenv("GRADEST_STRICT_PLUGINS")
    assert [info.distribution for info in registry.plugins] == ["gradest", "acme-good"]
    assert [failure.distribution for failure in registry.failures] == ["acme-raises"]


def test_strict_is_silent_where_nothing_fails(load: Callable[..., Registry], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GRADEST_STRICT_PLUGINS", "1")
    assert "acme_coin" in load("acme-good").neurons


def test_strict_in_a_process_of_its_own(site: Path) -> None:
    ran = run(
        "import gradest; gradest.neuron('bernoulli')",
        site,
        GRADEST_STRICT_PLUGINS="1",
        GRADEST_LOAD_PLUGINS="acme-thief",
    )
    assert ran.returncode == 1
    assert "PluginError: plugin not loaded: acme-thief 1.0 (plugin): duplicate: " in ran.stderr


def test_a_failure_is_logged_once(load: Callable[..., Registry], caplog: pytest.LogCaptureFixture) -> None:
    registry = load("acme-broken")
    with caplog.at_level(logging.WARNING, logger="gradest"):
        assert registry.failures
        assert registry.failures
    (record,) = caplog.records
    assert "acme-broken 1.0 (plugin): import: ModuleNotFoundError" in record.getMessage()


def test_an_interrupt_while_loading_is_passed_on_and_the_next_look_loads_again(
    install_one: Callable[[str, str], Registry], monkeypatch: pytest.MonkeyPatch
) -> None:
    registry = install_one(
        "acme-interrupted",
        """
        import os, signal

        if os.environ.pop("ACME_INTERRUPT", None):
            signal.raise_signal(signal.SIGINT)

        @gradest.hookimpl
        def gradest_neurons():
            return [neuron("acme_patient")]
        """,
    )
    monkeypatch.setenv("ACME_INTERRUPT", "1")
    with pytest.raises(KeyboardInterrupt):
        _ = registry.neurons
    assert "acme_patient" in registry.neurons
    assert len(registry.plugins) == 2


def test_first_look_from_many_threads_loads_once_and_shows_no_thread_half_a_table(
    install_one: Callable[[str, str], Registry],
) -> None:
    registry = install_one(
        "acme-slow",
        """
        import time

        calls = []

        @gradest.hookimpl
        def gradest_neurons():
            calls.append(1)
            time.sleep(0.2)
            return [neuron(f"acme_slow_{len(calls)}")]
        """,
    )
    barrier = threading.Barrier(8)
    seen: list[list[str]] = []

    def look() -> None:
        barrier.wait()
        seen.append(list(registry.neurons))

    threads = [threading.Thread(target=look) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(seen) == 8
    assert all(names == seen[0] for names in seen)
    assert [name for name in seen[0] if name.startswith("acme")] == ["acme_slow_1"]


def test_a_damaged_installation_does_not_stop_the_others(
    site: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (info,) = site.glob("acme_twin-*.dist-info")
    shutil.copytree(info, tmp_path / info.name, ignore=shutil.ignore_patterns("METADATA"))
    shutil.copy(site / "acme_twin.py", tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    registry = Registry()
    assert "acme_twin" in registry.neurons
    assert [(info.distribution, info.version) for info in registry.plugins[1:]] == [("unknown", "")]
