"""`pytest --gradest-plugin`: a test for each check, beside ordinary tests, in an empty folder and with xdist."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from gradest.testing.checks import ESTIMATOR_CHECKS
from tests.selection import deep

PLUGIN = '''
import gradest
from gradest.contract.estimator import Bias, MonteCarlo
from gradest.contract.neuron import per_event


class Half(MonteCarlo):
    """Half of the score-function estimator."""

    name, summary, needs = "half", "half of it", frozenset({"loss"})

    def accepts(self, neuron):
        return neuron.name == "bernoulli"

    def bias(self, neuron):
        return Bias.NONE

    def backward(self, draw, feedback, state):
        return (0.5 * per_event(feedback.loss, draw.neuron) * draw.neuron.score(draw.points, draw.a)).mean(0), state


@gradest.hookimpl
def gradest_estimators():
    return [Half]
'''
CHECKS = len(ESTIMATOR_CHECKS)

Run = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture
def run(tmp_path: Path) -> Run:
    """Runs pytest in a folder of its own, whether or not gradest is installed with its entry point."""

    def pytest_on(*arguments: str) -> subprocess.CompletedProcess[str]:
        command = [
            sys.executable,
            "-m",
            "pytest",
            "-p",
            "gradest.testing.pytest_plugin",
            "-p",
            "xdist.plugin",
            *arguments,
        ]
        # with the reference, no process loads numba and the compiled kernels first
        env = {
            **os.environ,
            "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1",
            "PYTEST_ADDOPTS": "",
            "GRADEST_KERNELS": "reference",
        }
        return subprocess.run(command, cwd=tmp_path, env=env, capture_output=True, text=True)

    return pytest_on


@pytest.fixture
def half(tmp_path_factory: pytest.TempPathFactory) -> str:
    path = tmp_path_factory.mktemp("elsewhere") / "half.py"
    path.write_text(PLUGIN)
    return str(path)


def test_in_an_empty_folder_with_readable_names_and_no_traceback(run: Run, half: str) -> None:
    ran = run("--gradest-plugin", half, "-v")
    assert ran.returncode == 1
    assert f"1 failed, {CHECKS - 1} passed" in ran.stdout
    assert "gradest:half::half-bernoulli-is_pure PASSED" in ran.stdout
    assert "gradest:half::half-bernoulli-bias_is_as_claimed FAILED" in ran.stdout
    _, _, failures = ran.stdout.partition("= FAILURES =")
    assert "_ half-bernoulli-bias_is_as_claimed _" in failures
    assert "claims bias none, but: on a linear loss" in failures
    assert "wrong factor" in failures
    assert "Traceback" not in failures
    assert "checks.py" not in failures
    assert len(failures.splitlines()) < 10


@pytest.mark.deep
def test_with_xdist(run: Run, half: str) -> None:
    ran = run("--gradest-plugin", half, "-n", "1", "-k", "pure or bias")
    assert "1 failed, 1 passed" in ran.stdout, ran.stdout + ran.stderr


@pytest.mark.deep
def test_beside_ordinary_tests_and_selected_by_name(run: Run, half: str, tmp_path: Path) -> None:
    (tmp_path / "test_ordinary.py").write_text("def test_pure():\n    assert True\n")
    broken = tmp_path / "broken.py"
    broken.write_text("raise RuntimeError('not today')\n")
    ran = run(
        "--gradest-plugin", half, "--gradest-plugin", str(broken), "--gradest-plugin", half, "-v", "-k", "pure or loads"
    )
    assert ran.returncode == 1
    assert "test_ordinary.py::test_pure PASSED" in ran.stdout
    assert "gradest:half::half-bernoulli-is_pure PASSED" in ran.stdout
    assert "gradest:broken::broken-loads FAILED" in ran.stdout
    assert "did not load: broken (broken): import: RuntimeError: not today" in ran.stdout
    assert f"1 failed, 2 passed, {CHECKS - 1} deselected" in ran.stdout


@pytest.mark.parametrize("more", [[], *deep(["-n", "1"])])
def test_an_unknown_name_is_a_usage_error(run: Run, more: list[str]) -> None:
    ran = run("--gradest-plugin", "acme-nothing", *more)
    assert ran.returncode == pytest.ExitCode.USAGE_ERROR
    assert ran.stderr.startswith("ERROR: --gradest-plugin: 'acme-nothing' is not an installed distribution")
    assert ran.stderr.strip().count("\n") == 0


def test_without_the_option_it_imports_nothing(run: Run, tmp_path: Path) -> None:
    (tmp_path / "test_ordinary.py").write_text(
        "import sys\n\ndef test_light():\n"
        "    assert 'gradest.testing.pytest_plugin' in sys.modules\n"
        "    assert not {'torch', 'pydantic', 'gradest.discovery'} & sys.modules.keys()\n"
    )
    ran = run()
    assert "1 passed" in ran.stdout, ran.stdout


@pytest.mark.deep
def test_the_help_shows_the_option(run: Run) -> None:
    assert "--gradest-plugin=PLUGIN" in run("--help").stdout
