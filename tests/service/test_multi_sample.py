"""An estimator with a target of its own, over HTTP."""

import pytest
import torch

import gradest

A = [[0.5, -1.0], [0.2, 0.8]]
SPEC = {"neuron": "bernoulli", "estimator": "vimco", "a": A, "seed": 4}


def test_estimate_gives_the_exact_values_of_its_own_target(http):
    objective = {"name": "quadratic", "target": 0.3, "reduction": "sum"}
    found = http.post("/v1/estimate", json={**SPEC, "objective": objective, "draws": 50}).json()
    loss, gradient = gradest.exact(gradest.objective(objective), torch.tensor(A), target=gradest.Target(2))
    assert torch.allclose(torch.tensor(found["exact"]["loss"]), loss)
    assert torch.allclose(torch.tensor(found["exact"]["gradient"]), gradient)
    plain = gradest.exact(gradest.objective(objective), torch.tensor(A))[0]
    assert not torch.allclose(loss, plain)


def test_backward_gives_the_bound(http):
    found = http.post("/v1/backward", json={**SPEC, "loss": [[1.0, 2.0], [3.0, 0.0]]}).json()
    wanted = gradest.Target(2).combine(torch.tensor([[1.0, 2.0], [3.0, 0.0]]))
    assert found["value"] == pytest.approx(wanted.tolist())


def test_the_description_tells_the_target(http):
    assert http.get("/v1/estimators/vimco").json()["target"] == "E[-log mean exp(-L)] of 2 samples"
    assert http.get("/v1/estimators/rloo").json()["target"] == "E[L]"
