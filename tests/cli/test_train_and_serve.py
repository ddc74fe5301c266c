"""Commands that train, reproduce, serve and compile."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import gradest
from tests.cli.results import Run


def test_train_has_a_flag_for_every_setting_with_its_default(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    from gradest_experiments.gated.settings import GatedSettings

    monkeypatch.setenv("COLUMNS", "250")
    shown = run("train", "--help").out
    assert "Usage: gradest train" in shown
    for name, field in GatedSettings.model_fields.items():
        (line,) = (line for line in shown.splitlines() if f" --{name.replace('_', '-')} " in line)
        assert str(field.description) in line
        assert field.default is None or f"({field.default})" in line
    for flag in ("--out", "--resume", "--gaters", "--json"):
        assert f" {flag} " in shown
    assert "digits|mnist" in shown


def test_serve_has_a_flag_for_every_setting(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    from gradest_service.settings import Settings

    monkeypatch.setenv("COLUMNS", "250")
    shown = run("serve", "--help").out
    assert all(f" --{name.replace('_', '-')} " in shown for name in Settings.model_fields)


def test_train_trains_and_resumes(run: Run, tmp_path: Path) -> None:
    small = [
        "train",
        "--epochs",
        "1",
        "--gates",
        "20",
        "--hidden",
        "8",
        "--seed",
        "3",
        "--json",
        "--out",
        str(tmp_path),
    ]
    small += ["--neuron", '{"name": "bernoulli"}', "--estimator", "straight_through:derivative=sigmoid"]
    found = run(*small).json
    assert found["settings"]["estimator"] == {"name": "straight_through", "derivative": "sigmoid"}
    assert (found["settings"]["gates"], found["settings"]["seed"], len(found["epochs"])) == (20, 3, 1)
    assert {path.name for path in tmp_path.iterdir()} == {"run.json", "metrics.jsonl", "checkpoint.pt", "model.pt"}
    again = run(*small)
    assert (again.code, again.out) == (1, "")
    assert "holds a run already: resume it" in again.err
    assert run(*small, "--resume").json == found


@pytest.mark.deep
def test_train_gaters_trains_all_of_them(run: Run) -> None:
    from gradest_experiments.gated.gaters import GATERS

    small = ["train", "--gaters", "--epochs", "1", "--gates", "20", "--hidden", "8"]
    found = run(*small, "--json").json
    assert [result["settings"]["gates"] for result in found] == [20] * len(GATERS)
    shown = run(*small).out
    assert "stochastic_times_smooth + held_noise" in shown


def test_reproduce_toys_has_its_options_and_writes_its_report(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from gradest_experiments.toys.probability import ProbabilityPart

    pytest.importorskip("altair")
    pytest.importorskip("vl_convert")
    monkeypatch.setattr(ProbabilityPart, "quick", {"units": 3, "places": 3, "draws": 20})
    small = ["reproduce", "toys", "--quick", "--part", "probability", "--seed", "4", "--out", str(tmp_path)]
    ran = run(*small)
    assert (ran.code, ran.out) == (0, f"{tmp_path / 'report.md'}\n")
    found = json.loads((tmp_path / "probability" / "run.json").read_text())["settings"]
    assert (found["units"], found["draws"], found["seed"]) == (3, 20, 4)
    assert {path.suffix for path in tmp_path.rglob("*.*")} == {".json", ".jsonl", ".svg", ".png", ".md"}
    assert "seed 4 (now 5)" in run(*small, "--seed", "5").err
    assert "reproduce toys" in run("reproduce", "toys", "--help").out
    ran = run("reproduce", "toys", "--part", "probabilty", "--out", str(tmp_path / "other"))
    assert (ran.code, ran.out) == (1, "")
    assert "no part is named 'probabilty'; there are: quadratic, learning, probability, polynomial, subsets" in ran.err
    assert not (tmp_path / "other").exists()


def test_serve_serves_and_stops() -> None:
    command = [sys.executable, "-m", "gradest", "serve", "--port", "0", "--max-samples", "3"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as serving:
        assert serving.stdout is not None
        url = serving.stdout.readline().rpartition(" ")[2].strip()
        try:
            with gradest.Client(url) as client:
                h = client.sample("bernoulli", torch.tensor([0.3]), samples=3, seed=1)
            assert torch.equal(h, gradest.sample("bernoulli", torch.tensor([0.3]), samples=3, seed=1))
        finally:
            serving.send_signal(signal.SIGTERM)
        assert serving.wait(20) == 0


@pytest.mark.deep
@pytest.mark.timeout(1500)
def test_warm_compiles_every_kernel(tmp_path):
    """Afterwards no estimator on any neuron, in float32 or float64, has anything compiled."""
    env = {**os.environ, "NUMBA_CACHE_DIR": str(tmp_path), "GRADEST_KERNELS": "cpu"}
    found = json.loads(
        subprocess.run(
            [sys.executable, "-m", "gradest", "warm", "--json"], env=env, check=True, capture_output=True
        ).stdout
    )
    assert found["folder"].startswith(str(tmp_path))
    program = """
import torch, gradest
from numba.core import event

class Seen(event.Listener):
    names = []
    def on_start(self, e):
        self.names.append(str(e.data["dispatcher"]))
    def on_end(self, e):
        pass

event.register("numba:compile", Seen())
for dtype in (torch.float32, torch.float64):
    for name in gradest.registry.neurons:
        neuron = gradest.neuron(name)
        a = torch.zeros(3, *(2,) * neuron.event_ndim, dtype=dtype, requires_grad=True)
        for estimator in gradest.registry.fitting(neuron).values():
            loss, _ = gradest.expect(lambda h: h.flatten(2).sum(-1), a, neuron, estimator, seed=gradest.Key(torch.arange(3)))
            loss.sum().backward()
            gradest.estimate(lambda h: h.flatten(2).sum(-1), a.detach(), neuron, estimator, draws=3)
assert not Seen.names, Seen.names
"""
    subprocess.run([sys.executable, "-c", program], env=env, check=True)
