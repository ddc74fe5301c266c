"""`gradest sample`, `gradest compare` and `gradest recommend`: the library's numbers, as JSON and as tables."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import gradest
from gradest.analysis.comparison import comparable_estimators
from tests.cli.results import Run


def test_sample_is_the_library_s(run: Run) -> None:
    found = run("sample", "bernoulli", "--a", "0.3,-1,2", "--samples", "5", "--seed", "7", "--json").json
    assert found["h"] == gradest.sample("bernoulli", torch.tensor([0.3, -1.0, 2.0]), samples=5, seed=7).tolist()
    assert (found["seed"], found["neuron"]) == (7, {"name": "bernoulli"})


def test_sample_reports_a_fresh_seed_that_gives_the_same_again(run: Run) -> None:
    first = run("sample", "noisy_rectifier", "--a", "1,2", "--json").json
    again = run("sample", "noisy_rectifier", "--a", "1,2", "--json", "--seed", str(first["seed"])).json
    assert again == first
    assert run("sample", "noisy_rectifier", "--a", "1,2", "--json").json["seed"] != first["seed"]


def test_sample_takes_options_and_a_type(run: Run) -> None:
    arguments = ["--a", "[[0.3, -1], [2, 1]]", "--seed", "1", "--dtype", "float64", "--json"]
    first = run("sample", "noisy_rectifier", "--option", "distribution=gaussian", "--option", "std=2", *arguments).json
    assert first["neuron"] == {"name": "noisy_rectifier", "distribution": "gaussian", "std": 2}
    assert run("sample", "noisy_rectifier:distribution=gaussian,std=2", *arguments).json == first
    neuron = gradest.neuron("noisy_rectifier", distribution="gaussian", std=2)
    a = torch.tensor([[0.3, -1], [2, 1]], dtype=torch.float64)
    assert first["h"] == gradest.sample(neuron, a, seed=1).tolist()


def test_sample_reads_a_file_and_standard_input(run: Run, tmp_path: Path) -> None:
    wanted = run("sample", "bernoulli", "--a", "1,2", "--seed", "1", "--json").json
    (tmp_path / "a.json").write_text("[1, 2]")
    assert run("sample", "bernoulli", "--a", str(tmp_path / "a.json"), "--seed", "1", "--json").json == wanted
    assert run("sample", "bernoulli", "--a", "-", "--seed", "1", "--json", stdin="[1, 2]").json == wanted


def test_sample_shows_a_row_a_unit(run: Run) -> None:
    shown = run("sample", "bernoulli", "--a", "[[0, 1, 2]]", "--samples", "40", "--seed", "7").out
    assert all(part in shown for part in ("E[h]", "P(h > 0)", "0, 2", "0.8808", "seed: 7", "--json gives them all"))


@pytest.mark.parametrize(("a", "samples"), [("[]", 3), ("[[], []]", 2), ("1", 0)])
def test_sample_of_nothing(run: Run, a: str, samples: int) -> None:
    shape = torch.tensor(run("sample", "bernoulli", "--a", a, "--samples", str(samples), "--json").json["h"]).shape
    assert shape.numel() == 0
    assert run("sample", "bernoulli", "--a", a, "--samples", str(samples)).code == 0


def test_compare_is_the_library_s(run: Run) -> None:
    found = run(
        *[
            "compare",
            "--a",
            "0.3,-1,2",
            "--draws",
            "50",
            "--seed",
            "3",
            "--objective",
            "quadratic:target=0.4",
            "--json",
        ],
        *["--estimator", "rloo:samples=4", "--estimator", '{"name": "straight_through", "derivative": "sigmoid"}'],
    ).json
    wanted = gradest.compare(
        gradest.objective("quadratic", target=0.4),
        torch.tensor([0.3, -1.0, 2.0]),
        estimators=[{"name": "rloo", "samples": 4}, {"name": "straight_through", "derivative": "sigmoid"}],
        draws=50,
        seed=3,
    ).to_dict()
    for row in [*found["rows"], *wanted["rows"]]:
        del row["seconds"]
    assert found == wanted


def test_compare_by_default_takes_all_that_fit_and_is_strict_json_though_some_numbers_are_infinite(run: Run) -> None:
    """On a neuron that fewer estimators fit than the default, because those that learn are warmed up."""
    found = run("compare", "--neuron", "binomial", "--a", "0.5", "--draws", "5", "--seed", "3", "--json").json
    rows = {row["estimator"]: row for row in found["rows"]}
    assert list(rows) == [estimator.name for estimator in comparable_estimators(gradest.neuron("binomial"))]
    assert rows["enumeration"]["snr"] == "Infinity"


def test_compare_shows_a_table(run: Run) -> None:
    ran = run("compare", "--a", "0.5,1", "--draws", "5", "--seed", "3", "--estimator", "rloo")
    parts = ("rloo", "bias/SE", "claimed bias", "draws: 5", "seed: 3", "the exact gradient is known")
    assert all(part in ran.out for part in parts)
    assert ran.err == "", "no progress bar where standard error is no terminal"


@pytest.mark.parametrize("suffix", ["svg", "html"])
def test_compare_saves_a_chart(run: Run, tmp_path: Path, suffix: str) -> None:
    pytest.importorskip("altair")
    chart = tmp_path / f"chart.{suffix}"
    assert run("compare", "--a", "0.5", "--draws", "5", "--estimator", "rloo", "--plot", str(chart)).code == 0
    assert "rloo" in chart.read_text()


def test_progress_bars_are_shown_on_a_terminal() -> None:
    """Under a terminal of our own, on standard error alone."""
    pty = pytest.importorskip("pty")
    ours, theirs = pty.openpty()
    command = ["compare", "--a", "0.5", "--draws", "2000", "--estimator", "reinforce", "--estimator", "rloo", "--json"]
    running = subprocess.Popen(
        [sys.executable, "-m", "gradest", *command], stdout=subprocess.PIPE, stderr=theirs, text=True
    )
    os.close(theirs)
    shown = b""
    while True:
        try:
            read = os.read(ours, 4096)
        except OSError:  # how a pseudo-terminal says that the other side is closed
            break
        if not read:
            break
        shown += read
    os.close(ours)
    out, _ = running.communicate(timeout=60)
    assert running.returncode == 0
    assert b"reinforce" in shown
    assert b"rloo" in shown
    assert len(json.loads(out)["rows"]) == 2


def test_a_chart_that_cannot_be_written_loses_no_results(run: Run, tmp_path: Path) -> None:
    ran = run(
        "compare",
        "--a",
        "0.5",
        "--draws",
        "5",
        "--estimator",
        "rloo",
        "--plot",
        str(tmp_path / "no/where.svg"),
        "--json",
    )
    assert ran.code == 1
    assert json.loads(ran.out)["rows"]
    assert "No such file or directory" in ran.err


def test_recommend_is_the_library_s(run: Run) -> None:
    found = run("recommend", "--bring", "loss,grad", "--evaluations", "4", "--unbiased", "--json").json
    wanted = gradest.recommend("bernoulli", ["loss", "grad"], 4, unbiased=True)
    assert found == json.loads(json.dumps(wanted.to_dict()))
    measured = run("recommend", "--objective", "quadratic:target=0.4", "--a", "0.5,1", "--draws", "50", "--seed", "1")
    assert "measured on the objective given" in measured.out
    assert "not for this case" in measured.out
