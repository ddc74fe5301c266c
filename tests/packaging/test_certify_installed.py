"""`gradest certify` as its author runs it: a single module in a folder of its own, which pip has installed."""

from __future__ import annotations

import os
import subprocess
import sysconfig
import venv
from pathlib import Path

import pytest

from gradest.analysis.certificates import from_json

MODULE = '''"""A plugin of somebody else."""

import gradest
from gradest.contract.estimator import Bias, MonteCarlo
from gradest.contract.numerics import leading_mean


class Repeated(MonteCarlo):
    """The score function of several samples."""

    name, summary, needs = "repeated", "the score function of several samples", frozenset({"loss"})
    examples = ({}, {"samples": 3})

    def accepts(self, neuron):
        return neuron.name == "bernoulli"

    def bias(self, neuron):
        return Bias.NONE

    def backward(self, draw, feedback, state):
        loss = feedback.get_loss()[..., None].to(draw.a)
        return leading_mean(loss * draw.neuron.score(draw.points, draw.a)), state


@gradest.hookimpl
def gradest_estimators():
    return [Repeated]
'''
PROJECT = """[project]
name = "my-plugin"
version = "0.1"

[project.entry-points.gradest]
my_plugin = "my_plugin"
"""


@pytest.mark.deep
@pytest.mark.timeout(900)
def test_certify_an_installed_module_with_its_examples(tmp_path: Path) -> None:
    home, project = tmp_path / "venv", tmp_path / "project"
    venv.create(home, with_pip=True)
    python = home / ("Scripts" if os.name == "nt" else "bin") / "python"
    (own,) = home.rglob("site-packages")
    (own / "gradest.pth").write_text(f"import site; site.addsitedir({sysconfig.get_path('purelib')!r})\n")
    project.mkdir()
    (project / "my_plugin.py").write_text(MODULE)
    (project / "pyproject.toml").write_text(PROJECT)

    def run(*command: str) -> None:
        ran = subprocess.run((python, "-m", *command), cwd=project, capture_output=True, text=True)
        assert ran.returncode == 0, ran.stdout + ran.stderr

    run("pip", "install", "--quiet", "--no-deps", "-e", ".")
    run("gradest", "certify", "--package", "my-plugin", "--out", "pages")
    kept = from_json((project / "my_plugin.certificates.json").read_text())
    assert {one.labels for one in kept} == {("repeated", "bernoulli"), ("repeated(samples=3)", "bernoulli")}
    assert not [fault for one in kept for fault in one.faults]
    assert "### repeated(samples=3)" in (project / "pages" / "certificates.md").read_text()
