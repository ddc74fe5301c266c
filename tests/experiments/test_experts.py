"""The mixture of experts of `gradest reproduce experts`."""

from __future__ import annotations

import json

import pytest
import torch
from torch.nn.functional import cross_entropy

from gradest.errors import Incompatible
from gradest_experiments.engine.folder import RunFolder
from gradest_experiments.experts import training
from gradest_experiments.experts.network import ExpertNetwork
from gradest_experiments.experts.run import reproduce_experts
from gradest_experiments.experts.settings import ROUTERS, ExpertSettings, list_runs, settings_for
from gradest_experiments.experts.training import evaluate, train_experts
from tests.experiments.tiny import bright_pixels

TINY = {"experts": 4, "expert_units": 3, "epochs": 3, "batch": 8}


def settings_of(router=0, **options):
    neuron, estimator = (None, None) if router is None else ROUTERS[router]
    return ExpertSettings.build(**{**TINY, "neuron": neuron, "estimator": estimator, **options})


def tiny_data():
    return bright_pixels(60)


def test_an_estimator_that_is_named_gets_the_first_gates_that_it_can_train():
    found = list_runs([{"name": "gumbel_top_k"}, {"name": "sparse_mixer"}], seeds=2, quick=True)
    assert [run.label() for run in found[:2]] == ["k_subset(k=2) + gumbel_top_k", "categorical + sparse_mixer"]
    assert [run.label() for run in found[2:5]] == [run.label() for run in list_runs()[len(ROUTERS) :]]
    assert {run.epochs for run in found} == {2}
    with pytest.raises(Incompatible, match="rloo on categorical cannot train a router"):
        settings_for({"name": "rloo"})
    with pytest.raises(Incompatible, match="the gradient of imle is not linear"):
        settings_for({"name": "imle"})


def network_of(router, **options):
    torch.manual_seed(1)
    return ExpertNetwork(12, 4, settings_of(router, **options)).double()


def test_which_routers_need_the_closed_experts():
    """Those that read dL/dh at closed gates get it: `dense_mixer` is another estimator without it."""
    found = [network_of(router).hidden.closed_gate_gradient for router in range(len(ROUTERS))]
    assert found == [False, True, True, False, True]


@pytest.mark.parametrize("router", range(len(ROUTERS)), ids=[" + ".join(p["name"] for p in r) for r in ROUTERS])
def test_the_network_is_the_sum_of_its_open_experts(router):
    """The logits by a loop over experts, for the gates of training; and the router learns from the loss."""
    network, data = network_of(router), tiny_data()
    x, y = data.train.x[:16].double(), data.train.y[:16]
    gates = network.gates(x)
    weight, bias = network.hidden.weight.reshape(4, 3, 12), network.hidden.bias.reshape(4, 3)
    readout = network.readout.weight.reshape(4, 4, 3)
    wanted = network.readout.bias + sum(
        gates[:, i : i + 1] * (torch.relu(x @ weight[i].T + bias[i]) @ readout[:, i].T) for i in range(4)
    )
    torch.testing.assert_close(network(x, gates), wanted)
    assert set((gates > 0).sum(-1).tolist()) == {1 if ROUTERS[router][0]["name"] == "categorical" else 2}
    total, loss = network.objective(x, y)
    total.backward()
    assert float(loss) > 0
    assert float(network.router.weight.grad.abs().sum()) > 0


def test_the_penalty_is_that_of_uneven_importance():
    """Gates that all go to one expert of four have a squared coefficient of variation of 3."""
    network, data = network_of(0, balance=0.5), tiny_data()
    x, y = data.train.x[:16].double(), data.train.y[:16]
    gates = torch.zeros(16, 4, dtype=torch.float64)
    gates[:, 2] = 1
    network.gates = lambda x: gates
    total, loss = network.objective(x, y)
    assert (total - loss).item() == pytest.approx(0.5 * 3)
    assert loss.item() == pytest.approx(cross_entropy(network(x, gates), y).item())


def test_what_is_measured():
    """Work and loads of a network by hand: 2 of 4 experts of 3 units, a router, and a readout."""
    network, data = network_of(0).float(), tiny_data()
    torch.nn.init.normal_(network.router.weight)
    network.hidden.method = "sparse"  # half of the gates are open, of which the network would compute all
    found = evaluate(network, data.test)
    gates = network.gates(data.test.x)
    assert found["computed"] == pytest.approx(2 * 3 * 12 + 4 * 12 + 4 * 12)
    assert found["dense"] == 12 * 12 + 4 * 12
    assert found["load"] == pytest.approx((gates > 0).double().mean(0).tolist())
    assert sum(found["load"]) == pytest.approx(2)
    shares = [4 * load / 2 for load in found["load"]]
    assert found["balance"] == pytest.approx(sum((share - 1) ** 2 for share in shares) / 4)
    wrong = (network(data.test.x, gates).argmax(-1) != data.test.y).double().mean()
    assert found["error"] == pytest.approx(float(wrong))


def test_a_run_that_was_interrupted_goes_on_as_if_it_had_not_been(tmp_path, monkeypatch):
    settings, data = settings_of(1), tiny_data()
    whole = train_experts(settings, data, tmp_path / "whole")
    learn, steps = training.ExpertRun.learn, []

    def interrupted(self, index):
        steps.append(index)
        if len(steps) == 12:  # in the second of three epochs of eight steps
            raise KeyboardInterrupt
        learn(self, index)

    monkeypatch.setattr(training.ExpertRun, "learn", interrupted)
    with pytest.raises(KeyboardInterrupt):
        train_experts(settings, data, tmp_path / "parts")
    monkeypatch.undo()
    parts = train_experts(settings, data, tmp_path / "parts")
    assert parts.results == whole.results
    rows = [[{**row, "seconds": 0} for row in folder.rows("train")] for folder in (whole, parts)]
    assert rows[0] == rows[1]
    assert len(rows[0]) == 3


def test_it_learns(tmp_path):
    """Chance is wrong for three of four images."""
    folder = train_experts(settings_of(1, epochs=40, learning_rate=0.02), tiny_data(), tmp_path / "run")
    assert folder.results["test"]["error"] < 0.3


def test_the_report_has_a_row_for_each_network(tmp_path):
    pytest.importorskip("altair")
    pytest.importorskip("vl_convert")
    runs = [settings_of(router, epochs=1) for router in (0, 4)] + [
        settings_of(None, experts=1, expert_units=12, epochs=1)
    ]
    report = reproduce_experts(tmp_path, runs, tiny_data()).read_text()
    rows = [line.split(" | ") for line in report.splitlines() if line.startswith("| ")][2:]
    assert {row[0].strip("| ") for row in rows} == {run.label() for run in runs}
    by_name = {row[0].strip("| "): row for row in rows}
    assert by_name["noisy_top_k(k=2) + held_noise"][3] == "no"
    assert by_name["categorical + straight_through"][3] == "yes"
    assert by_name["dense, 12 units"][2] == "100.00"
    assert json.dumps(RunFolder.read(tmp_path / runs[0].folder()).results)


def test_the_list_of_runs_and_what_is_refused():
    runs = list_runs(seeds=2, quick=True)
    assert len(runs) == 2 * (len(ROUTERS) + 3)
    assert [run.label() for run in runs[5:8]] == ["dense, 256 units", "dense, 48 units", "dense, 32 units"]
    assert len({run.folder() for run in runs}) == len(runs)
    with pytest.raises(Incompatible, match="cannot train a router"):
        settings_of(0, neuron={"name": "categorical"}, estimator={"name": "rloo"}).gates()
