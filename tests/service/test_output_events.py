"""Neurons whose outputs have another event than their pre-activations, over HTTP: both forms of bodies, alone and joined."""

import pytest
import torch

import gradest
from gradest.contract.estimator import Feedback
from gradest.estimation.ask_tell import ask, tell
from gradest.random import Key
from tests.contract.test_output_events import Chain, Permutation

A = torch.randn(4, 3, 2, generator=torch.Generator().manual_seed(1))


@pytest.fixture(params=["client", "json_client"])
def either(request):
    return request.getfixturevalue(request.param)


@pytest.mark.parametrize("name", ["diagonal_gaussian", "acme_permutation"])
def test_it_answers_as_the_library_does(either, registered, name):
    neuron = name if name == "diagonal_gaussian" else registered(Permutation).name
    estimator, event_ndim = ("pathwise", 1) if name == "diagonal_gaussian" else ("rloo", 3)
    assert torch.equal(either.sample(neuron, A, 3, seed=2), gradest.sample(neuron, A, 3, seed=2))
    found = either.mean(neuron, A)
    torch.testing.assert_close(found.mean, gradest.neuron(neuron).mean(A))
    draw, state = ask(neuron, estimator, A, Key(5))
    remote = either.forward(neuron, estimator, A, seed=5)
    assert torch.equal(remote.points, draw.points)
    grad = draw.points.cos() if estimator == "pathwise" else None
    loss = draw.points.flatten(2).sin().sum(-1)
    wanted, _ = tell(estimator, draw, Feedback(loss, grad), state)
    told = either.backward(neuron, estimator, A, remote, loss, grad)
    assert torch.equal(told.gradient, wanted)
    objective = gradest.objective("quadratic", target=0.3, event_ndim=event_ndim)
    answer = either.estimate(objective, A, neuron, estimator, draws=20, seed=1)
    local = gradest.estimate(objective, A, neuron, estimator, draws=20, seed=1)
    torch.testing.assert_close(answer.gradient, local.gradient)
    loss, gradient = gradest.exact(objective, A, neuron)
    torch.testing.assert_close(answer.exact[0], loss)
    torch.testing.assert_close(answer.exact[1], gradient)


def test_expect_trains_through_the_client(either):
    for event_dims, batch in ((None, (4,)), (3, ())):
        found = []
        for expect in (gradest.expect, either.expect):
            a = A.clone().requires_grad_()
            seen = []

            def f(h, seen=seen, batch=batch):
                seen.append(h.shape)
                return h.square().flatten(1 + len(batch)).sum(-1)

            value, _ = expect(f, a, "diagonal_gaussian", "pathwise", seed=3, event_dims=event_dims)
            value.sum().backward()
            found.append((value.detach(), a.grad, seen))
        (value, grad, shapes), (remote, remote_grad, remote_shapes) = found
        assert value.shape == batch
        assert shapes == remote_shapes == [(1, 4, 3)]
        torch.testing.assert_close(remote, value)
        torch.testing.assert_close(remote_grad, grad)


def test_it_refuses_other_events_and_values(http, refused):
    for a, reason in (([[0.1, 0.2, 0.3]], "torch.stack"), ([[0.1, 31.0]], "log std of at most 30")):
        for route, more in (
            ("sample", {}),
            ("mean", {}),
            ("forward", {"estimator": "pathwise"}),
        ):
            body = {"neuron": "diagonal_gaussian", "a": a, **more}
            assert reason in refused(http.post(f"/v1/{route}", json=body), 422)["detail"]


def test_a_law_of_too_many_outputs_never_runs(http, registered, refused):
    neuron = registered(Chain).name
    objective = {"name": "quadratic", "event_ndim": 2}
    body = {"neuron": neuron, "objective": objective, "a": [[[0.0] * 30]], "draws": 10}
    answer = http.post("/v1/estimate", json={**body, "estimator": "reinforce"}).raise_for_status().json()
    assert answer["exact"] is None
    assert "2^20" in refused(http.post("/v1/estimate", json={**body, "estimator": "enumeration"}), 413)["detail"]


def test_the_description_tells_the_events(http):
    found = http.get("/v1/neurons/diagonal_gaussian").raise_for_status().json()
    assert (found["event_ndim"], found["output_ndim"], found["example_events"][0]) == (2, 1, [2, 2])
    assert found["estimators"] == ["evolution", "held_noise", "lax", "pathwise", "spsa"]
