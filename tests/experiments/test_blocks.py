from __future__ import annotations

import itertools
import math
import os
import signal
import struct
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch.nn.functional import cross_entropy
from typer.testing import CliRunner

from gradest.cli import app
from gradest.errors import GradestError, Incompatible, InvalidInput, InvalidOptions
from gradest.random import Key
from gradest_experiments.blocks import training
from gradest_experiments.blocks.network import BlockNetwork
from gradest_experiments.blocks.regularisers import activity, diversity
from gradest_experiments.blocks.report import mutual_information, write_report
from gradest_experiments.blocks.run import reproduce_block_gated
from gradest_experiments.blocks.settings import BlockSettings, list_runs
from gradest_experiments.blocks.speed import measure_speed
from gradest_experiments.blocks.training import evaluate, open_gates, train_blocks
from gradest_experiments.engine.data import Dataset, Split
from gradest_experiments.engine.folder import RunFolder
from tests.experiments.tiny import InterruptedAt, bright_pixels

TINY = {"blocks": 3, "block_size": 2, "target": 0.25, "epochs": 3, "batch": 8, "policy_rate": 0.01}


def settings_of(name="reinforce", **options):
    return BlockSettings.build(**{**TINY, "estimator": name and {"name": name}, **options})


def tiny_data():
    return bright_pixels(30)


def network_of(name="reinforce", **options):
    torch.manual_seed(1)
    return BlockNetwork(12, 4, settings_of(name, **options)).double()


def test_regularisers_by_hand():
    p = torch.tensor([[0.1, 0.5], [0.3, 0.9]], dtype=torch.float64)
    # columns have means 0.2 and 0.7, rows 0.3 and 0.6
    assert float(activity(p, 0.25)) == pytest.approx((0.05 + 0.45) + (0.05 + 0.35) / 2)
    assert float(diversity(p)) == pytest.approx(0.01 + 0.04)
    assert float(diversity(p[:1])) == 0


def test_the_objective_by_hand():
    """The policy's gradient is that of REINFORCE, Σ_i loss_i (u_i - p_i) x_i, plus that of the penalties, as sums over images."""
    network, data, used = network_of(sparsity=3.0, variance=5.0), tiny_data(), []
    x, y = data.train.x[:8].double(), data.train.y[:8]
    hidden = network.hidden.forward
    network.hidden.forward = lambda x, gates: used.append(gates.detach()) or hidden(x, gates)
    objective = network.objective(x, y)
    objective.total.backward()
    (u,) = used
    wide = u.repeat_interleave(2, -1)
    layers = network.hidden, network.readout, network.policy
    (w, b), (v, c), (z, d) = ((layer.weight.detach(), layer.bias.detach()) for layer in layers)
    loss = cross_entropy((wide * torch.tanh(x @ w.T + b)) @ v.T + c, y, reduction="none")
    a = (x @ z.T + d).requires_grad_()
    p = a.sigmoid()
    column, row = p.mean(0), p.mean(1)
    penalty = 3 * ((column - 0.25).abs().sum() + (row - 0.25).abs().mean())
    penalty = penalty - 5 * ((p - column) ** 2).mean(0).sum()
    (grad,) = torch.autograd.grad(penalty, a)
    expected = (loss[:, None] * (u - p.detach()) + grad).T @ x
    assert 0 < u.mean() < 1
    torch.testing.assert_close(network.policy.weight.grad, expected)
    torch.testing.assert_close(objective.total.detach(), loss.sum() + penalty.detach())
    torch.testing.assert_close(objective.loss, loss.sum())


@pytest.mark.parametrize(("neuron", "opened"), [({"name": "categorical"}, 1), ({"name": "k_subset", "k": 2}, 2)])
def test_the_objective_of_gates_that_open_a_fixed_number_by_hand(neuron, opened):
    """The policy's gradient is Σ_i loss_i (u_i - μ_i) x_i with marginals μ; the penalties are of μ and opened / blocks."""
    network, data, used = network_of(neuron=neuron, sparsity=3.0, variance=5.0), tiny_data(), []
    x, y = data.train.x[:8].double(), data.train.y[:8]
    hidden = network.hidden.forward
    network.hidden.forward = lambda x, gates: used.append(gates.detach()) or hidden(x, gates)
    network.objective(x, y).total.backward()
    (u,) = used
    assert set(u.sum(1).tolist()) == {float(opened)}
    loss = cross_entropy(network(x, u), y, reduction="none").detach()
    a = network.policy(x).detach().requires_grad_()
    sets = torch.tensor([h for h in itertools.product((0.0, 1.0), repeat=3) if sum(h) == opened], dtype=torch.float64)
    p = torch.softmax(a @ sets.T, -1) @ sets
    penalty = 3 * (p.mean(0) - opened / 3).abs().sum() - 5 * ((p - p.mean(0)) ** 2).mean(0).sum()
    (grad,) = torch.autograd.grad(penalty, a)
    torch.testing.assert_close(network.policy.weight.grad, (loss[:, None] * (u - p.detach()) + grad).T @ x)
    network.float()
    for key in (None, Key(5)):
        assert evaluate(network, data.test, key)["open"] == pytest.approx(opened / 3)
    likely = network.policy(data.test.x).topk(opened).indices
    assert torch.equal(open_gates(network, data.test.x).gather(1, likely), torch.ones(len(data.test.x), opened))


def test_points_share_a_product_and_have_the_losses_that_they_have_alone():
    network, data = network_of("rloo"), tiny_data()
    x, y = data.train.x[:8].double(), data.train.y[:8]
    losses = []
    network.unit.forward = lambda f, a: losses.append(f(points)) or losses[0][0]
    points = (torch.rand(5, 8, 3, generator=torch.Generator().manual_seed(3)) < 0.5).double()
    network.objective(x, y)
    alone = [cross_entropy(network(x, gates), y, reduction="none") for gates in points]
    torch.testing.assert_close(losses[0], torch.stack(alone))


def test_a_dense_network_has_every_unit():
    network, data = network_of(None, blocks=1, block_size=6), tiny_data()
    x, y = data.train.x[:8].double(), data.train.y[:8]
    logits = network.readout(torch.tanh(x @ network.hidden.weight.T + network.hidden.bias))
    torch.testing.assert_close(network.objective(x, y).total, cross_entropy(logits, y, reduction="sum"))


@pytest.mark.parametrize("name", ["reinforce", "straight_through", "disarm"])
def test_a_step_decays_all_weights(name):
    """A step changes θ by the gradient of λ|θ|², which is 2λθ."""
    steps = []
    for decay in (0.0, 0.5):
        run = training.BlockRun(settings_of(name, decay=decay), tiny_data())
        before = {key: value.detach().clone() for key, value in run.network.named_parameters()}
        run.learn(torch.arange(8))
        steps.append({key: value.detach() - before[key] for key, value in run.network.named_parameters()})
    assert len(before) == 6
    for key, value in before.items():
        rate = 0.01 if key.startswith("policy") else 6e-3
        torch.testing.assert_close(steps[1][key] - steps[0][key], -rate * 2 * 0.5 * value, rtol=1e-3, atol=1e-6)


@pytest.mark.parametrize(
    ("bias", "opened"), [([40.0, -40.0, -40.0], 1), ([40.0, -40.0, 40.0], 2), ([-40.0] * 3, 0), ([40.0] * 3, 3)]
)
def test_computation_is_counted(bias, opened):
    network, data = network_of(), tiny_data()
    network.hidden.method = "sparse"
    with torch.no_grad():
        network.policy.weight.zero_()
        network.policy.bias.copy_(torch.tensor(bias))
    for key in (None, Key(5)):
        found = evaluate(network.float(), data.test, key)
        assert found["open"] == pytest.approx(opened / 3)
        assert found["use"] == [[float(value > 0) for value in bias]] * 4
        assert found["unopened"] == (opened == 0)
        assert found["unopened_errors"] == (found["error"] if opened == 0 else 0)
        assert found["computed"] == 12 * 3 + opened * 2 * 12 + 3 * 2 * 4
    dense = evaluate(network_of(None, blocks=1, block_size=6).float(), data.test)
    assert dense["computed"] == 12 * 6 + 6 * 4
    assert dense["open"] == 1


def test_evaluation_by_hand():
    network, data = network_of().float(), tiny_data()
    key = Key(3)
    found = evaluate(network, data.test, key)
    gates = open_gates(network, data.test.x, key)
    assert found["error"] == float((network(data.test.x, gates).argmax(-1) != data.test.y).double().mean())
    for c in range(4):
        assert found["use"][c] == pytest.approx(gates[data.test.y == c].mean(0).tolist())
        assert found["classes"][c] == pytest.approx(float((data.test.y == c).double().mean()))
    assert found["open"] == pytest.approx(float(gates.mean()))
    likely = open_gates(network, data.test.x)
    assert torch.equal(likely, (network.policy(data.test.x) > 0).float())


def test_bits_by_hand():
    assert mutual_information([[1.0, 0.3], [0.0, 0.3]], [0.5, 0.5]) == pytest.approx(1)
    quarter = -(0.25 * math.log2(0.25) + 0.75 * math.log2(0.75))
    assert mutual_information([[1.0], [0.0]], [0.25, 0.75]) == pytest.approx(quarter)
    assert mutual_information([[0.5], [0.0]], [0.5, 0.5]) == pytest.approx(quarter - 0.5)


def test_the_best_epoch_is_chosen_by_validation_and_its_weights_are_scored(tmp_path, monkeypatch):
    errors, weights, scored = iter([0.5, 0.3, 0.4]), [], []
    data = tiny_data()

    def fake(network, split, key=None):
        copy = {name: value.clone() for name, value in network.state_dict().items()}
        if split is data.test:
            scored.append(copy)
            return {"error": 0.0}
        assert split is data.valid
        weights.append(copy)
        return {"error": next(errors), "open": 0.5}

    monkeypatch.setattr(training, "evaluate", fake)
    network = train_blocks(settings_of(), data, tmp_path)
    results = RunFolder.read(tmp_path).results
    assert (results["best_epoch"], results["valid"]) == (2, 0.3)
    assert len(weights) == 3
    assert len(scored) == 2  # by samples, and at ½
    for copy in (*scored, network.state_dict()):
        assert all(torch.equal(copy[name], value) for name, value in weights[1].items())
    assert any(not torch.equal(weights[2][name], value) for name, value in weights[1].items())


def test_test_images_change_nothing_but_their_score(tmp_path):
    data = tiny_data()
    other = Dataset(data.train, data.valid, Split(data.test.x, (data.test.y + 1) % 4), 4)
    for name, one in (("a", data), ("b", other)):
        train_blocks(settings_of(), one, tmp_path / name)
    assert lines_of(tmp_path / "a") == lines_of(tmp_path / "b")
    results = [RunFolder.read(tmp_path / name).results for name in "ab"]
    assert results[0]["valid"] == results[1]["valid"]
    assert results[0]["test"]["error"] != results[1]["test"]["error"]


def lines_of(folder):
    rows = RunFolder.read(folder).rows()
    return [{name: value for name, value in row.items() if name != "seconds"} for row in rows]


@pytest.mark.parametrize("name", ["reinforce_centered", "disarm", None])
@pytest.mark.parametrize("at", [1.5, 2.0])
def test_an_interrupted_run_goes_on_to_the_same_numbers(tmp_path, name, at):
    run, data = settings_of(name), tiny_data()
    train_blocks(run, data, tmp_path / "whole")
    seen, state = InterruptedAt(at), torch.get_rng_state()
    with pytest.raises(KeyboardInterrupt):
        train_blocks(run, data, tmp_path / "cut", seen)
    assert torch.equal(torch.get_rng_state(), state)
    assert seen[-1] == at
    assert not RunFolder.read(tmp_path / "cut").results
    train_blocks(run, data, tmp_path / "cut", seen.append)
    assert seen == [
        *(step / 4 for step in range(1 + round(4 * at))),
        *(step / 4 for step in range(round(4 * at), 13)),
        3,
    ]
    assert lines_of(tmp_path / "cut") == lines_of(tmp_path / "whole")
    results = [RunFolder.read(tmp_path / name).results for name in ("whole", "cut")]
    assert results[0] == results[1]
    whole, cut = (RunFolder.read(tmp_path / folder).load() for folder in ("whole", "cut"))
    assert all(torch.equal(value, cut["network"][name]) for name, value in whole["network"].items())


KILLED = """
import os, signal, sys
from pathlib import Path
from tests.experiments.test_blocks import settings_of, tiny_data, train_blocks
train_blocks(settings_of(), tiny_data(), Path(sys.argv[1]), lambda epochs: epochs == 2.5 and os.kill(os.getpid(), signal.SIGKILL))
"""


@pytest.mark.deep
def test_a_killed_run_goes_on_to_the_same_numbers(tmp_path):
    root = str(Path(__file__).parents[2])
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([root, *filter(None, [os.environ.get("PYTHONPATH")])])}
    done = subprocess.run([sys.executable, "-c", KILLED, tmp_path / "cut"], env=environment, capture_output=True)
    assert done.returncode == -signal.SIGKILL, done.stderr.decode()
    for folder in ("cut", "whole"):
        train_blocks(settings_of(), tiny_data(), tmp_path / folder)
    assert lines_of(tmp_path / "cut") == lines_of(tmp_path / "whole")


def test_a_finished_run_gives_its_network_and_is_not_trained_again(tmp_path):
    data = tiny_data()
    first = train_blocks(settings_of(), data, tmp_path)
    again = train_blocks(settings_of(), data, tmp_path, lambda epochs: None)
    assert all(torch.equal(value, again.state_dict()[name]) for name, value in first.state_dict().items())
    with pytest.raises(InvalidInput, match=r"other settings: epochs 3 \(now 2\)"):
        train_blocks(settings_of(epochs=2), data, tmp_path)


def test_a_finished_run_that_is_given_more_epochs_goes_on_to_the_same_numbers(tmp_path):
    data = tiny_data()
    train_blocks(settings_of("disarm", epochs=1), data, tmp_path / "more")
    for folder in ("more", "whole"):
        train_blocks(settings_of("disarm"), data, tmp_path / folder)
    assert lines_of(tmp_path / "more") == lines_of(tmp_path / "whole")
    assert RunFolder.read(tmp_path / "more").results == RunFolder.read(tmp_path / "whole").results


def test_seeds_differ(tmp_path):
    for seed in (0, 1):
        train_blocks(settings_of(seed=seed), tiny_data(), tmp_path / str(seed))
    assert lines_of(tmp_path / "0") != lines_of(tmp_path / "1")


def test_divergence_is_an_error(tmp_path):
    run = settings_of(None, blocks=1, block_size=6, learning_rate=1e30)
    with pytest.raises(GradestError, match=r"16x16 dense, 6 units, seed 0: .*diverged"):
        reproduce_block_gated(tmp_path, [("16x16", run)], tiny_data())


def test_runs_are_listed():
    runs = list_runs(seeds=2, quick=True)
    assert len({run.folder(size) for size, run in runs}) == len(runs) == 2 * (5 + 3)
    assert [run.units for _, run in runs[:8]] == [256] * 6 + [32, 16]
    assert {(run.epochs, run.images) for _, run in runs} == {(2, 6400)}
    large = list_runs([{"name": "arm"}], ["64x64"], epochs=5)
    assert [(run.units, run.epochs) for _, run in large] == [(4096, 5), (4096, 5), (320, 5), (256, 5)]
    assert large[0][1].folder("64x64") == "64x64/arm/seed-0"
    fitting = [run.estimator["name"] for _, run in list_runs(neuron={"name": "categorical"}) if run.estimator]
    assert fitting == ["reinforce", "reinforce_centered", "rloo", "straight_through"]  # disarm takes binary units alone
    with pytest.raises(InvalidOptions, match=r"k_subset\(k=17\) opens more blocks than there are: 16"):
        list_runs([{"name": "reinforce"}], neuron={"name": "k_subset", "k": 17})
    one_hot = list_runs([{"name": "rloo"}], dense=[16, 48], neuron={"name": "categorical"})
    assert [run.label() for _, run in one_hot] == [
        "categorical + rloo",
        *(f"dense, {n} units" for n in (256, 32, 16, 48)),
    ]
    assert {run.neuron["name"] for _, run in one_hot[1:]} == {
        "bernoulli"
    }  # so that these are in the folders of other gates too
    with pytest.raises(
        InvalidOptions, match="gaussian cannot gate blocks; there are: bernoulli, categorical, k_subset"
    ):
        list_runs(neuron={"name": "gaussian"})
    with pytest.raises(InvalidInput, match="no size is named '8x8'; there are: 16x16, 64x64"):
        list_runs(sizes=["8x8"])
    with pytest.raises(InvalidOptions, match="epochs: Input should be greater"):
        list_runs(epochs=0)
    with pytest.raises(Incompatible, match="gumbel_rao does not fit bernoulli"):
        list_runs([{"name": "gumbel_rao"}])
    with pytest.raises(Incompatible, match="this experiment trains on the mean loss"):
        list_runs([{"name": "vimco"}])


def test_speed_has_a_row_for_each_network_batch_and_number_of_threads():
    networks = {"reinforce": network_of().float(), "dense": network_of(None, blocks=1, block_size=6).float()}
    threads = torch.get_num_threads()
    rows = measure_speed(networks, tiny_data().test.x)
    assert torch.get_num_threads() == threads
    assert [network.hidden.method for network in networks.values()] == [0.25, 0.25]
    assert {(row["network"], row["batch"]) for row in rows} == {(name, n) for name in networks for n in (1, 32)}
    assert all(ms > 0 for row in rows for ms in row["ms"])


@pytest.fixture
def mnist_folder(tmp_path):
    """Write MNIST's files with 132 and 20 images of 2 x 2 pixels."""
    for name, count in (("train", 132), ("t10k", 20)):
        images, labels = (bytes(i * 37 % most for i in range(n)) for n, most in ((count * 4, 256), (count, 10)))
        (tmp_path / f"{name}-images-idx3-ubyte").write_bytes(b"\0\0\x08\x03" + struct.pack(">3I", count, 2, 2) + images)
        (tmp_path / f"{name}-labels-idx1-ubyte").write_bytes(b"\0\0\x08\x01" + struct.pack(">I", count) + labels)
    return tmp_path


@pytest.mark.deep
def test_the_command_line_reproduces_and_the_report_has_the_runs_that_are_complete(tmp_path, mnist_folder):
    pytest.importorskip("altair")
    pytest.importorskip("vl_convert")
    pytest.importorskip("tensorboard")
    out = tmp_path / "out"
    words = ["reproduce", "block-gated", "--data-dir", mnist_folder, "--out", out, "--epochs", 1, "--seeds", 2]
    words += ["--estimators", "reinforce", "--estimators", "straight_through", "--policy-rate", 0.01, "--tensorboard"]
    done = CliRunner().invoke(app, [str(word) for word in words])
    assert done.exit_code == 0, done.output
    assert done.stdout.strip() == str(out / "report.md")
    text = (out / "report.md").read_text()
    assert (out / "16x16.svg").read_text().startswith("<svg")
    assert (out / "16x16.png").read_bytes().startswith(b"\x89PNG")
    rows = [line.strip("| ").split(" | ") for line in text.splitlines() if line.startswith("| ")]
    table = {row[0]: row[1:] for row in rows[2:7]}
    assert table.keys() == {"reinforce", "straight_through", "dense, 256 units", "dense, 32 units", "dense, 16 units"}
    results = [RunFolder.read(out / f"16x16/reinforce/seed-{n}").results for n in (0, 1)]
    errors = [100 * one["test"]["error"] for one in results]
    assert table["reinforce"][4] == f"{sum(errors) / 2:.2f} ± {abs(errors[0] - errors[1]) / 2:.2f}"
    unopened = [100 * one["test"]["unopened"] for one in results]
    assert table["reinforce"][6] == f"{sum(unopened) / 2:.2f} ± {abs(unopened[0] - unopened[1]) / 2:.2f}"
    assert table["dense, 32 units"][6] == "-"
    assert list((out / "16x16/reinforce/seed-0/tensorboard").glob("events.*"))
    whole = 4 * 256 + 256 * 10
    assert table["dense, 256 units"][2] == "100.00 ± 0.00"
    assert table["dense, 32 units"][2] == f"{100 * 32 * (4 + 10) / whole:.2f} ± 0.00"
    assert "policy_rate 0.01" in text
    assert "cannot be compared" not in text
    folder = out / "16x16/disarm/seed-0"
    train_blocks(settings_of("disarm", blocks=16, block_size=16, epochs=1), tiny_data(), folder)
    write_report(out)
    assert "The runs differ in batch, target" in (out / "report.md").read_text()
