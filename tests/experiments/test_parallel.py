"""Runs in two processes have the numbers of the same runs in one."""

from __future__ import annotations

import functools
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from gradest_experiments.engine.folder import RunFolder
from gradest_experiments.gated.training import train
from tests.experiments.parallel_runs import BATCHES, make_runs
from tests.selection import deep

ROOT = Path(__file__).parents[2]

GATES = ["reinforce_average-sparse", *deep("straight_through-dense", "rloo-dense")]
VAES = ["relax_rebar", *deep("disarm", "double_cv")]
BELIEFS = ["vimco", *deep("nvil")]
QUICK = ("gates-reinforce_average-sparse", "vae-relax_rebar", "belief-vimco")
DEEP = ("gates-straight_through-dense", "gates-rloo-dense", "vae-disarm", "vae-double_cv", "belief-nvil")

pytestmark = pytest.mark.slow


def launch(words: list[str], processes: int) -> subprocess.CompletedProcess[str]:
    torchrun = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(processes)]
    command = [sys.executable, *torchrun, *words]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    environment["PYTHONPATH"] = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=250)
    assert done.returncode == 0, done.stderr
    return done


def epochs(folder: RunFolder) -> list[dict[str, float]]:
    return [{name: value for name, value in row.items() if name != "kind"} for row in folder.rows("epoch")]


def dealt(parts: list[torch.Tensor]) -> torch.Tensor:
    """Return the batch whose examples were assigned to the parts in turn."""
    joined = parts[0].new_empty(sum(map(len, parts)), *parts[0].shape[1:])
    for place, part in enumerate(parts):
        joined[place :: len(parts)] = part
    return joined


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], list[Path]]:
    """Find the folders of a run in this process and in two; all runs that are quick are made at once, or all that are deep."""

    @functools.cache
    def make(names: tuple[str, ...]) -> Path:
        folder = tmp_path_factory.mktemp("runs")
        threads = torch.get_num_threads()
        torch.set_num_threads(1)
        try:
            make_runs(folder / "one", names)
        finally:
            torch.set_num_threads(threads)
        launch(["-m", "tests.experiments.parallel_runs", str(folder / "two"), *names], 2)
        return folder

    return lambda name: [make(QUICK if name in QUICK else DEEP) / which / name for which in ("one", "two")]


@pytest.mark.parametrize("name", GATES)
def test_two_processes_draw_the_gates_of_one_and_learn_the_same(runs, name):
    """Noise and gates are equal bit for bit in all 14 minibatches, the last of which is of one image, so that the second
    process has none of it. Weights differ by the order in which gradients are added up: by less than 1e-5, where a factor of
    two in any gradient, or a part left out, makes 1e-2.
    """
    alone, together = runs(f"gates-{name}")
    one = torch.load(alone / "seen0.pt")
    two = [torch.load(together / f"seen{rank}.pt") for rank in (0, 1)]
    assert len(one["noise"]) == BATCHES
    for what in ("noise", "gates"):
        if what == "gates" and name.startswith("rloo"):
            continue  # several points, which an Expectation layer gives to the loss
        for whole, *parts in zip(one[what], two[0][what], two[1][what], strict=True):
            assert torch.equal(dealt(parts), whole)
    weights = [torch.load(folder / "model.pt") for folder in (alone, together)]
    for parameter, value in weights[0].items():
        torch.testing.assert_close(weights[1][parameter], value, atol=1e-5, rtol=1e-5)
    found = [RunFolder.read(folder) for folder in (alone, together)]
    assert found[0].settings == found[1].settings
    assert found[0].results["test"]["error"] == found[1].results["test"]["error"]
    assert found[0].results["computed"] == pytest.approx(found[1].results["computed"], abs=1e-9)
    for mine, theirs in zip(*map(epochs, found), strict=True):
        assert mine == pytest.approx(theirs, rel=1e-4)


@pytest.mark.deep
def test_one_process_ends_what_torchrun_began(small, tmp_path):
    words = ["-m", "gradest_experiments", "train", "--gates", "20", "--hidden", "8", "--epochs", "1"]
    shown = launch([*words, "--out", str(tmp_path / "two")], 2).stdout
    assert shown.count("bernoulli + straight_through") == 1
    for which in ("one", "two"):
        train(small(epochs=2), out=tmp_path / which, resume=True)
    one, two = (epochs(RunFolder.read(tmp_path / which)) for which in ("one", "two"))
    assert len(one) == len(two) == 2
    for mine, theirs in zip(one, two, strict=True):
        assert mine == pytest.approx(theirs, rel=1e-3)


@pytest.mark.parametrize("estimator", VAES)
def test_a_vae_of_two_processes_is_that_of_one(runs, estimator):
    """Batches of 7, of which the second process has 3. The loss of each of 12 steps differs by the order in which gradients are
    added up alone: by less than 1e-4 of it, where noise or images of another row, a gradient not added up, or an estimator's
    state of one process alone makes 1e-3 and more. Afterwards no thread of the process group is left, for the interpreter's end
    might abort.
    """
    one, two = map(RunFolder.read, runs(f"vae-{estimator}"))
    elbos = [[row["elbo"] for row in folder.rows("train")] for folder in (one, two)]
    assert len(elbos[0]) == 12
    assert elbos[1] == pytest.approx(elbos[0], rel=1e-4)
    assert two.results == pytest.approx(one.results, rel=1e-3)
    states = [folder.load() for folder in (one, two)]
    for name, value in states[0]["vae"].items():
        torch.testing.assert_close(states[1]["vae"][name], value, atol=1e-3, rtol=1e-3)
    for name, value in (states[0]["memory"] or {}).items():
        torch.testing.assert_close(states[1]["memory"][name], value, atol=1e-4, rtol=1e-3)


@pytest.mark.parametrize("estimator", BELIEFS)
def test_a_belief_network_of_two_processes_is_that_of_one(runs, estimator):
    """Ten batches an epoch of 7 images, of which the second process has 3. The averages of an epoch differ by the order in which
    gradients are added up alone; see above. The validation bound has other noise in two processes: 10 images with 4 samples each.
    """
    one, two = (RunFolder.read(folder) for folder in runs(f"belief-{estimator}"))
    assert [row["step"] for row in one.rows("train")] == [10, 20]
    for mine, theirs in zip(one.rows("train"), two.rows("train"), strict=True):
        for number in ("elbo", "bound"):
            assert theirs[number] == pytest.approx(mine[number], rel=1e-4)
    assert two.results["valid"] == pytest.approx(one.results["valid"], abs=1)
    states = [folder.load()["network"] for folder in (one, two)]
    for name, value in states[0].items():
        torch.testing.assert_close(states[1][name], value, atol=1e-3, rtol=1e-3)
