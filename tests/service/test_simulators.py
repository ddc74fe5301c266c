"""Objectives that are called point by point and have no derivative, over HTTP, by the client, and on the command line."""

import pytest
import torch

import gradest
from gradest.cli import main
from tests.objectives.test_simulators import Simulator

A = [[0.4, -0.9], [1.3, 0.2]]


@pytest.fixture(autouse=True)
def simulator(registered):
    registered(Simulator)


def test_the_description_says_so(http):
    found = http.get("/v1/objectives/simulator").json()
    assert (found["differentiable"], found["pointwise"]) == (False, True)
    found = http.get("/v1/objectives/quadratic").json()
    assert (found["differentiable"], found["pointwise"]) == (True, False)


def test_estimate_and_compare(http, client, refused):
    body = {"neuron": "bernoulli", "objective": "simulator", "a": A, "draws": 16, "seed": 3}
    found = http.post("/v1/estimate", json={**body, "estimator": "rloo"}).json()
    wanted = gradest.estimate(Simulator(), torch.tensor(A), "bernoulli", "rloo", draws=16, seed=3)
    assert torch.allclose(torch.tensor(found["gradient"]), wanted.gradient)
    problem = refused(http.post("/v1/estimate", json={**body, "estimator": "straight_through"}), 422)
    assert "not differentiable" in problem["detail"]
    body["estimators"] = ["straight_through", "rloo"]
    found = http.post("/v1/compare", json=body, headers={"accept": "application/json"}).json()
    assert [row["estimator"] for row in found["rows"]] == ["rloo"]
    assert [one["estimator"] for one in found["skipped"]] == ["straight_through"]
    table = client.compare("simulator", torch.tensor(A), estimators=["straight_through", "rloo"], draws=16, seed=3)
    assert table.skipped[0].estimator == "straight_through"
    assert "is left out" in table.to_markdown()


def test_each_call_counts_as_work(start, refused):
    service = start(max_work=1000)
    body = {"neuron": "bernoulli", "estimator": "reinforce", "a": [0.4, -0.9], "draws": 10, "seed": 3}
    assert service.post("/v1/estimate", json={**body, "objective": "quadratic"}).status_code == 200
    refused(service.post("/v1/estimate", json={**body, "objective": "simulator"}), 413)


def test_recommend(client):
    case = {"objective": "simulator", "a": torch.tensor(A[:1]), "draws": 8, "seed": 3}
    found = client.recommend("stochastic_rounding", ["loss", "grad"], evaluations=1, **case)
    reasons = {one.estimator: one.reasons for one in found.rejected}
    assert "not differentiable" in reasons["straight_through"][0]


def test_the_command_line_shows_the_reason(monkeypatch, capsys):
    arguments = ["compare", "--objective", "simulator", "--a", "0.4,-0.9", "--draws", "16"]
    monkeypatch.setattr("sys.argv", ["gradest", *arguments, "--estimator", "straight_through", "--estimator", "rloo"])
    with pytest.raises(SystemExit) as ended:
        main()
    shown = capsys.readouterr().out
    assert not ended.value.code
    assert "left out" in shown
    assert "not differentiable" in " ".join(shown.split())
