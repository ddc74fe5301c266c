from __future__ import annotations

import math
import os
import subprocess
import sys
from pathlib import Path

import pytest
from pydantic import BaseModel

from gradest.errors import GradestError, InvalidInput
from gradest_experiments.engine import folder as module
from gradest_experiments.engine.checkpoint import save_checkpoint
from gradest_experiments.engine.folder import RunFolder, list_folders
from gradest_experiments.gated.training import train

ROOT = Path(__file__).parents[2]


class Numbers(BaseModel):
    seed: int = 0
    steps: int = 3
    later: str = "a default"


def finished(path: Path, steps: int = 3) -> RunFolder:
    """Return a finished run with a line of metrics per step."""
    folder = RunFolder.open(path, "numbers", Numbers(steps=steps), extendable="steps")
    with folder.record() as metrics:
        for step in range(1, steps + 1):
            metrics.write("train", step, loss=1 / step)
        folder.save({"step": steps}, metrics)
    folder.add_results(test=0.5)
    return folder


def test_a_run_comes_back_as_it_was(tmp_path):
    path = tmp_path / "runs/one"
    folder = finished(path)
    found = RunFolder.read(path)
    assert found == folder
    assert found.settings == {"seed": 0, "steps": 3, "later": "a default"}
    assert [(row["step"], row["loss"]) for row in found.rows("train")] == [(1, 1.0), (2, 0.5), (3, 1 / 3)]
    assert found.rows("valid") == []
    assert found.load()["step"] == 3
    assert RunFolder.open(path, "numbers", Numbers()).results == {"test": 0.5}
    assert list_folders(tmp_path) == [path]


def test_without_a_path_nothing_is_written(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    folder = finished(None)
    assert (folder.results, folder.rows(), folder.load()) == ({"test": 0.5}, [], None)
    assert list(tmp_path.iterdir()) == []


def test_nothing_is_written_before_the_run_begins(tmp_path):
    RunFolder.open(tmp_path / "run", "numbers", Numbers())
    assert list(tmp_path.iterdir()) == []


def test_what_came_after_the_checkpoint_is_cut_off(tmp_path):
    folder = finished(tmp_path)
    with folder.record(None) as metrics:
        metrics.write("train", 4, loss=0.25)
    assert len(folder.rows()) == 4
    with folder.record(folder.load()["metrics"]) as metrics:
        metrics.write("train", 5, loss=0.2)
    assert [row["step"] for row in folder.rows()] == [1, 2, 3, 5]


def test_half_a_line_is_neither_read_nor_kept(tmp_path):
    folder = finished(tmp_path)
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"kind": "train", "st')
    assert len(folder.rows()) == 3
    with folder.record(None) as metrics:
        metrics.write("train", 4, loss=0.25)
    assert [row["step"] for row in folder.rows()] == [1, 2, 3, 4]


def test_lines_that_the_checkpoint_counts_on_must_be_there(tmp_path):
    folder = finished(tmp_path)
    (tmp_path / "metrics.jsonl").write_text("")
    with (
        pytest.raises(InvalidInput, match="lost lines that were written before"),
        folder.record(folder.load()["metrics"]),
    ):
        pass


@pytest.mark.parametrize(
    ("file", "text"), [("metrics.jsonl", '{"kind"\n'), ("metrics.jsonl", "[1]\n"), ("run.json", "{}")]
)
def test_damaged_files_are_named(tmp_path, file, text):
    finished(tmp_path)
    (tmp_path / file).write_text(text)
    with pytest.raises(InvalidInput, match=rf"{file} is damaged"):
        RunFolder.read(tmp_path).rows("train")


def test_a_folder_without_a_run_is_said(tmp_path):
    with pytest.raises(InvalidInput, match=r"holds no run: there is no run\.json"):
        RunFolder.read(tmp_path)
    save_checkpoint(tmp_path / "checkpoint.pt", {})
    with pytest.raises(InvalidInput, match="of an earlier gradest"):
        RunFolder.open(tmp_path, "numbers", Numbers())


def test_what_is_no_number_is_null(tmp_path):
    folder = RunFolder.open(tmp_path, "numbers", Numbers())
    with folder.record() as metrics:
        metrics.write("train", 1, x=math.nan, y=[math.inf, 1.5, "text"])
    folder.add_results(one={"x": -math.inf})
    assert folder.rows() == [{"kind": "train", "step": 1, "x": None, "y": [None, 1.5, "text"]}]
    assert folder.results == RunFolder.read(tmp_path).results == {"one": {"x": None}}


def test_a_run_may_grow_and_its_results_are_gone(tmp_path):
    finished(tmp_path)
    grown = RunFolder.open(tmp_path, "numbers", Numbers(steps=5), extendable="steps")
    assert (grown.settings["steps"], grown.results, grown.load()["step"]) == (5, {}, 3)
    with grown.record(grown.load()["metrics"]):
        pass
    assert RunFolder.read(tmp_path) == grown


@pytest.mark.parametrize(
    ("settings", "experiment", "what"),
    [
        ({"steps": 2}, "numbers", r"steps 3 \(now 2\)"),
        ({"seed": 1, "steps": 4}, "numbers", r"seed 0 \(now 1\)\."),
        ({}, "others", r"experiment 'numbers' \(now 'others'\)"),
    ],
)
def test_another_run_is_refused(tmp_path, settings, experiment, what):
    finished(tmp_path)
    with pytest.raises(InvalidInput, match=rf"other settings: {what}"):
        RunFolder.open(tmp_path, experiment, Numbers(**settings), extendable="steps")
    with pytest.raises(InvalidInput, match=r"steps 3 \(now 4\)"):
        RunFolder.open(tmp_path, "numbers", Numbers(steps=4))


@pytest.mark.parametrize(("name", "refused"), [("torch", True), ("gradest", True), ("python", False)])
def test_other_versions_are_refused_where_numbers_depend_on_them(tmp_path, name, refused):
    folder = finished(tmp_path)
    folder.versions[name] = "0.0"
    folder.add_results()
    if refused:
        with pytest.raises(InvalidInput, match=rf"{name} '0\.0' \(now '"):
            RunFolder.open(tmp_path, "numbers", Numbers())
    else:
        assert RunFolder.open(tmp_path, "numbers", Numbers()).results == {"test": 0.5}


def test_event_files_hold_each_metric_once(small, tmp_path):
    """This holds also for a resumed run, whose first lines were in the event files already."""
    events = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    train(small(epochs=1), out=tmp_path, tensorboard=True)
    train(small(epochs=3), out=tmp_path, resume=True, tensorboard=True)
    found = events.EventAccumulator(str(tmp_path / "tensorboard"))
    found.Reload()
    rows = RunFolder.read(tmp_path).rows("epoch")
    names = rows[0].keys() - {"kind", "step"}
    assert set(found.Tags()["scalars"]) == {f"epoch/{name}" for name in names}
    for name in names:
        shown = [(event.step, event.value) for event in found.Scalars(f"epoch/{name}")]
        assert shown == [(row["step"], pytest.approx(row[name], rel=1e-6)) for row in rows]


def test_event_files_need_their_extra(small, tmp_path, monkeypatch):
    monkeypatch.setattr(module, "find_spec", lambda name: None)
    with pytest.raises(GradestError, match=r"pip install 'gradest\[tensorboard\]'"):
        train(small(epochs=1), out=tmp_path, tensorboard=True)


KILLED = """
import os, random, shutil, signal, sys, time
from pathlib import Path
import torch
from gradest_experiments.gated.training import train
from tests.experiments.test_folder import CASES

run, = [run for name, run in CASES.items() if name == sys.argv[1]]
rest, folder = random.Random(0), Path(sys.argv[2])
run(folder / "warm")  # so that what is imported on first use is there
began = time.perf_counter()
run(folder / "whole")
longest = 0.4 * (time.perf_counter() - began)
kills = 0
while True:
    child = os.fork()
    if not child:
        run(folder / "killed")
        os._exit(0)
    time.sleep(rest.uniform(0, longest))
    os.kill(child, signal.SIGKILL if kills < 12 else 0)
    _, status = os.waitpid(child, 0)
    if os.WIFSIGNALED(status):
        kills += 1
    elif kills > 3 or os.WEXITSTATUS(status):
        break
    else:  # the machine has become faster since the run was timed: once more, with shorter times
        shutil.rmtree(folder / "killed")
        kills, longest = 0, longest / 2
print(kills, os.WEXITSTATUS(status))
"""


def _train_gated(path: Path) -> None:
    from gradest_experiments.gated.settings import GatedSettings
    from tests.experiments.conftest import SMALL

    train(GatedSettings.build(**SMALL, estimator="reinforce_centered"), out=path, resume=True)


def _train_vae(path: Path) -> None:
    from tests.experiments.test_vae import run_of, tiny_images, train_vae

    train_vae(run_of("double_cv", steps=60, eval_every=7), tiny_images(), path)


def _do_tasks(path: Path) -> None:
    from gradest_experiments.toys import run
    from gradest_experiments.toys.quadratic import QuadraticPart

    run.write_chart = lambda *given: None  # its threads do not survive a fork
    run.reproduce_toys(path, [QuadraticPart(units=3, draws=20, warm_up=2)])


CASES = {"gated": _train_gated, "vae": _train_vae, "toys": _do_tasks}


@pytest.mark.slow
@pytest.mark.parametrize(
    "name", ["gated", *(pytest.param(name, marks=pytest.mark.deep) for name in CASES if name != "gated")]
)
def test_a_run_that_is_killed_again_and_again_comes_to_the_same_numbers(tmp_path, name):
    """SIGKILL is sent after random times from a seeded generator, about twelve times before the run ends."""
    if name == "toys":
        pytest.importorskip("vl_convert")
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])}
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", KILLED, name, tmp_path], env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    kills, status = map(int, done.stdout.split())
    assert (kills > 3, status) == (True, 0)
    whole, killed = (list_folders(tmp_path / which) for which in ("whole", "killed"))
    assert len(whole) == len(killed) == 1
    one, two = RunFolder.read(whole[0]), RunFolder.read(killed[0])
    assert without_times(one.rows()) == without_times(two.rows())
    assert without_times([one.results]) == without_times([two.results])
    assert one.rows()


def without_times(rows):
    return [{name: value for name, value in row.items() if name not in ("seconds", "speedup")} for row in rows]
