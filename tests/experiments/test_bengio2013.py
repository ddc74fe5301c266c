from __future__ import annotations

import math
import os
import signal
import struct

import pytest
import torch
from torch.nn.functional import cross_entropy
from typer.testing import CliRunner

from gradest.cli import app
from gradest.errors import GradestError, Incompatible, InvalidInput, InvalidOptions
from gradest_experiments.bengio2013 import report
from gradest_experiments.bengio2013.noise import BetaNoise
from gradest_experiments.bengio2013.rows import ROWS, choose_rows, row_for
from gradest_experiments.bengio2013.run import reproduce_bengio2013
from gradest_experiments.bengio2013.search import choose, name_trial, search_row
from gradest_experiments.bengio2013.training import build_row, train_row
from gradest_experiments.engine import folder as run_folder
from gradest_experiments.engine.data import Dataset, Split
from gradest_experiments.engine.folder import RunFolder
from tests.selection import deep

QUICK = ("noisy_rectifier", "stochastic_binary")  # which have all that a row can have
TINY = {"hidden": 5, "gates": 20, "batch": 8, "epochs": 3}


def tiny_data():
    """Return 40, 12 and 12 images of 6 pixels, of three classes that each have a bright pixel of their own."""
    generator = torch.Generator().manual_seed(0)

    def split(count):
        y = torch.arange(count) % 3
        x = 0.5 * torch.rand(count, 6, generator=generator)
        x[torch.arange(count), y] += 0.5
        return Split(x, y)

    return Dataset(split(40), split(12), split(12), 3)


class Unseen:
    """A split whose use fails the test."""

    def __getattr__(self, name):
        raise AssertionError("the test images were looked at")

    def to(self, device):
        return self


def row_of(name):
    (row,) = choose_rows([name])
    return row


def metrics_of(folder):
    """Return the lines of metrics without the seconds."""
    return [{name: value for name, value in row.items() if name != "seconds"} for row in RunFolder.read(folder).rows()]


def results_of(folder):
    return RunFolder.read(folder).results


STATED = {  # gater_scale, momentum, penalty, penalty_weight, input_noise, evaluation
    "noisy_rectifier": (1.0, 0.0, "l1", 1e-5, None, "threshold"),
    "straight_through": (1.0, 0.0, "kl", 0.1, None, "threshold"),
    "stochastic_times_smooth": (1.0, 0.5, "kl", 0.001, 40.0, "threshold"),
    "stochastic_binary": (0.01, 0.0, "kl", 1.0, None, "threshold"),
    "rectifier": (1.0, 0.0, "l1", 1e-5, None, "mean"),
    "noisy_sigmoid": (1.0, 0.0, "none", 0.1, None, "mean"),
    "sigmoid": (1.0, 0.0, "none", 0.1, None, "mean"),
}


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.name)
def test_a_row_has_what_the_paper_states(row):
    settings = row.settings(**row.published_settings())
    names = ("gater_scale", "momentum", "penalty", "penalty_weight", "input_noise", "evaluation")
    assert tuple(getattr(settings, name) for name in names) == STATED[row.name]
    assert (settings.data, settings.batch, settings.learning_rate, settings.sparsity) == ("mnist", 32, 0.1, 0.1)
    assert (settings.hidden, settings.gates) == (400, 200 if "sigmoid" in row.name else 2000)
    assert settings.max_norm == 2.0
    assert settings.decay == 0
    assert settings.penalty_rate == 0.1
    if row.name == "noisy_rectifier":
        assert settings.neuron == {"name": "noisy_rectifier", "distribution": "gaussian", "std": 1.0}
    if row.name == "stochastic_binary":
        _, estimator = settings.pair()
        assert (estimator.name, estimator.decay) == ("reinforce_centered", 0.9)
    if row.name == "straight_through":
        assert settings.pair()[1].derivative == "identity"


def test_the_rows_are_the_tables():
    figures = [(row.criterion, *(round(100 * error, 2) for error in row.gater.published)) for row in ROWS]
    assert figures == [
        (6.7e-4, 1.52, 1.87),
        (3.3e-3, 1.42, 1.39),
        (4.4e-3, 1.86, 1.96),
        (9.9e-3, 1.78, 1.89),
        (6.3e-5, 1.66, 1.60),
        (1.8e-3, 1.88, 1.87),
        (3.2e-3, 1.97, 1.92),
    ]
    with pytest.raises(InvalidInput, match="no row is named 'relu'; there are: noisy_rectifier"):
        choose_rows(["relu"])


def test_what_the_search_chose_is_on_its_grid():
    for row in ROWS:
        trial = {name: row.chosen[name] for name in row.grid} if row.chosen else None
        assert trial is None or trial in row.trials()


def test_options_go_before_what_was_chosen_and_that_before_what_is_stated():
    row = row_of("straight_through")
    found = row.__class__(**{**vars(row), "chosen": {"penalty_weight": 0.02, "momentum": 0.3}})
    settings = found.settings(penalty_weight=0.03)
    assert (settings.penalty_weight, settings.momentum, settings.learning_rate) == (0.03, 0.3, 0.1)


def test_the_learning_rate_stays_and_then_falls_to_nothing():
    settings = row_of("sigmoid").settings(decay=0.25)
    assert [settings.rate_at(done) for done in (0, 0.5, 0.74, 0.875, 1.0)] == [1, 1, 1, 0.5, 0]
    assert row_of("sigmoid").settings(decay=0).rate_at(0.999) == 1
    assert row_of("sigmoid").settings(decay=1).rate_at(0.25) == 0.75


def test_each_step_has_its_learning_rate_and_the_gater_its_part(tmp_path, monkeypatch):
    rates = []
    step = torch.optim.SGD.step
    monkeypatch.setattr(
        torch.optim.SGD, "step", lambda self: rates.append([group["lr"] for group in self.param_groups]) or step(self)
    )
    settings = row_of("stochastic_binary").settings(**TINY, learning_rate=0.1, gater_scale=0.25)
    train_row(settings, tiny_data(), tmp_path)
    assert len(rates) == 15  # five minibatches an epoch
    for done, (gater, rest) in enumerate(rates):
        assert rest == pytest.approx(0.1 * (1 if done < 7.5 else (15 - done) / 7.5))
        assert gater == pytest.approx(0.25 * rest)


def test_beta_noise_has_its_moments_and_its_mean_in_evaluation():
    """The mean is 1/41 and the variance 40 / (41² 42), within 5 standard errors of 10^5 draws: two false alarms in a million."""
    noise, a = BetaNoise(40.0), torch.linspace(-3, 3, 100_000, dtype=torch.float64)
    torch.manual_seed(0)
    z = noise(a) - a
    mean, variance = 1 / 41, 40 / (41**2 * 42)
    assert float(z.min()) >= 0
    assert abs(float(z.mean()) - mean) < 5 * (variance / len(a)) ** 0.5
    spread = (z - mean) ** 2
    assert abs(float(spread.mean()) - variance) < 5 * float(spread.std()) / len(a) ** 0.5
    assert not torch.equal(noise(a), noise(a))
    torch.testing.assert_close(noise.eval()(a), a + mean)


def test_stochastic_times_smooth_alone_has_noise_before_the_gates():
    x = tiny_data().train.x
    for row in ROWS:
        network = build_row(row.settings(**TINY), 6, 3)
        noisy = not torch.equal(network.pre_activations(x), network.pre_activations(x))
        assert noisy == (row.name == "stochastic_times_smooth")


@pytest.mark.parametrize("name", ["sigmoid", "noisy_sigmoid"])
def test_the_dense_baselines_are_gates_of_sigmoids(name, monkeypatch):
    """logits = W (σ(a + z) * experts(x)) + c, with z normal if there is noise; the loss has no penalty.

    The noise is read off the gates: 40 · 200 of them, whose mean and standard deviation are 0 and 1 by 5 standard errors.
    """
    torch.manual_seed(1)
    row, data = row_of(name), tiny_data()
    network = build_row(row.settings(hidden=5), 6, 3)
    assert network.event == (200,)
    seen = []
    read = network.experts.forward
    monkeypatch.setattr(network.experts, "forward", lambda x, gates: seen.append(gates) or read(x, gates))
    x, y = data.train.x, data.train.y
    objective = network.objective(x, y)
    a = network.pre_activations(x)
    z = (torch.logit(seen[0].detach().double()) - a.detach()).float()
    if name == "sigmoid":
        assert float(z.abs().max()) < 1e-4
    else:
        assert abs(float(z.mean())) < 5 / 8000**0.5
        assert abs(float(z.std()) - 1) < 5 / 16000**0.5
    gates = torch.sigmoid(a + z)
    experts = x @ network.experts.weight.T + network.experts.bias
    loss = cross_entropy((gates * experts) @ network.readout.weight.T + network.readout.bias, y)
    torch.testing.assert_close(objective.total, loss, rtol=1e-4, atol=1e-4)
    parameters = list(network.parameters())
    for found, exact in zip(
        torch.autograd.grad(objective.total, parameters), torch.autograd.grad(loss, parameters), strict=True
    ):
        torch.testing.assert_close(found, exact, rtol=1e-3, atol=1e-5)
    logits, emitted = network.eval()(x)
    assert torch.equal(logits, network(x)[0])
    if name == "sigmoid":
        torch.testing.assert_close(emitted, torch.sigmoid(a))


@pytest.mark.parametrize(
    "row",
    [row if row.name in QUICK else pytest.param(row, marks=pytest.mark.deep) for row in ROWS],
    ids=lambda row: row.name,
)
def test_every_row_learns(row, tmp_path):
    settings = row.settings(hidden=16, gates=40, batch=8, epochs=30, seed=1)
    train_row(settings, tiny_data(), tmp_path)
    lines, found = metrics_of(tmp_path), results_of(tmp_path)
    assert [line["step"] for line in lines] == list(range(1, 31))
    if settings.penalty != "l1":  # which grows, and is part of the loss
        assert lines[-1]["loss"] < 0.8 * lines[0]["loss"]
    assert found["test"]["error"] < 0.4  # chance is 0.67
    assert found["steps"] == 150
    best = min(lines, key=lambda line: line["valid_error"])
    assert (found["valid"]["epoch"], found["valid"]["error"]) == (best["step"], best["valid_error"])
    assert (found["valid"]["loss"], found["valid"]["open_share"]) == (best["valid_loss"], best["valid_open"])


def test_the_weights_that_are_tested_are_those_of_the_best_epoch(tmp_path):
    settings = row_of("straight_through").settings(**TINY)
    data = tiny_data()
    train_row(settings, Dataset(data.train, data.valid, data.valid, 3), tmp_path)
    found = results_of(tmp_path)
    assert {**found["test"], "epoch": found["valid"]["epoch"]} == found["valid"]


@pytest.mark.parametrize(
    ("name", "at"),
    [
        *(("stochastic_times_smooth", 7), ("stochastic_binary", 10), ("noisy_rectifier", 14)),
        *deep(*(("stochastic_times_smooth", at) for at in (10, 14))),
        *deep(*(("stochastic_binary", at) for at in (7, 14))),
        *deep(*(("noisy_rectifier", at) for at in (7, 10))),
    ],
)
def test_an_interrupted_run_goes_on_to_the_same_numbers(tmp_path, name, at):
    settings, data = row_of(name).settings(**TINY), tiny_data()
    train_row(settings, data, tmp_path / "whole")

    def strike(step):
        if step == at:
            os.kill(os.getpid(), signal.SIGINT)

    torch.manual_seed(7)
    before = torch.get_rng_state()
    with pytest.raises(KeyboardInterrupt):
        train_row(settings, data, tmp_path / "cut", strike)
    assert "valid" not in results_of(tmp_path / "cut")
    steps = []
    train_row(settings, data, tmp_path / "cut", steps.append)
    assert torch.equal(torch.get_rng_state(), before)
    assert steps == list(range(at, 16))
    assert metrics_of(tmp_path / "cut") == metrics_of(tmp_path / "whole")
    assert results_of(tmp_path / "cut") == results_of(tmp_path / "whole")
    whole, cut = (RunFolder.read(tmp_path / folder).load() for folder in ("whole", "cut"))
    for key in whole["network"]:
        assert torch.equal(whole["network"][key], cut["network"][key])
    train_row(settings, data, tmp_path / "cut", steps.append)
    assert steps[-1] == 15
    assert len(steps) == 17 - at


def test_what_was_written_after_a_checkpoint_is_written_once(tmp_path, monkeypatch):
    """The process is killed, as it were, between a line of metrics and its checkpoint."""
    settings, data = row_of("sigmoid").settings(**TINY), tiny_data()
    train_row(settings, data, tmp_path / "whole")
    saved = []
    keep = run_folder.save_checkpoint

    def die_after_the_second_epoch(path, state):
        saved.append(state)
        if len(saved) == 3:  # the first is of the initial state
            raise OSError("killed")
        keep(path, state)

    monkeypatch.setattr(run_folder, "save_checkpoint", die_after_the_second_epoch)
    with pytest.raises(OSError, match="killed"):
        train_row(settings, data, tmp_path / "cut")
    assert len(metrics_of(tmp_path / "cut")) == 2
    monkeypatch.undo()
    train_row(settings, data, tmp_path / "cut")
    assert metrics_of(tmp_path / "cut") == metrics_of(tmp_path / "whole")
    assert results_of(tmp_path / "cut") == results_of(tmp_path / "whole")


def test_a_run_may_learn_from_the_first_images_alone(tmp_path):
    data = tiny_data()
    few = Dataset(Split(data.train.x[:17], data.train.y[:17]), data.valid, data.test, 3)
    settings = row_of("straight_through").settings(**TINY)
    train_row(settings.model_copy(update={"images": 17}), data, tmp_path / "first")
    train_row(settings, few, tmp_path / "few")
    assert results_of(tmp_path / "first") == results_of(tmp_path / "few")
    assert results_of(tmp_path / "few")["steps"] == 9
    with pytest.raises(InvalidOptions, match="images"):
        row_of("sigmoid").settings(images=0)
    with pytest.raises(InvalidOptions, match="learning_rte"):
        row_of("sigmoid").settings(learning_rte=0.1)


def test_other_settings_are_refused(tmp_path):
    train_row(row_of("sigmoid").settings(**TINY), tiny_data(), tmp_path)
    with pytest.raises(InvalidInput, match=r"other settings: epochs 3 \(now 4\)"):
        train_row(row_of("sigmoid").settings(**{**TINY, "epochs": 4}), tiny_data(), tmp_path)


def test_divergence_is_an_error(tmp_path):
    settings = row_of("sigmoid").settings(**TINY, learning_rate=1e30, max_norm=math.inf)
    with pytest.raises(GradestError, match=r"diverged|finite"):
        train_row(settings, tiny_data(), tmp_path)


def test_the_search_takes_the_least_validation_error_at_the_wanted_share():
    def of(error, share, loss=1.0):
        return {"error": error, "open": share, "loss": loss}

    assert choose({"a": of(0.02, 0.1), "b": of(0.01, 0.114), "c": of(0.001, 0.116)}, 0.1) == "b"
    assert choose({"a": of(0.02, 0.1), "b": of(0.01, 0.086), "c": of(0.001, 0.084)}, 0.1) == "b"
    assert choose({"a": of(0.02, 0.1), "b": of(0.01, 0.15)}, None) == "b"
    assert choose({"a": of(0.02, 0.3), "b": of(0.03, 0.2)}, 0.1) == "b"
    assert choose({"a": of(0.02, 0.1, 0.5), "b": of(0.02, 0.1, 0.4)}, 0.1) == "b"


def test_the_search_never_looks_at_the_test_images_and_is_recorded(tmp_path):
    row, data = row_of("stochastic_binary"), tiny_data()
    unseen = Dataset(data.train, data.valid, Unseen(), 3)
    found = search_row(row, unseen, tmp_path, **TINY)
    assert found in row.trials()
    results = results_of(tmp_path)
    assert set(results) == {"chosen", *(name_trial(trial) for trial in row.trials())}
    assert results["chosen"] == name_trial(found)
    for trial in row.trials():
        folder = tmp_path / name_trial(trial)
        valid = results_of(folder)["valid"]
        last = metrics_of(folder)[-1]
        assert results[name_trial(trial)] == {
            "error": valid["error"],
            "loss": valid["loss"],
            "open": last["open"],
        }
        assert "test" not in results_of(folder)
        settings = RunFolder.read(folder).settings
        assert {name: settings[name] for name in trial} == trial
    with pytest.raises(AssertionError, match="looked at"):
        train_row(row.settings(**TINY), unseen, tmp_path / "tested")


def test_a_search_that_was_interrupted_goes_on(tmp_path):
    row, data = row_of("straight_through"), tiny_data()
    whole = search_row(row, data, tmp_path / "whole", **TINY)
    steps = []

    def strike(step):
        steps.append(step)
        if len(steps) == 20:  # in the second trial
            os.kill(os.getpid(), signal.SIGINT)

    with pytest.raises(KeyboardInterrupt):
        search_row(row, data, tmp_path / "cut", strike, **TINY)
    assert search_row(row, data, tmp_path / "cut", steps.append, **TINY) == whole
    assert len(steps) == 16 * len(row.trials()) + 1  # the steps of each trial and its start; one trial started twice
    assert results_of(tmp_path / "cut") == results_of(tmp_path / "whole")


def test_the_report_says_where_it_differs_and_by_what_settings(tmp_path):
    pytest.importorskip("altair")
    pytest.importorskip("vl_convert")
    rows = choose_rows(["straight_through", "sigmoid"])
    reproduce_bengio2013(tmp_path, rows, tiny_data(), seeds=2, search=True, quick=True, hidden=5, gates=20)
    text = (tmp_path / "report.md").read_text()
    assert (tmp_path / "curves.svg").read_text().startswith("<svg")
    assert (tmp_path / "curves.png").read_bytes().startswith(b"\x89PNG")
    for row in rows:
        tests = [100 * results_of(tmp_path / row.name / f"seed-{seed}")["test"]["error"] for seed in (0, 1)]
        mean, spread = sum(tests) / 2, abs(tests[0] - tests[1]) / 2**0.5
        line = next(line for line in text.splitlines() if line.startswith(f"| {row.title} | {row.criterion:.1e}"))
        assert f"| {100 * row.gater.published[1]:.2f} | {mean:.2f} ± {spread:.2f} |" in line
        assert f"{row.title}: test error {mean:.2f} %" in text
        assert "decay 0.5 (published: 0.0)" in text
        chosen = results_of(tmp_path / row.name / "search")["chosen"]
        settings = RunFolder.read(tmp_path / row.name / "seed-0").settings
        assert chosen == name_trial({name: settings[name] for name in row.grid})
    assert "more than two standard errors above" in text


def test_the_paper_s_settings_and_other_estimators_have_rows_of_their_own(tmp_path):
    """They stand beside the rows of the paper: neither has their folders, and other estimators have no published errors."""
    pytest.importorskip("altair")
    pytest.importorskip("vl_convert")
    row = row_of("straight_through")
    rows = [row, row.as_stated(), row_for({"name": "reinmax"}), row_for({"name": "pathwise"})]
    assert [str(one.gater.neuron)[:24] for one in rows[2:]] == ["bernoulli", "{'name': 'noisy_rectifie"]
    small = {"hidden": 5, "gates": 20, "epochs": 1, "images": 20}
    text = reproduce_bengio2013(tmp_path, rows, tiny_data(), search=False, **small).read_text()
    assert "| straight-through, as stated | 3.3e-03 |" in text
    assert "- straight-through, as stated: as published." in text
    assert "penalty_weight 0.03 (published: 0.1)" in text
    line = next(line for line in text.splitlines() if line.startswith("| bernoulli + reinmax | - |"))
    assert line.split("|")[4].strip() == line.split("|")[6].strip() == "-"
    assert text.count("test error") == 2  # beside the published ones
    assert RunFolder.read(tmp_path / "straight_through-as-stated" / "seed-0").settings["decay"] == 0
    with pytest.raises(Incompatible, match="simple does not"):
        row_for({"name": "simple"})


def test_a_verdict_is_by_two_standard_errors(tmp_path):
    row = row_of("straight_through")  # 1.39 %, whose difference to another such has a standard error of 0.166 points

    def verdict(error, share=0.1, training=0.1):
        found = report._FinishedRun(
            row.settings(), {}, {"test": {"error": error, "open_share": share}}, [{"open": training}]
        )
        return report._verdict(row, [found])

    assert "within two standard errors" in verdict(0.0139 + 0.0032)
    assert "standard errors above" in verdict(0.0139 + 0.0038)
    assert "standard errors below" in verdict(0.0139 - 0.0033)
    assert "gates are open" not in verdict(0.0139, 0.109)
    assert "12.0 % of the gates are open on the test images, not 10 ± 1 %" in verdict(0.0139, 0.12)
    assert "8.0 % of the gates are open in training, not 10 ± 1 %" in verdict(0.0139, 0.1, 0.08)


def test_a_time_buys_epochs_and_a_run_keeps_those_it_began_with(tmp_path, monkeypatch):
    pytest.importorskip("altair")
    pytest.importorskip("vl_convert")
    monkeypatch.setattr("gradest_experiments.bengio2013.run.time_step", lambda settings, data: 0.5)
    rows = choose_rows(["sigmoid"])
    options = {"hidden": 5, "gates": 20, "batch": 8}
    reproduce_bengio2013(tmp_path, rows, tiny_data(), minutes=0.1, **options)  # 6 s, 2.5 s an epoch
    assert len(metrics_of(tmp_path / "sigmoid/seed-0")) == 2
    reproduce_bengio2013(tmp_path, rows, tiny_data(), minutes=9, **options)
    assert len(metrics_of(tmp_path / "sigmoid/seed-0")) == 2


def test_the_command_line_reproduces(tmp_path):
    pytest.importorskip("altair")
    pytest.importorskip("tensorboard")
    pytest.importorskip("vl_convert")
    for name, count in (("train", 132), ("t10k", 4)):
        images = bytes(i * 37 % 256 for i in range(count * 4))
        (tmp_path / f"{name}-images-idx3-ubyte").write_bytes(b"\0\0\x08\x03" + struct.pack(">3I", count, 2, 2) + images)
        (tmp_path / f"{name}-labels-idx1-ubyte").write_bytes(b"\0\0\x08\x01" + struct.pack(">I", count) + bytes(count))
    words = [
        "reproduce",
        "bengio2013",
        "--data-dir",
        tmp_path,
        "--out",
        tmp_path / "out",
        "--quick",
        "--rows",
        "sigmoid",
        "--tensorboard",
    ]
    done = CliRunner().invoke(app, [str(word) for word in words])
    assert done.exit_code == 0, done.output
    assert done.stdout.strip() == str(tmp_path / "out/report.md")
    settings = RunFolder.read(tmp_path / "out/sigmoid/seed-0").settings
    assert [settings[name] for name in ("gates", "hidden", "epochs", "images")] == [200, 400, 2, 20_000]
    assert list((tmp_path / "out/sigmoid/seed-0/tensorboard").glob("events.*"))
    done = CliRunner().invoke(app, [*(str(word) for word in words), "--epochs", "1", "--minutes", "1"])
    assert "give one of them" in str(done.exception)
