"""The benchmark: its problems, and the place of an estimator that gradest does not know."""

from __future__ import annotations

import json
import math
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import gradest
from gradest.analysis.leaderboard import kept_results, read_boards
from gradest.contract.neuron import event_shape
from gradest.errors import GradestError, Incompatible, InvalidInput
from gradest.estimation.exact import exact
from gradest_experiments.benchmark import networks
from gradest_experiments.benchmark import run as benchmark
from gradest_experiments.benchmark.polynomial import Polynomial
from gradest_experiments.benchmark.problem import Outcome
from gradest_experiments.benchmark.problems import PROBLEMS, choose_problems
from gradest_experiments.benchmark.report import leaderboard_page
from gradest_experiments.benchmark.run import list_benchmark_runs, run_benchmark
from gradest_experiments.benchmark.select import Selection
from gradest_experiments.benchmark.subsets import Subset
from gradest_experiments.benchmark.variance import VarianceMap
from gradest_experiments.cli import benchmark as benchmark_command
from gradest_experiments.cli import leaderboard as leaderboard_command
from gradest_experiments.engine.display import do_in_turn
from gradest_experiments.engine.folder import RunFolder
from gradest_experiments.engine.images import Images
from gradest_experiments.vae.training import VaeRun
from tests import stranger

pytest.importorskip("altair")
pytest.importorskip("vl_convert")

TINY = Polynomial(units=3, steps=6, batch=4, recorded=2)


@pytest.fixture
def tiny(monkeypatch):
    """Quick sizes that take no time."""
    monkeypatch.setattr(Polynomial, "quick", TINY.model_dump(include={"units", "steps", "batch", "recorded"}))
    monkeypatch.setattr(Subset, "quick", {"items": 4, "chosen": 2, "evaluations": 200})


@pytest.fixture
def call(capsys):
    """Run a command in this process, and return what it printed."""

    def run(command, *arguments):
        with pytest.raises(SystemExit) as ended:
            command([str(argument) for argument in arguments], prog_name="gradest")
        assert not ended.value.code
        return capsys.readouterr().out

    return run


def place_of(text, label):
    """Return the place of an estimator in the first table of a page that has ranks."""
    return re.search(rf"^\| (\d+) \| \[{re.escape(label)}\]", text, re.MULTILINE).group(1)


def test_the_estimator_of_a_stranger_is_placed(call, tmp_path, tiny, monkeypatch):
    """By one command, beside results that are kept; with a card of its own, to which links lead."""
    problems = ["--problem", "polynomial-2", "--quick", "--seeds", 2]
    kept, out = tmp_path / "docs/results", tmp_path / "mine"
    call(benchmark_command, *problems, "--estimators", "rloo", "--kept", kept, "--out", tmp_path / "theirs", "--keep")
    before = {path: path.read_bytes() for path in kept.rglob("*.json")}
    assert {path.name for path in before} == {"rloo.json", "problem.json"}
    mine = ["--estimators", "mine", "--plugin", stranger.__file__, "--kept", kept, "--out", out]
    printed = call(benchmark_command, *problems, *mine)
    assert printed == f"{out / 'report.md'}\n"
    page = (out / "report.md").read_text()
    assert {place_of(page, "mine"), place_of(page, "rloo")} == {"1", "2"}
    assert "\n### mine\n\nFrom stranger; needs loss." in page
    assert "[mine](#mine)" in page
    assert "Tuned: nothing" in page
    assert {path: path.read_bytes() for path in kept.rglob("*.json")} == before
    (found,) = read_boards(out / "results")
    (entry,) = found.entries.values()
    assert (entry.label, entry.neuron, entry.claim, entry.per_draw) == ("mine", "bernoulli", "none", 1)
    assert [run.seed for run in entry.runs] == [0, 1]
    assert [run.evaluations for run in entry.runs] == [4 * 6, 4 * 6]
    assert [step for step, _ in entry.runs[0].curve] == [0, 3, 6]
    monkeypatch.setattr(Polynomial, "run", None)  # nothing is run again
    assert call(benchmark_command, *problems, *mine) == printed
    assert (out / "report.md").read_text() == page
    shown = call(leaderboard_command, "--results", out / "results", "--problem", "polynomial-2", "--json")
    assert "mine" in [row["label"] for board in json.loads(shown) for row in board["standings"]]


def test_what_fits_nowhere_is_said():
    with pytest.raises(
        Incompatible, match="simple fits none of the problems: polynomial-2: simple: simple does not fit"
    ):
        list_benchmark_runs(choose_problems(["polynomial-2"], "quick"), "quick", [{"name": "simple"}], 1)
    with pytest.raises(
        InvalidInput, match=r"no problem is named 'polynomial'; there are: polynomial-1\.5, polynomial-2"
    ):
        choose_problems(["polynomial"], "quick")


def test_an_estimator_that_fails_stops_no_other(tmp_path, tiny, monkeypatch):
    def backward(self, draw, feedback, state):
        raise ValueError("no such thing")

    with monkeypatch.context() as patch:
        patch.setattr(type(gradest.estimator("rloo")), "backward", backward)
        chosen = [{"name": "rloo"}, {"name": "reinforce"}]
        runs, reasons = list_benchmark_runs(choose_problems(["polynomial-2"], "quick"), "quick", chosen, 1)
        report = run_benchmark(tmp_path / "out", runs, tmp_path / "none").read_text()
    assert reasons == {}
    assert place_of(report, "reinforce") == "1"
    assert "| - | [rloo](#rloo) | failed |" in report
    assert re.search(r"Failed: .*no such thing", report)
    # mended, it is run again
    report = run_benchmark(tmp_path / "out", runs, tmp_path / "none").read_text()
    assert {place_of(report, "rloo"), place_of(report, "reinforce")} == {"1", "2"}
    assert "Failed" not in report


def test_what_another_process_keeps_meanwhile_stays(tmp_path, tiny, monkeypatch):
    def keep(name, seeds):
        runs, _ = list_benchmark_runs(choose_problems(["polynomial-2"], "quick"), "quick", [{"name": name}], seeds)
        run_benchmark(tmp_path / name, runs, tmp_path / "kept", keep=True)

    keep("rloo", 1)
    with monkeypatch.context() as patch:

        def slowly(*given, **options):
            patch.undo()
            keep("rloo", 2)
            return do_in_turn(*given, **options)

        patch.setattr("gradest_experiments.benchmark.run.do_in_turn", slowly)
        keep("reinforce", 1)
    (found,) = read_boards(tmp_path / "kept")
    assert {name: len(entry.runs) for name, entry in found.entries.items()} == {"rloo": 2, "reinforce": 1}


def test_missing_images_are_no_failure_of_an_estimator(tmp_path, monkeypatch):
    """The command ends before its first run, so that nothing of it is kept."""
    monkeypatch.delenv("GRADEST_DATA", raising=False)
    runs, _ = list_benchmark_runs(choose_problems(["router"], "quick"), "quick", [{"name": "sparse_mixer"}], 1)
    with pytest.raises(GradestError, match="set GRADEST_DATA"):
        run_benchmark(tmp_path / "out", runs, tmp_path / "none")
    assert not (tmp_path / "out").exists()


def test_an_interrupted_run_continues_with_the_same_numbers(tmp_path):
    """The state of an estimator that learns is a part of it."""

    def outcome(name, on_progress=lambda share: None):
        options = benchmark.RunOptions(problem=TINY.name, sizes={}, estimator={"name": "double_cv"}, seed=3)
        folder = RunFolder.open(tmp_path / name, "benchmark", options)
        return TINY.run(folder, gradest.estimator("double_cv"), 3, on_progress)

    def interrupt(share):
        if share == 0.5:
            os.kill(os.getpid(), signal.SIGINT)

    whole = outcome("whole")
    with pytest.raises(KeyboardInterrupt):
        outcome("parts", interrupt)
    assert [row["step"] for row in RunFolder.read(tmp_path / "parts").rows("curve")] == [0, 3]
    parts = outcome("parts")
    assert (parts.value, parts.curve) == (whole.value, whole.curve)


@pytest.mark.parametrize("power", [1.5, 3])
def test_the_value_of_polynomial_programming_is_the_exact_excess(power):
    problem = Polynomial(units=3, power=power)
    theta = torch.randn(3, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    neuron = problem.neurons()[0]
    least, start = (
        exact(lambda h: problem.loss(neuron, h), a, neuron)[0]
        for a in (torch.full((3,), -60.0).double(), torch.zeros(3).double())
    )
    value = exact(lambda h: problem.loss(neuron, h), theta[:, 1] - theta[:, 0], neuron)[0]
    assert float(least) == pytest.approx(0.45**power)
    assert problem.excess(theta) == pytest.approx(100 * float((value - least) / (start - least)))


def test_both_kinds_of_units_are_one_problem(tmp_path):
    """By the exact gradient, Bernoulli units and units of two classes go the same way."""
    problem = Polynomial(units=2, steps=5, batch=1)
    values = []
    for place in range(2):
        estimator = gradest.estimator("enumeration")
        one = type("One", (Polynomial,), {"neurons": lambda self, place=place: [Polynomial.neurons(self)[place]]})
        options = benchmark.RunOptions(problem="x", sizes={}, estimator={"name": "enumeration"}, seed=0)
        folder = RunFolder.open(tmp_path / str(place), "benchmark", options)
        values.append(one(**problem.model_dump()).run(folder, estimator, 0, lambda share: None).value)
    assert values[0] == pytest.approx(values[1], rel=1e-5)
    assert values[0] < 100


def test_the_map_s_exact_gradients_and_curvatures():
    """The loss has the variance 1, and single units, whose share by their gradients is Σ g² / p(1 - p), have what c leaves."""
    problem = VarianceMap(units=(4,))
    for cell in problem.cells():
        loss, a, gradient = problem.case(cell, 5)
        p = torch.sigmoid(a)
        assert (torch.minimum(p, 1 - p).logit() - math.log(cell.p / (1 - cell.p))).abs().max() < 2
        mean, found = exact(loss, a, "bernoulli")
        torch.testing.assert_close(found, gradient)
        square, _ = exact(lambda h, loss=loss: loss(h) ** 2, a, "bernoulli")
        assert float(square - mean**2) == pytest.approx(1)
        assert float((gradient**2 / (p * (1 - p))).sum()) == pytest.approx(1 - cell.curvature)


def test_the_map_has_each_cell_and_less_error_for_the_exact_estimator(tmp_path):
    problem = VarianceMap(p=(0.5,), units=(2, 3), curvature=(0.0, 0.5), evaluations=400)
    found = {
        name: problem.run(RunFolder(None, "x", {}, {}), gradest.estimator(name), 0, lambda share: None)
        for name in ("enumeration", "reinforce")
    }
    rows = found["reinforce"].details["cells"]
    assert [tuple(row[:3]) for row in rows] == [*problem.cells()]
    assert all(cosine > 0.5 and noise > 1 for *_, cosine, noise in rows)
    assert all(noise < 1e-6 for *_, noise in found["enumeration"].details["cells"])
    assert found["enumeration"].value < 1e-6
    assert 0.01 < found["reinforce"].value < 1


def test_a_categorical_autoencoder_is_trained_as_the_problem_says(tmp_path, monkeypatch):
    """The value is the mean of -ELBO after training, and the temperature goes to estimators that have one and set none."""
    generator = torch.Generator().manual_seed(0)
    images = Images(*(torch.randint(0, 256, (n, 12), dtype=torch.uint8, generator=generator) for n in (120, 20, 20)))
    monkeypatch.setattr(networks, "load_images", lambda: images)
    problem = PROBLEMS["categorical-vae-4x24"].model_copy(update={"epochs": 2, "images": 100, "batch": 20})
    found = {}
    for place, spec in enumerate(({"name": "reinmax"}, {"name": "reinmax", "temperature": 1.5}, {"name": "rloo"})):
        folder = RunFolder.open(
            tmp_path / str(place), "x", benchmark.RunOptions(problem="x", sizes={}, estimator=spec, seed=0)
        )
        found[place] = problem.run(folder, gradest.estimator(spec), 0, lambda share: None)
        run = RunFolder.read(tmp_path / str(place) / "training")
        assert [row["step"] for row in run.rows("train")] == [5, 10]
        assert found[place].value == -run.rows("final")[-1]["elbo"]
        assert run.settings["optimiser"] == "radam"
        assert (run.settings["classes"], run.settings["latents"], run.settings["grey"]) == (4, 24, True)
    assert found[0].value == found[1].value != found[2].value
    assert [one.evaluations for one in found.values()] == [20 * 10, 20 * 10, 2 * 20 * 10]
    for spec in ("enumeration", "entropic_risk", "arm"):
        with pytest.raises(Incompatible):
            problem.neuron_for(gradest.estimator(spec))
    monkeypatch.setattr(VaeRun, "_elbo", lambda run, pixels, purpose: math.nan)
    folder = RunFolder.open(
        tmp_path / "nan", "x", benchmark.RunOptions(problem="x", sizes={}, estimator={"name": "rloo"}, seed=0)
    )
    with pytest.raises(GradestError, match="diverged: the value is not finite"):
        problem.run(folder, gradest.estimator("rloo"), 0, lambda share: None)


def test_a_value_that_is_no_number_is_a_failure(tmp_path, tiny, monkeypatch):
    monkeypatch.setattr(Polynomial, "run", lambda *_: Outcome(math.nan, 1, 0.1, ()))
    runs, _ = list_benchmark_runs(choose_problems(["polynomial-2"], "quick"), "quick", [{"name": "rloo"}], 1)
    assert "Failed: the value is nan." in run_benchmark(tmp_path / "out", runs, tmp_path / "none").read_text()


def test_learning_to_select_finds_the_features():
    """Classes follow from the first features; and after 60 steps by `simple`, more of those are selected than by chance, 40 %."""
    problem = Selection(kind="orange-skin", hidden=16, batch=64, steps=60, learning_rate=0.02, test=500, recorded=1)
    x, y = problem.examples(gradest.random.Key(1), 4000)
    shell = x[:, :4].square().sum(-1)
    assert shell[y == 1].mean() - shell[y == 0].mean() > 2  # of a standard deviation of 2.8, so its error is 0.1
    assert abs(float(x[y == 1, 4:].mean())) < 0.1
    found = problem.run(RunFolder(None, "x", {}, {}), gradest.estimator("simple"), 0, lambda share: None)
    assert found.value > 60
    assert found.evaluations == 64 * 60


def test_the_belief_network_takes_estimators_of_a_bound_by_one_sample_of_a_layer():
    problem = PROBLEMS["belief-network"].at("quick")
    assert {problem.neuron_for(gradest.estimator(name)).name for name in ("vimco", "rloo", "reinmax")} == {"bernoulli"}
    for name, reason in (
        ("entropic_risk", "not a bound"),
        ("pass_at_k", "not a bound"),
        ("disarm", "the loss at 2 points"),
    ):
        with pytest.raises(Incompatible, match=reason):
            problem.neuron_for(gradest.estimator(name))


def test_every_problem_says_what_it_measures():
    for name, problem in PROBLEMS.items():
        assert problem.name == name
        assert all((problem.title, problem.text, problem.metric, problem.unit, problem.tuned))
        small = problem.at("quick")
        assert small.name == name
        assert small != problem
        assert type(problem)(**small.model_dump(mode="json")) == small  # that is, the settings are JSON
        estimator = gradest.estimator("held_noise" if name == "router" else "rloo")
        neuron = small.neuron_for(estimator)
        assert small.per_draw(estimator) >= 1
        if hasattr(small, "probe"):
            assert event_shape(neuron, small.probe(neuron)) == small.event()


def test_the_leaderboard_s_page_is_that_of_its_results():
    boards = read_boards(kept_results())
    assert boards
    page = kept_results().parent / "leaderboard.md"
    assert page.read_text(encoding="utf-8") == leaderboard_page(boards)


def test_the_leaderboard_needs_no_torch():
    script = "import gradest.analysis.leaderboard, sys; assert not {'torch', 'numba'} & {*sys.modules}"
    subprocess.run([sys.executable, "-c", script], check=True)


def test_the_leaderboard_says_what_it_has(call, tmp_path):
    shown = call(leaderboard_command, "--problem", "polynomial-2")
    assert "polynomial-2.quick: Polynomial programming" in shown
    assert "│ 1 " in shown
    with pytest.raises(GradestError, match=r"there are no results on 'no'; there are on: .*polynomial-2"):
        leaderboard_command(["--problem", "no"], prog_name="gradest", standalone_mode=False)
    with pytest.raises(InvalidInput, match=r"there are no results in .*mistyped"):
        leaderboard_command(["--results", str(tmp_path / "mistyped")], prog_name="gradest", standalone_mode=False)


def test_the_kept_results_are_of_problems_that_there_are():
    """Results of other settings would be left out of each comparison without a word."""
    for board in read_boards(kept_results()):
        problem = PROBLEMS[board.problem.name].at(board.problem.size)
        assert board.problem.settings == problem.model_dump(mode="json")
    assert Path(kept_results()).name == "leaderboard"
