from __future__ import annotations

import json
import platform
import signal
import subprocess
import sys
import textwrap
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from gradest.errors import GradestError, InvalidInput, UnknownPlugin
from gradest_experiments.engine.checkpoint import load_checkpoint
from gradest_experiments.engine.data import load
from gradest_experiments.engine.folder import RunFolder
from gradest_experiments.gated import training
from gradest_experiments.gated.settings import GatedSettings
from gradest_experiments.gated.training import GatedRun, Result, build_network, score, train
from tests.selection import deep

# with noise and a state, with momentum, with several points, with a steered coefficient
PAIRS = [
    ("bernoulli", "reinforce_centered"),
    ("stochastic_times_smooth", "held_noise"),
    ("bernoulli", "rloo"),
    ("noisy_rectifier", "pathwise"),
]


def numbers(result: Result) -> dict[str, object]:
    """Return a result without the measured times."""
    return result.model_dump(mode="json", exclude={"seconds", "speedup"})


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return torch.load(folder / "model.pt", weights_only=True)


def assert_same(folder: Path, other: Path) -> None:
    mine, theirs = weights(folder), weights(other)
    assert mine.keys() == theirs.keys()
    for name, value in mine.items():
        assert torch.equal(value, theirs[name]), name


def unfinish(folder: Path) -> None:
    """Remove the results, as if the process had been killed after its last checkpoint."""
    known = json.loads((folder / "run.json").read_text())
    (folder / "run.json").write_text(json.dumps({**known, "results": {}}))


def strike(monkeypatch: pytest.MonkeyPatch, epoch: int, step: int, act: Callable[[], object]) -> None:
    """Call `act` within that minibatch."""
    learn = GatedRun.learn

    def struck(run: GatedRun, index: torch.Tensor) -> None:
        if divmod(run.step, run.interval) == (epoch, step):
            act()
        learn(run, index)

    monkeypatch.setattr(GatedRun, "learn", struck)


def interrupt() -> None:
    signal.raise_signal(signal.SIGINT)


@pytest.mark.parametrize(("neuron", "estimator"), [*PAIRS[:2], *deep(*PAIRS[2:])])
def test_a_run_resumed_after_an_interrupt_gives_the_same_numbers(small, tmp_path, monkeypatch, neuron, estimator):
    settings = small(neuron=neuron, estimator=estimator)
    whole = train(settings, out=tmp_path / "whole")
    with monkeypatch.context() as patch:
        strike(patch, 1, 17, interrupt)
        with pytest.raises(KeyboardInterrupt):
            train(settings, out=tmp_path / "cut")
    state = load_checkpoint(tmp_path / "cut" / "checkpoint.pt")
    assert (state["epoch"], state["step"]) == (1, 18)  # the minibatch under way was finished
    assert not RunFolder.read(tmp_path / "cut").results
    torch.manual_seed(123)  # what the process did in between does not matter
    resumed = train(settings, out=tmp_path / "cut", resume=True)
    assert numbers(resumed) == numbers(whole)
    assert_same(tmp_path / "cut", tmp_path / "whole")


@pytest.mark.parametrize(("epoch", "step"), [(0, 0), *deep((2, 37))])
def test_interrupts_at_the_first_and_the_last_minibatch(small, tmp_path, monkeypatch, epoch, step):
    whole = train(small(), out=tmp_path / "whole")
    with monkeypatch.context() as patch:
        strike(patch, epoch, step, interrupt)
        with pytest.raises(KeyboardInterrupt):
            train(small(), out=tmp_path / "cut")
    assert numbers(train(small(), out=tmp_path / "cut", resume=True)) == numbers(whole)


def test_a_second_interrupt_stops_at_once_and_the_last_epoch_is_kept(small, tmp_path, monkeypatch):
    whole = train(small(), out=tmp_path / "whole")
    with monkeypatch.context() as patch:
        strike(patch, 1, 5, lambda: (interrupt(), interrupt()))
        with pytest.raises(KeyboardInterrupt):
            train(small(), out=tmp_path / "cut")
    state = load_checkpoint(tmp_path / "cut" / "checkpoint.pt")
    assert (state["epoch"], state["step"]) == (1, 0)
    assert numbers(train(small(), out=tmp_path / "cut", resume=True)) == numbers(whole)


@pytest.mark.deep
def test_a_killed_process_resumes_from_its_last_epoch(small, tmp_path):
    settings = small(estimator="reinforce_centered")
    script = """
        import os, signal, sys
        from pathlib import Path
        from gradest_experiments.gated import training
        from gradest_experiments.gated.settings import GatedSettings

        learn = training.GatedRun.learn

        def die(run, index):
            if divmod(run.step, run.interval) == (2, 7):
                os.kill(os.getpid(), signal.SIGKILL)
            learn(run, index)

        training.GatedRun.learn = die
        training.train(GatedSettings.model_validate_json(sys.argv[1]), out=Path(sys.argv[2]))
    """
    killed = tmp_path / "killed"
    command = [sys.executable, "-c", textwrap.dedent(script), settings.model_dump_json(), str(killed)]
    assert subprocess.run(command, timeout=120).returncode == -signal.SIGKILL
    assert load_checkpoint(killed / "checkpoint.pt")["epoch"] == 2
    whole = train(settings, out=tmp_path / "whole")
    assert numbers(train(settings, out=killed, resume=True)) == numbers(whole)
    assert_same(killed, tmp_path / "whole")


def test_a_run_killed_between_its_last_checkpoint_and_its_results_is_only_scored_again(small, tmp_path, monkeypatch):
    whole = train(small(), out=tmp_path)
    unfinish(tmp_path)
    monkeypatch.setattr(GatedRun, "learn", lambda *_: pytest.fail("it trained again"))
    assert numbers(train(small(), out=tmp_path, resume=True)) == numbers(whole)


def test_a_finished_run_gives_its_results_again_without_its_data(small, tmp_path, monkeypatch):
    first = train(small(), out=tmp_path)
    monkeypatch.setattr(training, "load", lambda *_: pytest.fail("it loaded the data again"))
    assert train(small(), out=tmp_path, resume=True) == first


def test_resume_in_an_empty_folder_begins(small, tmp_path):
    assert numbers(train(small(epochs=1), out=tmp_path, resume=True)) == numbers(train(small(epochs=1)))


def test_the_same_seed_gives_the_same_numbers_and_another_seed_others(small):
    first = train(small(seed=5))
    torch.manual_seed(99)
    assert numbers(train(small(seed=5))) == numbers(first)
    assert train(small(seed=6)).epochs != first.epochs


def test_the_global_generator_is_left_as_it_was(small):
    torch.manual_seed(3)
    before = torch.get_rng_state()
    train(small(epochs=1))
    assert torch.equal(torch.get_rng_state(), before)


def test_a_folder_with_a_run_is_not_overwritten(small, tmp_path, monkeypatch):
    train(small(epochs=1), out=tmp_path)
    with pytest.raises(InvalidInput, match="holds a run already"):
        train(small(epochs=1), out=tmp_path)
    unfinish(tmp_path)
    with pytest.raises(InvalidInput, match="holds a run already"):
        train(small(epochs=1), out=tmp_path)


@pytest.mark.parametrize("finished", [True, False])
def test_other_settings_are_not_resumed(small, tmp_path, finished):
    train(small(epochs=1), out=tmp_path)
    if not finished:
        unfinish(tmp_path)
    with pytest.raises(InvalidInput, match=r"other settings: gates 20 \(now 30\), seed 0 \(now 1\)"):
        train(small(epochs=2, gates=30, seed=1), out=tmp_path, resume=True)


def test_what_a_default_is_may_be_said_when_resuming(small, tmp_path):
    first = train(small(epochs=1), out=tmp_path)
    assert train(small(epochs=1, momentum=0.0, penalty="kl", data_dir=tmp_path), out=tmp_path, resume=True) == first


def test_resume_needs_a_folder(small):
    with pytest.raises(InvalidInput, match="give out"):
        train(small(), resume=True)


def test_a_run_whose_pair_is_unknown_writes_nothing(small, tmp_path):
    with pytest.raises(UnknownPlugin):
        train(small(neuron="bernouli"), out=tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_damaged_files_are_named(small, tmp_path):
    train(small(epochs=1), out=tmp_path)
    whole = (tmp_path / "run.json").read_text()
    (tmp_path / "run.json").write_text("{")
    with pytest.raises(InvalidInput, match=r"run\.json is damaged"):
        train(small(epochs=1), out=tmp_path, resume=True)
    (tmp_path / "run.json").write_text(whole.replace('"best_epoch"', '"first_epoch"'))
    with pytest.raises(InvalidInput, match=r"results in .* are damaged"):
        train(small(epochs=1), out=tmp_path, resume=True)
    (tmp_path / "run.json").write_text(whole)
    unfinish(tmp_path)
    (tmp_path / "checkpoint.pt").write_text("{")
    with pytest.raises(InvalidInput, match=r"checkpoint\.pt is damaged"):
        train(small(epochs=1), out=tmp_path, resume=True)


def test_a_folder_has_all_that_made_the_run_and_what_came_of_it(small, tmp_path):
    settings = small(seed=4, neuron={"name": "noisy_rectifier", "distribution": "gaussian"}, estimator="pathwise")
    result = train(settings, out=tmp_path)
    found = RunFolder.read(tmp_path)
    assert found.experiment == "gated-network"
    assert found.settings["seed"] == 4
    assert found.settings["neuron"] == {"name": "noisy_rectifier", "distribution": "gaussian"}
    assert found.settings["penalty_weight"] == 1e-5
    assert "data_dir" not in found.settings
    assert found.versions["torch"] == torch.__version__
    assert found.versions["python"] == platform.python_version()
    assert found.versions.keys() == {"gradest", "torch", "python"}
    rows = found.rows("epoch")
    assert [row["step"] for row in rows] == [1, 2, 3]
    assert 0 < found.results["seconds"] < 60
    errors = [row["valid_error"] for row in rows]
    assert found.results["best_epoch"] == errors.index(min(errors)) + 1
    assert found.results["valid"] == result.epochs[result.best_epoch - 1].valid.model_dump()
    assert found.results["test"] == result.test.model_dump()
    assert 0 <= result.test.open_share <= 1


@pytest.mark.parametrize("finished", [True, False])
def test_a_run_with_more_epochs_has_the_numbers_of_one_that_had_them_from_the_start(small, tmp_path, finished):
    settings = {"estimator": "reinforce_centered"}
    whole = train(small(**settings, epochs=3), out=tmp_path / "whole")
    train(small(**settings, epochs=1), out=tmp_path / "grown")
    if not finished:
        unfinish(tmp_path / "grown")
    assert numbers(train(small(**settings, epochs=3), out=tmp_path / "grown", resume=True)) == numbers(whole)
    assert_same(tmp_path / "grown", tmp_path / "whole")
    with pytest.raises(InvalidInput, match=r"epochs 3 \(now 2\)"):
        train(small(**settings, epochs=2), out=tmp_path / "grown", resume=True)


def test_the_saved_weights_are_those_that_were_scored(small, tmp_path):
    result = train(small(), out=tmp_path)
    data = load("digits")
    network = build_network(result.settings, data.pixels, data.classes)
    network.load_state_dict(weights(tmp_path))
    assert score(network, data.test) == result.test
    assert score(network, data.train) == result.train
    assert float(network.unit.threshold) == result.threshold


def test_minibatches_cover_each_epoch_once_in_an_order_of_its_own(small):
    run = GatedRun(small(batch=100).resolved(), load("digits"))
    assert (run.interval, run.steps) == (12, 36)
    first, second = ([run.minibatches[step] for step in range(start, start + 12)] for start in (0, 12))
    for epoch in (first, second):
        assert [len(part) for part in epoch] == [100] * 11 + [97]
        assert torch.cat(epoch).sort().values.tolist() == list(range(1197))
    assert torch.cat(second).tolist() != torch.cat(first).tolist()
    assert [run.minibatches[step].tolist() for step in range(3, 12)] == [part.tolist() for part in first[3:]]


def test_a_minibatch_may_be_larger_than_the_data(small):
    assert len(train(small(epochs=1, batch=5000)).epochs) == 1


@pytest.mark.parametrize("neuron", ["noisy_rectifier", "sigmoid"])
def test_divergence_is_said_and_not_recorded(small, neuron):
    with pytest.raises(GradestError, match=r"diverged in epoch 1, minibatch \d+.*lower learning_rate"):
        train(small(neuron=neuron, estimator="pathwise", learning_rate=1e30, max_norm=1e30))


def test_weights_stay_within_max_norm(small, tmp_path):
    train(small(epochs=1, max_norm=0.5), out=tmp_path)
    for name, value in weights(tmp_path).items():
        if name.endswith("weight"):
            assert float(value.norm(dim=1).max()) <= 0.5 * (1 + 1e-6), name


def test_gater_scale_and_momentum_reach_the_optimiser(small):
    run = GatedRun(small(learning_rate=0.2, gater_scale=0.25, momentum=0.5).resolved(), load("digits"))
    gater, rest = run.optimizer.param_groups
    assert (gater["lr"], rest["lr"], gater["momentum"], rest["momentum"]) == (0.05, 0.2, 0.5, 0.5)
    trained = {id(weights) for group in run.optimizer.param_groups for weights in group["params"]}
    assert trained == {id(weights) for weights in run.network.parameters()}


def test_a_threshold_that_is_given_is_kept(small):
    assert train(small(epochs=1, threshold=0.25)).threshold == 0.25
    assert train(small(epochs=1, evaluation="mean")).threshold is None


def test_progress_is_shown_on_standard_error_alone(small, capsys):
    quiet = train(small(epochs=1))
    assert capsys.readouterr() == ("", "")
    shown = train(small(epochs=1), progress=True)
    out, err = capsys.readouterr()
    assert out == ""
    assert "bernoulli + straight_through" in err
    assert "1/1" in err
    assert numbers(shown) == numbers(quiet)


def test_mnist_trains(tmp_path, monkeypatch, mnist_home):
    data = load("mnist", mnist_home)
    few = training.Dataset(*(training.Split(s.x[:640], s.y[:640]) for s in (data.train, data.valid, data.test)))
    monkeypatch.setattr(training, "load", lambda name, data_dir: few)
    settings = GatedSettings.build(data="mnist", epochs=3, hidden=50, gates=100, estimator="straight_through")
    result = train(settings)
    assert result.settings.data == "mnist"
    assert result.test.error < 0.5


def test_sparse_experts_compute_what_is_open_and_change_nothing_else(small, tmp_path):
    options = {"estimator": "reinforce_centered", "gates": 200, "penalty_weight": 1.0}  # that closes gates at once
    dense, sparse = (train(small(**options, experts=experts)) for experts in ("dense", "sparse"))
    assert (dense.computed, dense.speedup) == (1, 1)
    assert dense.settings.experts == "dense"
    opened = [epoch.open_share for epoch in sparse.epochs]
    assert opened[-1] < 0.2
    assert 0.05 < sparse.computed < 0.5
    assert sparse.speedup > 0
    for one, two in zip(dense.epochs, sparse.epochs, strict=True):
        assert one.loss == pytest.approx(two.loss, rel=0.02)
        assert one.open_share == pytest.approx(two.open_share, rel=0.02)


def test_a_resumed_run_with_sparse_experts_gives_the_same_numbers(small, tmp_path, monkeypatch):
    settings = small(estimator="reinforce_centered", experts="sparse", penalty_weight=1.0)
    whole = train(settings, out=tmp_path / "whole")
    with monkeypatch.context() as patch:
        strike(patch, 1, 5, interrupt)
        with pytest.raises(KeyboardInterrupt):
            train(settings, out=tmp_path / "cut")
    assert numbers(train(settings, out=tmp_path / "cut", resume=True)) == numbers(whole)
    assert whole.computed < 1
    assert_same(tmp_path / "cut", tmp_path / "whole")


def test_what_is_computed_is_what_training_does_not_what_evaluation_does(small):
    run = GatedRun(small().resolved(), load("digits"))
    for steps in (1, 2):
        run.learn(torch.arange(32))
        run.end_epoch()
        assert run.computed.of == steps * 2 * 32 * 20 * 64  # forward, and with respect to the weights
